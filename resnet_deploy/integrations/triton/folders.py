"""The models of a repository that serve an engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from resnet_deploy import artifact
from resnet_deploy.bundle import MANIFEST
from resnet_deploy.errors import BackendError
from resnet_deploy.integrations.triton.config import (
    DTYPES,
    WARMUP,
    Contents,
    contract_parameters,
    dynamic_batching,
    host_parameters,
    instances,
    label_file,
    logits_output,
    newest_version,
    optimization,
    origin_parameters,
    output_dims,
    pixel_input,
    tensor_input,
    warmup_samples,
)
from resnet_deploy.integrations.triton.hosts import (
    ONNX,
    Batching,
    Host,
    Serving,
    express_batching,
    require_effect,
    require_host,
)
from resnet_deploy.integrations.triton.text_proto import Message, Word, entry, text_from_message
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard

CONFIG: Final = "config.pbtxt"
INTERFACE: Final = "interface.json"
PREPROCESS: Final = "_preprocess"
ENSEMBLE: Final = "_ensemble"
NORMALIZED: Final = "normalized"
_HEADER: Final = b"# Made by resnet-deploy. SHA-256 of what follows: "


@dataclass(frozen=True)
class ModelFolder:
    """A model of a repository.

    Attributes:
        name: Of the folder, and of the model in it.
        config: ``config.pbtxt``, sealed.
        files: What lies beside it, by path.
        version_files: What lies in the version's folder, by name: bytes, or a file to copy. ``interface.json`` is
            always among them.
    """

    name: str
    config: bytes
    files: dict[str, bytes]
    version_files: dict[str, bytes | Path]


def model_folders(contents: Contents, serving: Serving) -> list[ModelFolder]:
    """Make the models that serve an engine, each after those that it refers to.

    Raises:
        BackendError: If Triton has no backend for the engine, or ONNX is missing to write the normalisation with.
        SpecError: If something was asked for that the engine, or Triton, cannot do.
    """
    manifest = contents.manifest
    host = require_host(manifest)
    require_effect(manifest, host, serving)
    engine = _engine_folder(contents, serving, host)
    if manifest.card.preprocess.dtype == "uint8":
        return [engine]
    batching = express_batching(host, manifest.spec.batch)
    card = manifest.card
    return [_preprocess_folder(card, serving, batching), engine, _ensemble_folder(card, serving, batching)]


def seal(config: str) -> bytes:
    """Mark a configuration as ours, so that one edited by hand can be told."""
    data = config.encode()
    return _HEADER + artifact.sha256_bytes(data).encode() + b"\n" + data


def origin(config: bytes) -> Literal["ours", "edited", "foreign"]:
    """Say whether a configuration is as ``seal`` left it, was edited since, or was never ours."""
    header, _, rest = config.partition(b"\n")
    if not header.startswith(_HEADER):
        return "foreign"
    return "ours" if header.removeprefix(_HEADER).decode(errors="replace") == artifact.sha256_bytes(rest) else "edited"


def _engine_folder(contents: Contents, serving: Serving, host: Host) -> ModelFolder:
    manifest, card = contents.manifest, contents.manifest.card
    batching = express_batching(host, manifest.spec.batch)
    samples, images = warmup_samples(contents, batching)
    labels = label_file(card)
    config: Message = (
        ("name", serving.name),
        ("backend", host.backend),
        ("default_model_filename", host.file),
        ("max_batch_size", batching.most),
        newest_version(),
        ("input", tensor_input(card, batching)),
        ("output", logits_output(card, batching, labels)),
        *dynamic_batching(manifest, serving, batching),
        ("instance_group", instances(manifest, serving, host)),
        *optimization(manifest, serving, batching),
        *samples,
        *origin_parameters(contents),
        *contract_parameters(card),
        *host_parameters(manifest, serving, host),
    )
    files = {f"{WARMUP}/{INPUT_NAME}": images} | labels
    version: dict[str, bytes | Path] = {
        host.file: contents.engine,
        MANIFEST: contents.manifest_json,
        INTERFACE: _interface("engine", card, batching),
    }
    return ModelFolder(serving.name, seal(text_from_message(config)), files, version)


def _preprocess_folder(card: ModelCard, serving: Serving, batching: Batching) -> ModelFolder:
    """Make the model that normalises; on the CPU, where the requests arrive."""
    try:
        from resnet_deploy.integrations.triton.normalization import normalization_graph
    except ImportError as error:
        hint = 'install it with `pip install "resnet-deploy[export]"`'
        raise BackendError(
            f"the normalisation is an ONNX graph, which takes ONNX to write: {error}", hint=hint
        ) from None
    dims = output_dims(card.preprocess.shape, batching)
    name = serving.name + PREPROCESS
    config: Message = (
        ("name", name),
        ("backend", "onnxruntime"),
        ("default_model_filename", ONNX),
        ("max_batch_size", batching.most),
        newest_version(),
        ("input", pixel_input(card, batching)),
        ("output", (("name", NORMALIZED), ("data_type", DTYPES["float32"]), ("dims", dims))),
        ("instance_group", (("count", serving.instances), ("kind", Word("KIND_CPU")))),
        *contract_parameters(card),
    )
    version: dict[str, bytes | Path] = {
        ONNX: normalization_graph(card.preprocess),
        INTERFACE: _interface("normalization", card, batching),
    }
    return ModelFolder(name, seal(text_from_message(config)), {}, version)


def _ensemble_folder(card: ModelCard, serving: Serving, batching: Batching) -> ModelFolder:
    labels, name = label_file(card), serving.name + ENSEMBLE
    steps: Message = (
        ("step", _step(serving.name + PREPROCESS, (INPUT_NAME, INPUT_NAME), (NORMALIZED, NORMALIZED))),
        ("step", _step(serving.name, (INPUT_NAME, NORMALIZED), (OUTPUT_NAME, OUTPUT_NAME))),
    )
    config: Message = (
        ("name", name),
        ("platform", "ensemble"),
        ("max_batch_size", batching.most),
        newest_version(),
        ("input", pixel_input(card, batching)),
        ("output", logits_output(card, batching, labels)),
        ("ensemble_scheduling", steps),
        *contract_parameters(card),
    )
    # An ensemble has no file of its own, but a version must have a folder.
    version: dict[str, bytes | Path] = {INTERFACE: _interface("ensemble", card, batching)}
    return ModelFolder(name, seal(text_from_message(config)), labels, version)


def _interface(kind: str, card: ModelCard, batching: Batching) -> bytes:
    """Say what every version of a model has in common, since clients and ensembles rest on it."""
    first = "combined" if not batching.leading else "free" if batching.leading[0] < 0 else batching.leading[0]
    fields: dict[str, object] = {"kind": kind, "preprocess": card.preprocess, "batch": first}
    if kind != "normalization":
        fields |= {"classes": card.num_classes, "labels": card.labels}
    return msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n"


def _step(model: str, given: tuple[str, str], taken: tuple[str, str]) -> Message:
    """Make a step; pairs are a tensor of the model and the ensemble's tensor for it."""
    return (
        ("model_name", model),
        ("model_version", -1),  # the newest
        ("input_map", entry(*given)),
        ("output_map", entry(*taken)),
    )
