"""Images, noise when asked for by name, or earlier observations, to the ranges of a graph's activations."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy import artifact
from resnet_deploy.capabilities import have_modules
from resnet_deploy.driver import probe_gpu
from resnet_deploy.environment import installed_version
from resnet_deploy.errors import BackendError, DataError, ModelError, SpecError
from resnet_deploy.names import readable
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.specs import OBSERVATIONS_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from resnet_deploy.datasets import BatchReader, ImageDataset
    from resnet_deploy.pipeline.source import Source
    from resnet_deploy.protocols import Array, Progress
    from resnet_deploy.quantize.calibrate import Calibration, OutputQuality
    from resnet_deploy.quantize.observations import Observations, Observed
    from resnet_deploy.quantize.qdq import QdqForm
    from resnet_deploy.specs import CalibrationDevice, CalibrationSpec, ComputeDevice, ModelCard, Preprocess

RANDOM: Final = "random"
_RANDOM_IMAGES: Final = 32
_TRIAL_IMAGES: Final = 16  # what `auto` measures on
_BATCH: Final = 8


@dataclass(frozen=True)
class Material:
    """What INT8 or FP8 is calibrated on: images to run, or observations made earlier; noise where there is neither.

    Attributes:
        reader: Images.
        observations: What was seen of images.
        device: Where images and noise are run.
    """

    reader: "BatchReader | None" = None
    observations: "Observations | None" = None
    device: "ComputeDevice" = "cpu"

    @property
    def digest(self) -> str:
        """Digest of the images; empty for noise."""
        if self.observations is not None:
            return self.observations.dataset_digest
        return self.reader.dataset.digest if self.reader is not None else ""

    @property
    def fingerprint(self) -> list[str]:
        """What the ranges depend on, as far as it is known before anything was run."""
        if self.observations is not None:
            return [artifact.sha256_bytes(self.observations.to_bytes())]
        return [self.digest, self.device, "" if self.device == "cpu" else str(installed_version("torch"))]

    def seen_in(self, images: "ImageDataset") -> set[Path]:
        """Say which of ``images`` are among those that the ranges are chosen on."""
        if self.observations is not None:
            known, root = self.observations, images.root
            if readable(root.resolve().name) != known.dataset:
                return set()
            return {path for path in images.paths if images.name_of(path) in known.images}
        used = {path.absolute() for path in self.reader.dataset.paths} if self.reader is not None else set()
        return {path for path in images.paths if path.absolute() in used}


def find_material(
    calib: str | None,
    spec: "CalibrationSpec",
    preprocess: "Preprocess",
    device: "CalibrationDevice",
    *,
    skip_corrupt: bool,
) -> Material:
    """Find what to calibrate on: a folder with as many images as the spec asks for, observations, or noise.

    Raises:
        BackendError: If a GPU is asked for and there is none.
        DataError: If nothing is named, there is no image, or a file holds no observations.
        FileError: If it cannot be read.
        SpecError: If ``auto`` is asked for, which measures on images, and there are none.
    """
    from resnet_deploy.datasets import find_images
    from resnet_deploy.quantize.observations import read_observations

    if calib is None:
        raise DataError("INT8 and FP8 need calibration images", hint="add --calib DIR with a few hundred real images")
    if calib == RANDOM:
        return Material(device=find_device(device))
    if Path(calib).suffix == OBSERVATIONS_SUFFIX:
        if spec.method == "auto":
            raise SpecError("auto measures on images, and observations have none", hint="give --calib a folder")
        return Material(observations=read_observations(Path(calib)))
    images = find_images(Path(calib))
    reader = read_images(images, spec.max_images, preprocess, skip_corrupt=skip_corrupt)
    return Material(reader=reader, device=find_device(device))


def read_images(dataset: "ImageDataset", most: int, preprocess: "Preprocess", *, skip_corrupt: bool) -> "BatchReader":
    """Read at most ``most`` images of ``dataset``, spread evenly over it."""
    from resnet_deploy.datasets import BatchReader

    return BatchReader(dataset.subset(most), preprocess, _BATCH, skip_corrupt=skip_corrupt)


def find_device(asked: "CalibrationDevice") -> "ComputeDevice":
    """Choose where calibration runs: on the GPU where PyTorch sees one, unless the CPU is asked for.

    Raises:
        BackendError: If a GPU is asked for and there is none.
    """
    if asked == "cpu":
        return "cpu"
    reason = probe_gpu().reason
    if not reason:
        reason = have_modules({"torch": "export"}).reason
    if not reason:
        import torch

        if torch.cuda.is_available():
            return "cuda"
        reason = f"PyTorch {torch.__version__} sees none"
    if asked == "cuda":
        raise BackendError(
            f"no GPU to calibrate on: {reason}", hint="drop --calib-device, or see `resnet-deploy doctor`"
        )
    return "cpu"


def observe(source: "Source", graph: "ir.Model", material: Material, progress: "Progress") -> "Observations":
    """Observe the activations of ``graph``, or hold earlier observations against it.

    Args:
        source: The exported model.
        graph: What passes have made of it.
        material: What to run, and where.
        progress: Counts the batches.

    Raises:
        DataError: If an image is damaged, or all are.
        ModelError: If an activation is not finite, or the observations are of another model.
        BackendError: If the GPU fails.
    """
    from resnet_deploy.quantize import calibrate, observations

    with ThreadPoolExecutor(1, thread_name_prefix="digest") as other:
        identity = other.submit(_identity, source, graph)  # while the session opens, which keeps one core busy
        if material.observations is not None:
            if field := material.observations.model.difference(identity.result()):
                reason = f"the observations are of another model: {field} differs"
                raise ModelError(reason, hint="calibrate this very model")
            return material.observations
        reader, batches = material.reader, read_all(material, source.card, progress)
        if material.device == "cpu":
            histograms, count = calibrate.observe(graph, batches)
        else:
            from resnet_deploy.quantize import torch_observe

            histograms, count = torch_observe.observe(graph, batches, material.device)
    return observations.Observations(
        identity.result(),
        readable(reader.dataset.root.resolve().name) if reader else RANDOM,
        reader.dataset.image_digests if reader else {},
        count,
        reader.skipped_names if reader else (),
        histograms,
        material.device,
    )


def _identity(source: "Source", graph: "ir.Model") -> "Observed":
    from resnet_deploy.onnx_files import initializers_digest
    from resnet_deploy.quantize.observations import Observed

    return Observed(
        onnx_sha256=source.sha256,
        weights_sha256=source.card.weights_sha256,
        preprocess_sha256=source.card.preprocess.digest,
        graph_sha256=initializers_digest(graph.graph),
    )


def calibrate(
    graph: "ir.Model", observations: "Observations", spec: "CalibrationSpec", trial: "Trial | None"
) -> "Calibration":
    """Choose the range of every tensor.

    Args:
        graph: What was observed.
        observations: Of all images.
        spec: The method asked for.
        trial: What ``auto`` tries the other methods on; nothing for these.
    """
    from resnet_deploy.quantize.calibrate import CalibrationSource, calibration_from

    model = observations.model
    source = CalibrationSource(
        dataset=observations.dataset,
        dataset_sha256=observations.dataset_digest,
        images=observations.count,
        skipped=observations.skipped,
        device=observations.device,
        preprocess_sha256=model.preprocess_sha256,
        weights_sha256=model.weights_sha256,
        onnx_sha256=model.onnx_sha256,
    )
    quality = trial.run(graph, observations, spec) if trial is not None else None
    return calibration_from(observations.histograms, spec, source, quality)


@dataclass(frozen=True)
class Trial:
    """Every method's ranges tried out on a few images: what ``auto`` decides by.

    Attributes:
        form: Whose grid they are tried on.
        images: Batches of contract tensors.
    """

    form: "QdqForm"
    images: "Iterator[Array]"

    def run(self, graph: "ir.Model", observations: "Observations", spec: "CalibrationSpec") -> "OutputQuality":
        """Measure how well each method's range of each tensor serves the layers that read it."""
        from resnet_deploy.quantize.output_error import measure_output_sqnr
        from resnet_deploy.quantize.ranges import choose_ranges

        ranges = {name: choose_ranges(histogram, spec) for name, histogram in observations.histograms.items()}
        return measure_output_sqnr(graph, ranges, self.form, self.images)


def find_trial(
    spec: "CalibrationSpec", form: "QdqForm", material: Material, card: "ModelCard", progress: "Progress"
) -> Trial | None:
    """Make the trial of ``auto`` on a few of the images that it calibrates on; None for the other methods."""
    if spec.method != "auto":
        return None
    reader = material.reader
    if reader is None:
        return Trial(form, _noise(card))
    few = replace(reader, dataset=reader.dataset.subset(_TRIAL_IMAGES))
    return Trial(form, _images(few, "trying out the methods", progress))


def read_all(material: Material, card: "ModelCard", progress: "Progress") -> "Iterator[Array]":
    """Yield batches of the images, or the noise, that INT8 is calibrated on."""
    return _noise(card) if material.reader is None else _images(material.reader, "calibrating", progress)


def _images(reader: "BatchReader", what: str, progress: "Progress") -> "Iterator[Array]":
    for batch in progress.track(reader, what, len(reader)):
        yield batch.images


def _noise(card: "ModelCard") -> "Iterator[Array]":
    for seed in range(_RANDOM_IMAGES):  # image by image, because one may be large
        yield synthetic_images(card.preprocess, 1, seed=seed)
