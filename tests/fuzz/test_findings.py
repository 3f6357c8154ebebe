"""What fuzzing found, each once."""

import io
import json
import pickle
import struct
import zipfile
from types import SimpleNamespace

import fuzz_seeds as seeds
import pytest
from fuzz_harness import Target, judge
from fuzz_targets import CONTRACTS, TARGETS, bundle_in, fill_bundle

from resnet_deploy import checkpoints, onnx_files
from resnet_deploy.errors import (
    BundleError,
    DataError,
    FileError,
    LoadgenError,
    ModelError,
    WeightsError,
)

pytest.importorskip("torch", reason="it reads checkpoints")
pytest.importorskip("onnx", reason="it reads models")
pytest.importorskip("pyarrow", reason="it reads scores")


def packed(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def compressed(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return packed({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def safetensors_of(header, body=b""):
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + body


def one_tensor(dtype, shape, size):
    return safetensors_of({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(size))


def refused(error, call, *arguments):
    """Call it, and return the message of the error that it raises."""
    with pytest.raises(error) as caught:
        call(*arguments)
    assert caught.value.message.isprintable()
    return caught.value.message


def checkpoint_refused(path, data):
    path.write_bytes(data)
    return refused(WeightsError, checkpoints.read_state_dict, path)


@pytest.mark.parametrize("older", [False, True])
def test_a_checkpoint_that_unpacks_to_more_than_it_holds(tmp_path, monkeypatch, older):
    import torch

    file = io.BytesIO()
    torch.save({"a": torch.zeros(1 << 20)}, file)
    path = tmp_path / "bomb.pth"
    path.write_bytes(file.getvalue())
    assert checkpoints.read_state_dict(path)["a"].numel() == 1 << 20
    if older:  # PyTorch 2.10's reader of archives does not tell how long a record is
        reader = torch._C.PyTorchFileReader
        monkeypatch.setattr(
            torch._C, "PyTorchFileReader", lambda data: SimpleNamespace(get_record=reader(data).get_record)
        )
    assert "compressed" in checkpoint_refused(path, compressed(file.getvalue()))
    damaged = file.getvalue().replace(b"PK\1\2", b"PK\1\3")
    assert "damaged" in checkpoint_refused(path, damaged)


def test_a_tensor_that_repeats_what_is_stored(tmp_path):
    import torch

    file = io.BytesIO()
    torch.save({"a": torch.ones(1).expand(1 << 30, 1 << 20)}, file)
    assert "more values than are stored" in checkpoint_refused(tmp_path / "wide.pth", file.getvalue())
    tied = torch.ones(3)
    torch.save({"a": tied, "b": tied}, tmp_path / "tied.pth")
    assert checkpoints.read_state_dict(tmp_path / "tied.pth").keys() == {"a", "b"}


def legacy_head():
    """What is before the content in the format that PyTorch had before archives."""
    from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

    return b"".join(pickle.dumps(one, protocol=2) for one in (MAGIC_NUMBER, PROTOCOL_VERSION, {}))


NESTED = b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."  # of these PyTorch's unpickler ends the process
DOUBLED = b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns."  # and of these sees no end


@pytest.mark.parametrize("made", [NESTED, DOUBLED, b"\x80\x02})\x85K\x01s."], ids=["nested", "doubled", "tuple"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_key_that_is_no_name(tmp_path, made, is_archive):
    path, archive = tmp_path / "deep.pth", {"a/data.pkl": made, "a/version": "3\n", "a/byteorder": "little"}
    data = packed(archive) if is_archive else legacy_head() + made + b"\x80\x02]."
    assert "a key that is neither a name nor a number" in checkpoint_refused(path, data)
    with pytest.raises(WeightsError) as caught:
        checkpoints.read_state_dict(path)
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("tensor", [("F4", [2], 1), ("F8_E8M0", [1], 1), ("F32", [0, 1 << 62, 8], 0)], ids=str)
def test_tensors_that_pytorch_or_numpy_lacks(tmp_path, tensor):
    from resnet_deploy.quantize.bias import read_corrections
    from resnet_deploy.quantize.observations import read_observations

    assert "damaged" in checkpoint_refused(tmp_path / "odd.safetensors", one_tensor(*tensor))
    assert "damaged" in refused(DataError, read_corrections, tmp_path / "odd.safetensors")
    sound = seeds.observations()[0]
    (size,) = struct.unpack("<Q", sound[:8])
    header = json.loads(sound[8 : 8 + size])
    header[seeds.TENSOR] = {"dtype": tensor[0], "shape": tensor[1], "data_offsets": [0, tensor[2]]}
    (tmp_path / "seen.safetensors").write_bytes(safetensors_of(header, bytes(tensor[2])))
    assert "damaged" in refused(DataError, read_observations, tmp_path / "seen.safetensors")


def test_a_digest_of_an_image_that_is_none(tmp_path):
    from resnet_deploy.quantize.observations import read_observations

    path = tmp_path / "seen.safetensors"
    path.write_bytes(seeds.observations()[0].replace(b"5" * 64, b"x" * 64))
    assert "damaged" in refused(DataError, read_observations, path)


def model_with(change):
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(seeds.onnx_model()[0])
    change(model)
    return model.SerializeToString()


def model_refused(change):
    return refused(ModelError, lambda: onnx_files.read_exported(model_with(change), name="m.onnx"))


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "secret"])
def test_data_of_a_node_in_another_file(tmp_path, monkeypatch, place):
    (tmp_path / "secret").write_bytes(bytes(4))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / ("below" if place.startswith("..") else "."))

    def keep_elsewhere(model):
        tensor = model.graph.node[0].attribute[0].t
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place

    onnx_files.read_exported(model_with(lambda _: None), name="m.onnx")
    assert "keeps its weights in other files" in model_refused(keep_elsewhere)


@pytest.mark.parametrize("kind", [2, 3, 9, 17, 20])  # uint8, int8, bool, float8: the checker does not count these
def test_a_constant_of_fewer_bytes_than_it_says(kind):
    def shorten(model):
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type, tensor.raw_data = "short", kind, b"1234"
        tensor.dims.append(3)

    assert "damaged ONNX file" in model_refused(shorten)


def test_a_postscript_file_is_no_image(tmp_path):
    from PIL import Image

    Image.init()  # whose modules make named tuples, by code
    image = next(one for one in TARGETS if one.name == "image")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert judge(image, script, tmp_path) == ""
    with pytest.raises(DataError, match="looks like EPS, a format that is not read"):
        image.read(tmp_path)

    def open_any(folder):
        with Image.open(folder / "file") as picture:
            picture.load()

    by_itself = Target("broken", "file", lambda: [b""], open_any)
    assert "subprocess.Popen" in judge(by_itself, script, tmp_path)  # the twin: what Pillow does by itself


def test_exif_data_that_are_damaged(tmp_path):
    from PIL import Image

    from resnet_deploy.images import preprocess_image

    image = Image.new("RGB", (16, 12))
    image.info["exif"] = b"Exif\0\0no such thing"
    contract = next(one for one in CONTRACTS if one.interpolation == "area")
    assert "damaged EXIF data" in refused(DataError, preprocess_image, image, contract)


def golden_refused(folder, data):
    from resnet_deploy.pipeline.replaying import read_golden

    (folder / "golden.npz").write_bytes(data)
    return refused(BundleError, lambda: read_golden(bundle_in(folder)))


def test_golden_vectors_that_are_compressed_or_no_arrays(tmp_path):
    fill_bundle(tmp_path)
    assert "is compressed" in golden_refused(tmp_path, compressed(seeds.golden()[0]))
    assert "do not fit" in golden_refused(tmp_path, packed({"images.npy": b"none", "logits.npy": b"none"}))


def with_a_namesake():
    """An evaluation of two engines of the same name, the first of which lacks an answer."""
    record = json.loads(seeds.evaluation_record()[0])
    record["engines"].insert(0, json.loads(json.dumps(record["engines"][0])))
    record["engines"][0]["outputs"]["top5"].pop()
    return json.dumps(record).encode()


def run_target(name, folder, data):
    target = next(one for one in TARGETS if one.name == name)
    target.prepare(folder)
    (folder / target.file).write_bytes(target.repair(data))
    target.read(folder)


def with_power(field, value):
    """A record of bench in which a power of one image is another."""
    record = json.loads(seeds.bench_record()[0])
    record["engines"][1]["outputs"][field][0] = value
    return json.dumps(record).encode()


DEEP = b'{"x":' + b"[" * 5000
NO_STEP = {"max_drop": 1, "metric": "", "cost": "", "dataset": "", "dataset_sha256": "", "images": 1}
NO_STEP |= {"sensitivity": {}, "steps": []}
SUBJECT = seeds.journal()[0].split(b"\n")[0]
DAMAGED = {
    "calibration that is no text": ("calibration", b'{"spec":"\xff"}', BundleError),
    "calibration without its range": (
        "calibration",
        seeds.calibration()[0].replace(b'"percentile": [', b'"none": ['),
        BundleError,
    ),
    "search of another form": ("search", b'{"steps":1}', BundleError),
    "search of no step": ("search", json.dumps(NO_STEP).encode(), BundleError),
    "fleet of no name": ("fleet", seeds.fleet(b"")[0].replace(b'"net"', b'"a\\u0000b"'), BundleError),
    "fleet too deep": ("fleet", DEEP, BundleError),
    "record too deep": ("record of bench", DEEP, FileError),
    "scoring too deep": ("record of scoring", DEEP, FileError),
    "notes too deep": ("notes of a search", DEEP, FileError),
    "journal of another version": ("journal of evaluate", b'{"version":"\xff"}\n', FileError),
    "step of another version": ("journal of evaluate", SUBJECT + b"\n{}\n", FileError),
    "step of other engines": (
        "journal of evaluate",
        seeds.journal()[0].replace(b'"answers":[', b'"answers":[{"top5":[[1],[2]]},'),
        FileError,
    ),
    "answers too deep": ("answers of LoadGen", b"[" + DEEP, LoadgenError),
    "log too deep": ("log of LoadGen", b":::MLLOG " + DEEP, LoadgenError),
    "suite too deep": ("suite", b"a=" + b"[" * 5000, FileError),
    "suite with a number of thousands of digits": ("suite", b"a=" + b"9" * 5000, FileError),
    "half a surrogate pair": ("layers of an engine", b'{"Layers":[{"Name":"\\ud800"}]}', BundleError),
    "decoding that never ends": (
        "record of evaluate",
        seeds.evaluation_record()[0].replace(b'"decode": 100.0', b'"decode": 0.0'),
        FileError,
    ),
    "noise of less than nothing": ("record of bench", with_power("noise", -9), FileError),
    "signal that overflows": ("record of bench", with_power("signal", 1e308), FileError),
    "an evaluation in no time": (
        "record of evaluate",
        seeds.evaluation_record()[0].replace(b'"seconds": 1.0', b'"seconds": 0.0'),
        FileError,
    ),
    "an engine that hardly answers": (
        "record of evaluate",
        seeds.evaluation_record()[0].replace(b" 50.0,", b" 5e-324,"),
        FileError,
    ),
    "server without a rate": ("record of loadgen", seeds.loadgen_record()[0].replace(b"target_qps", b"qps"), FileError),
    "two engines of one name": ("record of evaluate", with_a_namesake(), FileError),
}


@pytest.mark.parametrize(("name", "data", "error"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_one_error(tmp_path, name, data, error):
    refused(error, run_target, name, tmp_path, data)


def test_a_damaged_search_of_an_engine_that_is_lined_up(tmp_path):
    from resnet_deploy.datasets import find_images
    from resnet_deploy.pipeline.lineup import Candidate

    fill_bundle(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(seeds.images()[0])
    dataset = find_images(tmp_path / "images")

    def ask():
        bundle = bundle_in(tmp_path)
        return Candidate(None, "onnxruntime", "int8", 1, "", bundle).was_fitted_to(dataset)

    assert ask() is False
    for damaged in (b'{"steps":1}', json.dumps(NO_STEP).encode(), DEEP):
        (tmp_path / "search.json").write_bytes(damaged)
        assert "search.json is damaged" in refused(BundleError, ask)


def test_a_signal_far_below_its_noise(tmp_path):
    record = json.loads(with_power("noise", 1e100))
    outputs = record["engines"][1]["outputs"]
    outputs["signal"] = [5e-324] + [0.0] * (len(outputs["signal"]) - 1)
    run_target("record of bench", tmp_path, json.dumps(record).encode())


@pytest.mark.parametrize("seconds", [1e-15, 1e15])
def test_the_longest_and_the_shortest_latency_are_shown(tmp_path, seconds):
    record = json.loads(seeds.bench_record()[0])
    record["engines"][1]["latency"][0]["seconds"][0] = seconds
    run_target("record of bench", tmp_path, json.dumps(record).encode())


@pytest.mark.parametrize("seconds", [5e-324, 1e307])
def test_a_latency_of_hundreds_of_digits_is_none(tmp_path, seconds):
    record = json.loads(seeds.bench_record()[0])
    record["engines"][1]["latency"][0]["seconds"][0] = seconds
    with pytest.raises(FileError, match="is no record of `bench`"):
        run_target("record of bench", tmp_path, json.dumps(record).encode())


def test_a_count_of_thousands_of_digits_is_no_table(tmp_path):
    from resnet_deploy.integrations.pyarrow import errors_to_parquet

    about = {"scoring_sha256": seeds.scoring_request().digest, "bad": "9" * 5000}
    run_target("table of scores", tmp_path, errors_to_parquet({"a.png": "damaged"}, about))


def test_names_of_nodes_are_read_in_one_pass():
    from resnet_deploy.compiled.steps import nodes_of

    assert nodes_of("x[ONNX Layer: conv1][ONNX Layer: a[0]y[ONNX Layer: cut") == ("conv1", "a[0")
    assert nodes_of("[ONNX Layer: " * 200_000) == ()  # a search for the end from each of them would take minutes


def test_dimensions_that_no_tensor_has(tmp_path):
    from resnet_deploy.compiled.inspector import read_inspector

    layer = {"Name": "a", "LayerType": "x", "Outputs": [{"Name": "y", "Datatype": "FP32", "Dimensions": [10**400]}]}
    assert read_inspector(json.dumps({"Layers": [layer]}).encode()).layers[0].outputs[0].shape == ()


def test_errors_are_one_line_of_bounded_length():
    error = DataError("a\nb\x1b[31m\u202e é", hint="x" * 10_000)
    assert str(error) == error.message == "a\\nb\\x1b[31m\\u202e é"
    assert error.hint.startswith("x" * 400)
    assert len(error.hint) < 1100
