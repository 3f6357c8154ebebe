"""The fields of a model's configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from resnet_deploy import artifact
from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import Manifest
from resnet_deploy.errors import SpecError
from resnet_deploy.integrations.triton.hosts import Batching, Host, Serving
from resnet_deploy.integrations.triton.text_proto import Message, Word, entry
from resnet_deploy.ort_providers import profile_options
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

LABELS: Final = "labels.txt"
WARMUP: Final = "warmup"  # the folder that Triton looks for such data in
DTYPES: Final = {"uint8": Word("TYPE_UINT8"), "float32": Word("TYPE_FP32")}


@dataclass(frozen=True)
class Contents:
    """What of a bundle goes into a repository.

    Attributes:
        manifest: What the bundle says of itself.
        manifest_json: The same, as it is in the bundle.
        engine: The engine's file.
        images: Golden inputs, shape (N, *contract.shape) and dtype of the contract, with N at least 1.
    """

    manifest: Manifest
    manifest_json: bytes
    engine: Path
    images: "Array"


def newest_version() -> tuple[str, Message]:
    """Serve the version with the highest number, and no other."""
    return "version_policy", (("latest", (("num_versions", 1),)),)


def tensor_input(card: ModelCard, batching: Batching) -> Message:
    """Describe what the engine takes."""
    contract = card.preprocess
    return _image(contract.dtype, contract.layout, (*batching.leading, *contract.shape))


def pixel_input(card: ModelCard, batching: Batching) -> Message:
    """Describe the uint8 images that the normalisation takes."""
    side = card.preprocess.image_size
    return _image("uint8", "NHWC", (*batching.leading, side, side, 3))


def _image(dtype: str, layout: str, dims: tuple[int, ...]) -> Message:
    # The format may be said of three dimensions only.
    form: Message = (("format", Word(f"FORMAT_{layout}")),) if len(dims) == 3 else ()
    return (("name", INPUT_NAME), ("data_type", DTYPES[dtype]), *form, ("dims", list(dims)))


def logits_output(card: ModelCard, batching: Batching, labels: dict[str, bytes]) -> Message:
    """Describe what the engine gives, and which file names it, as ``label_file`` made it."""
    named: Message = (("label_filename", LABELS),) if labels else ()
    dims = output_dims((card.num_classes,), batching)
    return (("name", OUTPUT_NAME), ("data_type", DTYPES["float32"]), ("dims", dims), *named)


def output_dims(shape: tuple[int, ...], batching: Batching) -> list[int]:
    """Return an output's dimensions.

    Backends hold them against the graph's, whose batch is of any size even where the engine takes but one.
    """
    return [-1, *shape] if batching.leading else [*shape]


def label_file(card: ModelCard) -> dict[str, bytes]:
    """Make the file of labels, if there are any.

    Raises:
        SpecError: If a label has a line break, after which Triton would give every class another's label.
    """
    for index, label in enumerate(card.labels):
        if "\n" in label or "\r" in label:
            reason = f"label {index}, {label!r}, has a line break, which Triton's files of labels cannot hold"
            raise SpecError(reason, hint="export the model again with --labels in which it has none")
    return {LABELS: "".join(f"{label}\n" for label in card.labels).encode()} if card.labels else {}


def dynamic_batching(manifest: Manifest, serving: Serving, batching: Batching) -> Message:
    """Combine requests, where that can be; sizes are preferred only where a plan is tuned for several.

    So the "Recommended Configuration Process" of Triton's guide to batchers has it.
    """
    if batching.most <= 1:
        return ()
    preferred = sorted({profile.opt for profile in manifest.spec.profiles})
    fields: Message = (
        *((("preferred_batch_size", preferred),) if preferred else ()),
        *((("max_queue_delay_microseconds", serving.max_delay_us),) if serving.max_delay_us else ()),
    )
    return (("dynamic_batching", fields),)


def instances(manifest: Manifest, serving: Serving, host: Host) -> Message:
    """Say how many instances there are, and where."""
    # Without their names, Triton uses the first profile of a plan and no other.
    profiles = [str(index) for index in range(len(manifest.spec.profiles))]
    return (
        ("count", serving.instances),
        ("kind", Word("KIND_GPU" if host.on_gpu else "KIND_CPU")),
        *((("gpus", list(serving.gpus)),) if serving.gpus else ()),
        *((("profile", profiles),) if profiles else ()),
    )


def optimization(manifest: Manifest, serving: Serving, batching: Batching) -> Message:
    """Ask for CUDA graphs, or for ONNX Runtime's TensorRT provider; nothing elsewhere."""
    spec, contract = manifest.spec, manifest.card.preprocess
    if serving.cuda_graphs:
        shape = (*batching.leading, *contract.shape)
        sizes = _tuned_sizes(manifest) if not batching.leading else [0]
        specs = [
            ("graph_spec", (("batch_size", size), ("input", entry(INPUT_NAME, (("dim", list(shape)),)))))
            for size in sizes
        ]
        return (("optimization", (("cuda", (("graphs", True), *specs)),)),)
    if spec.backend == "onnxruntime-tensorrt":
        options = profile_options(find_backend(spec.backend).provider, spec.batch, contract.shape)
        told = [("parameters", entry(name, value)) for name, value in options.items()]
        accelerator: Message = (("gpu_execution_accelerator", (("name", "tensorrt"), *told)),)
        return (("optimization", (("execution_accelerators", accelerator),)),)
    return ()


