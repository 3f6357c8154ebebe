"""What Triton is told of an engine, parsed by Triton's own schema."""

import re

import msgspec
import numpy as np
import pytest
from triton_manifest import FLOAT32, LABELS, make_contents, make_manifest

from resnet_deploy.errors import BackendError, SpecError
from resnet_deploy.integrations.triton.folders import model_folders, origin, seal
from resnet_deploy.integrations.triton.hosts import Serving, notes
from resnet_deploy.integrations.triton.text_proto import Word, entry, text_from_message
from resnet_deploy.specs import BatchRange, Preprocess
from resnet_deploy.trt_options import TrtOptions

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="Triton's schema is in its client")
text_format = pytest.importorskip("google.protobuf.text_format")


def parsed(folder):
    """Read a configuration as Triton does: unknown fields and wrong types are errors."""
    return text_format.Parse(folder.config.decode(), schema.ModelConfig())


def engine_config(manifest, **serving):
    """The configuration of the engine's own model, and its folder."""
    folders = model_folders(make_contents(manifest), Serving(**{"name": "net", **serving}))
    (folder,) = [one for one in folders if one.name == "net"]
    return parsed(folder), folder


def profiles(*texts):
    return {"profiles": tuple(map(BatchRange.parse, texts))}


def test_an_engine_on_the_cpu():
    config, folder = engine_config(make_manifest(), max_delay_us=250, instances=2, threads=4)
    assert (config.name, config.backend, config.default_model_filename) == ("net", "onnxruntime", "model.onnx")
    assert config.max_batch_size == 64
    (images,), (logits,) = config.input, config.output
    assert (images.name, images.data_type, list(images.dims)) == ("images", schema.TYPE_UINT8, [8, 8, 3])
    assert images.format == schema.ModelInput.FORMAT_NHWC
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", schema.TYPE_FP32, [3])
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert not config.dynamic_batching.preferred_batch_size
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (schema.ModelInstanceGroup.KIND_CPU, 2, [])
    assert config.parameters["intra_op_thread_count"].string_value == "4"
    assert config.version_policy.latest.num_versions == 1
    assert not config.HasField("optimization")
    assert set(folder.version_files) == {"model.onnx", "manifest.json", "interface.json"}


def test_requests_are_combined_without_delay_unless_one_is_given():
    config, _ = engine_config(make_manifest())
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert "intra_op_thread_count" not in config.parameters


def test_a_served_model_can_be_traced_back():
    manifest = make_manifest()
    config, folder = engine_config(manifest)
    told = {key: value.string_value for key, value in config.parameters.items()}
    assert told["resnet_deploy.bundle"] == "net"
    assert told["resnet_deploy.engine_sha256"] == "2" * 64
    assert msgspec.json.decode(told["resnet_deploy.preprocess"], type=Preprocess) == manifest.card.preprocess
    assert told["resnet_deploy.preprocess_sha256"] == manifest.card.preprocess.digest
    assert folder.version_files["manifest.json"] == make_contents(manifest).manifest_json


def test_labels_are_one_a_line():
    config, folder = engine_config(make_manifest())
    assert config.output[0].label_filename == "labels.txt"
    assert folder.files["labels.txt"].decode().split("\n") == [*LABELS, ""]
    config, folder = engine_config(make_manifest(labels=()))
    assert config.output[0].label_filename == ""
    assert "labels.txt" not in folder.files


@pytest.mark.parametrize("label", ["two\nlines", "carriage\rreturn"])
def test_a_label_of_two_lines_is_refused(label):
    with pytest.raises(SpecError, match=r"label 1, .* has a line break"):
        engine_config(make_manifest(labels=("a", label, "c")))


@pytest.mark.parametrize("contract", [{}, FLOAT32], ids=["uint8", "float32"])
def test_warmup_data_is_a_golden_image(contract):
    manifest = make_manifest(**contract)
    config, folder = engine_config(manifest)
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
    for sample in config.model_warmup:
        given = sample.inputs["images"]
        assert (given.data_type, list(given.dims)) == (config.input[0].data_type, list(config.input[0].dims))
        data = np.frombuffer(folder.files[f"warmup/{given.input_data_file}"], manifest.card.preprocess.dtype)
        np.testing.assert_array_equal(data.reshape(given.dims), make_contents(manifest).images[0])


