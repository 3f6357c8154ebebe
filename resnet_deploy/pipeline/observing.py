"""Calibration by parts: a model observed over one shard of a data set, and several shards put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy import artifact
from resnet_deploy.capabilities import have_modules
from resnet_deploy.errors import BackendError, SpecError
from resnet_deploy.pipeline.calibrating import Material, find_device, observe, read_images
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.specs import OBSERVATIONS_SUFFIX, CalibrationDevice

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress
    from resnet_deploy.quantize.observations import Observations

_FILES: Final = {"safetensors": "export"}  # and the extra with it
_LIBRARIES: Final = {"onnx": "export", "onnx_ir": "export", **_FILES, "onnxruntime": "cpu"}


@dataclass(frozen=True)
class Shard:
    """Part ``number``, from 1, of ``count`` parts of a data set."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``2/8``.

        Raises:
            SpecError: If the text has another form.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise SpecError(f"shard {text!r} is not of the form 2/8", hint="count from 1: 1/8 to 8/8")
        return cls(int(number), int(count))


@dataclass(frozen=True)
class ObserveInputs:
    """What to observe, and where the observations go.

    Attributes:
        model: The exported ONNX file.
        calib: Folder of real images.
        output: The file; None names it ``<model>-observed[-2-of-8].safetensors`` beside the model.
        max_images: Take at most this many images of the folder, spread evenly over it, before they are parted.
        shard: Which part of them to run.
        skip_corrupt: Leave damaged images out instead of stopping.
        calib_device: Where to run them; ``auto`` takes the GPU where PyTorch sees one.
        equalize: Observe the graph with its channels rescaled, as `build` has it unless told otherwise.
    """

    model: Path
    calib: Path
    output: Path | None = None
    max_images: int = 512
    shard: Shard = Shard()
    skip_corrupt: bool = False
    equalize: bool = True
    calib_device: CalibrationDevice = "auto"


def observe_images(inputs: ObserveInputs, progress: "Progress") -> "tuple[Observations, Path]":
    """Run an exported model over images and write what was seen of its activations; return it and where it is.

    Raises:
        UserError: If the request, the model or the images are at fault, or a library is not installed.
    """
    from resnet_deploy.datasets import find_images

    _require(_LIBRARIES, "calibrate")
    shard, device = inputs.shard, find_device(inputs.calib_device)
    part = f"-{shard.number}-of-{shard.count}" if shard.count > 1 else ""
    output = inputs.output or inputs.model.parent / f"{inputs.model.stem}-observed{part}{OBSERVATIONS_SUFFIX}"
    _require_suffix(output)
    with progress.task("reading the model and the images"):
        source = read_source(inputs.model)
        graph, _ = source.graph_to_quantize(equalize=inputs.equalize)
        images = find_images(inputs.calib).subset(inputs.max_images).shard(shard.number, shard.count)
    reader = read_images(images, len(images), source.card.preprocess, skip_corrupt=inputs.skip_corrupt)
    with artifact.atomic_file(output) as temporary:
        observations = observe(source, graph, Material(reader=reader, device=device), progress)
        with artifact.translate_os_errors(output):
            temporary.write_bytes(observations.to_bytes())
    return observations, output


def merge_files(paths: Sequence[Path], output: Path) -> "Observations":
    """Write the observations of several files as those of one run over all their images; return them.

    Raises:
        UserError: If a file holds no observations, they do not belong together, or safetensors is not installed.
    """
    _require(_FILES, "merge")
    from resnet_deploy.quantize.observations import merge_observations, read_observations

    _require_suffix(output)
    merged = merge_observations([read_observations(path) for path in paths])
    artifact.write_bytes(output, merged.to_bytes())
    return merged


def _require(libraries: Mapping[str, str], verb: str) -> None:
    found = have_modules(libraries)
    if not found.ok:
        raise BackendError(f"cannot {verb}: {found.reason}", hint=found.fix)


def _require_suffix(output: Path) -> None:
    if output.suffix != OBSERVATIONS_SUFFIX:
        hint = f"use a name such as {output.name}{OBSERVATIONS_SUFFIX}: `build --calib` knows them by it"
        raise SpecError(f"{output} does not end in {OBSERVATIONS_SUFFIX}", hint=hint)