def _tuned_sizes(manifest: Manifest) -> list[int]:
    """Batch sizes that the engine is tuned for, and 1, which a lone request makes."""
    spec = manifest.spec
    return sorted({1, *(profile.opt for profile in spec.profiles or (spec.batch,))})


def warmup_samples(contents: Contents, batching: Batching) -> tuple[Message, bytes]:
    """Have the first calls made while the model loads.

    Returns:
        The samples, and the data that they name: one golden image, which Triton repeats to make up a batch; as many as
        a call takes where it is not for Triton to make up batches.
    """
    contract = contents.manifest.card.preprocess
    count = max(batching.leading[0], 1) if batching.leading else 1
    images = contents.images[np.arange(count) % len(contents.images)]
    dims = [*((count,) if batching.leading else ()), *contract.shape]
    data: Message = (("data_type", DTYPES[contract.dtype]), ("dims", dims), ("input_data_file", INPUT_NAME))
    samples = tuple(
        ("model_warmup", (("name", f"batch {size}"), ("batch_size", size), ("inputs", entry(INPUT_NAME, data))))
        for size in ([1] if batching.leading else _tuned_sizes(contents.manifest))
    )
    return samples, np.ascontiguousarray(images, contract.dtype).tobytes()


def origin_parameters(contents: Contents) -> Message:
    """Say where a served model came from; Triton hands them out, and backends pass over those that are not theirs."""
    manifest = contents.manifest
    facts = {
        "bundle": manifest.name,
        "manifest_sha256": artifact.sha256_bytes(contents.manifest_json),
        "engine_sha256": manifest.files[manifest.engine],
        "weights_sha256": manifest.card.weights_sha256,
        "precision": manifest.spec.precision,
    }
    return _as_parameters({f"resnet_deploy.{name}": value for name, value in facts.items()})


def contract_parameters(card: ModelCard) -> Message:
    """Say how a client makes an input of an image."""
    contract = card.preprocess
    written = msgspec.json.encode(contract, order="sorted").decode()
    return _as_parameters({"resnet_deploy.preprocess": written, "resnet_deploy.preprocess_sha256": contract.digest})


def host_parameters(manifest: Manifest, serving: Serving, host: Host) -> Message:
    """Say what Triton's backend takes for itself."""
    told = {"PERFORMANCE_HINT": "LATENCY"} if manifest.spec.backend == "openvino" else {}
    if serving.threads:
        told[host.threads] = str(serving.threads)
    return _as_parameters(told)


def _as_parameters(told: dict[str, str]) -> Message:
    return tuple(("parameters", entry(key, (("string_value", value),))) for key, value in told.items())