def test_a_batch_of_one_is_not_combined():
    config, _ = engine_config(make_manifest(batch="1"))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    with pytest.raises(SpecError, match="--max-delay has no effect with a batch of 1:1:1"):
        engine_config(make_manifest(batch="1"), max_delay_us=1)


def test_a_fixed_batch_is_a_dimension():
    """Triton has no least batch size, so that the batch is no batch to it."""
    config, folder = engine_config(make_manifest(batch="5"))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [5, 8, 8, 3]
    assert config.input[0].format == schema.ModelInput.FORMAT_NONE
    assert list(config.output[0].dims) == [-1, 3]
    assert not config.HasField("dynamic_batching")
    (sample,) = config.model_warmup
    assert (sample.batch_size, list(sample.inputs["images"].dims)) == (1, [5, 8, 8, 3])
    data = np.frombuffer(folder.files["warmup/images"], np.uint8).reshape(5, 8, 8, 3)
    images = make_contents(make_manifest()).images
    np.testing.assert_array_equal(data, images[[0, 1, 0, 1, 0]])


def test_openvino_takes_a_fixed_batch_of_one_as_a_dimension():
    """Nothing combines requests there, so that Triton is to refuse what is no batch of one."""
    config, _ = engine_config(make_manifest(backend="openvino", batch="1"))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 8, 8, 3]
    assert list(config.output[0].dims) == [-1, 3]
    (sample,) = config.model_warmup
    assert (sample.batch_size, list(sample.inputs["images"].dims)) == (1, [1, 8, 8, 3])


@pytest.mark.parametrize(
    ("backend", "batch", "first"),
    [
        ("onnxruntime", "1:8:64", "combined"),
        ("onnxruntime", "1:8:16", "combined"),
        ("onnxruntime", "4", 4),
        ("openvino", "1:8:64", "free"),
        ("openvino", "1", 1),
    ],
)
def test_the_interface_tells_the_first_dimension(backend, batch, first):
    _, folder = engine_config(make_manifest(backend=backend, batch=batch))
    interface = msgspec.json.decode(folder.version_files["interface.json"])
    assert interface["batch"] == first
    assert (interface["kind"], interface["classes"], interface["labels"]) == ("engine", 3, list(LABELS))


def test_a_least_batch_size_is_refused():
    with pytest.raises(SpecError, match="2:8:64, and Triton cannot be told of a least batch size") as refused:
        engine_config(make_manifest(batch="2:8:64"))
    assert "--batch 1:OPT:MAX" in refused.value.hint


def test_openvino_takes_the_batch_as_a_dimension():
    manifest = make_manifest(backend="openvino")
    config, _ = engine_config(manifest, threads=3)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("openvino", "model.onnx", 0)
    assert list(config.input[0].dims) == [-1, 8, 8, 3]
    assert list(config.model_warmup[0].inputs["images"].dims) == [1, 8, 8, 3]
    assert config.parameters["INFERENCE_NUM_THREADS"].string_value == "3"
    assert config.parameters["PERFORMANCE_HINT"].string_value == "LATENCY"
    requests, precision = notes(manifest)
    assert "combines no requests" in requests
    assert "BF16" in precision
    with pytest.raises(SpecError, match="openvino engines, whose requests Triton does not combine"):
        engine_config(manifest, max_delay_us=100)


def test_a_plan_goes_to_the_gpus():
    manifest = make_manifest(backend="tensorrt", requires={"version": "10.16.1", "compute_capabilities": ("8.9",)})
    config, folder = engine_config(manifest, gpus=(0, 2), instances=3)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (schema.ModelInstanceGroup.KIND_GPU, 3, [0, 2])
    assert not group.profile
    assert not config.HasField("optimization")
    assert folder.version_files["model.plan"] == make_contents(manifest).engine
    version, gpus = notes(manifest)
    assert "a server with TensorRT 10.16.1" in version
    assert "8.9" in gpus


def test_a_plan_for_later_versions_says_how_to_start_the_server():
    spec = {"trt": TrtOptions(version_compatible=True)}
    manifest = make_manifest(backend="tensorrt", spec=spec, requires={"version": "10.16", "later_versions": True})
    assert "--backend-config=tensorrt,version-compatible=true" in notes(manifest)[0]


def test_every_profile_of_a_plan_is_used():
    manifest = make_manifest(backend="tensorrt", batch="1:16:64", spec=profiles("2:16:64", "1"))
    config, _ = engine_config(manifest, cuda_graphs=True)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 16]
    graphs = config.optimization.cuda
    assert graphs.graphs
    assert [one.batch_size for one in graphs.graph_spec] == [1, 16]
    assert all(list(one.input["images"].dim) == [8, 8, 3] for one in graphs.graph_spec)


def test_graphs_of_a_fixed_batch():
    config, _ = engine_config(make_manifest(backend="tensorrt", batch="4"), cuda_graphs=True)
    (one,) = config.optimization.cuda.graph_spec
    assert (one.batch_size, list(one.input["images"].dim)) == (0, [4, 8, 8, 3])


def test_the_tensorrt_provider_is_told_its_profile():
    config, _ = engine_config(make_manifest(backend="onnxruntime-tensorrt"))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "trt_profile_min_shapes": "images:1x8x8x3",
        "trt_profile_opt_shapes": "images:8x8x8x3",
        "trt_profile_max_shapes": "images:64x8x8x3",
    }
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU


def test_the_cuda_provider_needs_no_words():
    config, _ = engine_config(make_manifest(backend="onnxruntime-cuda"))
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert not config.HasField("optimization")


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "onnxruntime-rtx", "null", "torch"])
def test_what_triton_cannot_run_is_refused(backend):
    with pytest.raises(BackendError, match=f"Triton has no backend that runs {backend} engines") as refused:
        engine_config(make_manifest(backend=backend))
    assert "onnxruntime" in refused.value.hint or "--backend tensorrt" in refused.value.hint


def test_a_stripped_plan_is_refused():
    manifest = make_manifest(backend="tensorrt", spec={"trt": TrtOptions(strip_weights=True)})
    with pytest.raises(BackendError, match="stripped"):
        engine_config(manifest)


@pytest.mark.parametrize(
    ("backend", "serving", "message"),
    [
        ("onnxruntime", {"gpus": (0,)}, "--gpus has no effect"),
        ("onnxruntime", {"cuda_graphs": True}, "--cuda-graphs has no effect"),
        ("onnxruntime-cuda", {"cuda_graphs": True}, "--cuda-graphs has no effect"),
        ("tensorrt", {"threads": 2}, "--threads has no effect"),
        ("onnxruntime", {"name": "a/b"}, "'a/b' cannot name a model"),
        ("onnxruntime", {"name": ".hidden"}, "cannot name a model"),
        ("onnxruntime", {"name": "a..b"}, "cannot name a model"),
        ("onnxruntime", {"name": "net\n"}, "cannot name a model"),
        ("onnxruntime", {"instances": 0}, "0 instances"),
        ("onnxruntime", {"max_delay_us": -1}, "-1 microseconds"),
        ("onnxruntime", {"threads": -1}, "-1 threads"),
        ("tensorrt", {"gpus": (1, 1)}, "1,1 are not numbers of GPUs"),
        ("tensorrt", {"gpus": (-1,)}, "-1 are not numbers of GPUs"),
    ],
)
def test_what_makes_no_sense_is_refused(backend, serving, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        engine_config(make_manifest(backend=backend), **serving)


# --- models around an engine of the float32 contract


def test_a_uint8_engine_needs_no_other_model():
    assert len(model_folders(make_contents(make_manifest()), Serving(name="net"))) == 1


@pytest.mark.parametrize(
    ("batch", "backend", "most", "leading", "outputs"),
    [
        ("1:8:64", "onnxruntime", 64, [], []),
        ("1:8:64", "tensorrt", 64, [], []),
        ("4", "onnxruntime", 0, [4], [-1]),
        ("1:8:64", "openvino", 0, [-1], [-1]),
    ],
)
def test_an_ensemble_takes_pixels(batch, backend, most, leading, outputs):
    pytest.importorskip("onnx", reason="it writes the normalisation")
    manifest = make_manifest(batch=batch, backend=backend, **FLOAT32)
    folders = model_folders(make_contents(manifest), Serving(name="net"))
    before, engine, ensemble = map(parsed, folders)
    assert [one.name for one in (before, engine, ensemble)] == ["net_preprocess", "net", "net_ensemble"]
    assert {one.max_batch_size for one in (before, engine, ensemble)} == {most}
    assert list(engine.input[0].dims) == [*leading, 3, 8, 8]
    for one in (before, ensemble):
        assert (one.input[0].data_type, list(one.input[0].dims)) == (schema.TYPE_UINT8, [*leading, 8, 8, 3])
    assert (before.output[0].name, list(before.output[0].dims)) == ("normalized", [*outputs, 3, 8, 8])
    assert list(ensemble.output[0].dims) == list(engine.output[0].dims) == [*outputs, 3]
    assert (before.backend, ensemble.platform) == ("onnxruntime", "ensemble")
    assert before.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU
    first, second = ensemble.ensemble_scheduling.step
    assert (first.model_name, dict(first.input_map), dict(first.output_map)) == (
        "net_preprocess",
        {"images": "images"},
        {"normalized": "normalized"},
    )
    assert (second.model_name, dict(second.input_map), dict(second.output_map)) == (
        "net",
        {"images": "normalized"},
        {"logits": "logits"},
    )
    assert first.model_version == second.model_version == -1
    assert folders[2].files["labels.txt"] == folders[1].files["labels.txt"]


def every_pixel(side):
    """Images that have each value of a pixel in each channel, in another order each."""
    values = np.stack([np.random.default_rng(seed).permutation(256) for seed in range(3)], axis=1)
    return np.resize(values.astype(np.uint8), (2, side, side, 3))


CONTRACTS = {
    "torchvision": {},
    "odd numbers": {"mean": (0.1, 1 / 3, 0.9), "std": (0.37, 1e-3, 0.7)},
    "mlperf": {"interpolation": "area"},
}


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_the_normalisation_is_ours_to_the_bit(contract):
    ort = pytest.importorskip("onnxruntime", reason="it runs the normalisation")
    pytest.importorskip("onnx", reason="it writes the normalisation")
    from resnet_deploy.contract import MLPERF_MEAN, MLPERF_STD
    from resnet_deploy.images import tensor_from_source
    from resnet_deploy.integrations.triton.normalization import normalization_graph

    if contract.get("interpolation") == "area":
        contract = contract | {"mean": MLPERF_MEAN, "std": MLPERF_STD}
    side = 16  # no pixel is resized, and 256 of them are each value once
    spec = Preprocess(image_size=side, resize=side, **contract, **FLOAT32)
    images = every_pixel(side)
    expected = np.stack([tensor_from_source(image, spec) for image in images])
    session = ort.InferenceSession(normalization_graph(spec), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    assert (found.dtype, found.shape) == (np.float32, (2, 3, side, side))
    np.testing.assert_array_equal(found, expected)  # exact: the same operations in the same order
    # In another order, which is as good an arithmetic, it would have differed.
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    planes = images.transpose(0, 3, 1, 2).astype(np.float32)
    is_area = spec.interpolation == "area"
    other = (planes / np.float32(255) - mean) / std if is_area else (planes - mean * 255) / (std * 255)
    np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-3)  # the same but for rounding
    assert not np.array_equal(other, expected)
    assert normalization_graph(spec) == normalization_graph(spec)


# --- the text


def test_text_is_quoted_as_protobuf_reads_it():
    text = 'quote " backslash \\ newline \n tab \t bell \a umlaut ü emoji 🐟 nul \0 7'
    message = (("name", text), ("default_model_filename", ""), ("parameters", entry(text, (("string_value", text),))))
    config = text_format.Parse(text_from_message(message), schema.ModelConfig())
    assert config.name == text
    assert config.parameters[text].string_value == text
    assert text_from_message(message).isascii()


def test_scalars_lists_and_messages():
    message = (
        ("a", True),
        ("b", -1),
        ("c", Word("KIND_CPU")),
        ("d", [1, 2]),
        ("e", ["x"]),
        ("f", ()),
        ("g", (("h", 1),)),
    )
    assert text_from_message(message).split("\n") == [
        *("a: true", "b: -1", "c: KIND_CPU", "d: [1, 2]", 'e: ["x"]', "f {", "}", "g {", "  h: 1", "}", ""),
    ]


def test_a_misspelt_field_does_not_parse():
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text_from_message((("max_batchsize", 1),)), schema.ModelConfig())


def test_an_edited_configuration_is_told_from_ours():
    sealed = seal('name: "net"\n')
    assert origin(sealed) == "ours"
    assert origin(sealed.replace(b'"net"', b'"not"')) == "edited"
    assert origin(sealed + b"\n") == "edited"
    assert origin(b'name: "net"\n') == "foreign"
    assert origin(b"") == "foreign"
