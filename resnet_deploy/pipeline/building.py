"""An exported model to an engine bundle: calibrate, lower, compile, measure, and only then put it in place."""

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from resnet_deploy import artifact, environment
from resnet_deploy.backends import find_backend, require_precision
from resnet_deploy.bundle import (
    CALIBRATION,
    CORRECTIONS,
    GOLDEN,
    LAYERS,
    LOG,
    LOWERED,
    MANIFEST,
    OBSERVATIONS,
    SEARCH,
    TIMINGS,
    Bundle,
    HashChain,
    Manifest,
    Measured,
    open_bundle,
    write_manifest,
)
from resnet_deploy.capabilities import RTX_WITHOUT, backend_status
from resnet_deploy.errors import BackendError, BundleError, FileError, SpecError
from resnet_deploy.pipeline import golden, lowering
from resnet_deploy.pipeline.calibrating import RANDOM, Material, find_material
from resnet_deploy.pipeline.guarding import measure_pace, require_speedup
from resnet_deploy.pipeline.quantizing import Quantized, Request, quantize
from resnet_deploy.pipeline.source import Source, read_source
from resnet_deploy.runners import find_runner
from resnet_deploy.specs import BuildSpec, CalibrationDevice
from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_deploy.datasets import BatchReader
    from resnet_deploy.environment import Environment
    from resnet_deploy.protocols import Progress, Runner

_NOTHING: Final = Measured(by="", inputs="", images=0, agreement=0, sqnr_db=0, max_difference=0)
_CACHE_SCHEMA: Final = 1
_EVALUATION_BATCH: Final = 32
_OWN_FILES: Final = {
    *(MANIFEST, GOLDEN, CALIBRATION, OBSERVATIONS, CORRECTIONS, SEARCH, LOG),
    *(LOWERED, "model.onnx", "model.plan", LAYERS, TIMINGS),
}
_BUILD_LIBRARIES: Final = (
    *("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    *("numpy", "pillow", "protobuf", "ml-dtypes", "msgspec"),
)


@dataclass(frozen=True)
class BuildInputs:
    """What an engine is built from, and where it goes.

    Attributes:
        model: The exported ONNX file.
        output: Folder of the bundle; None names it ``<model>-<precision>-<backend>`` beside the model, less its .onnx.
        calib: What to calibrate INT8 or FP8 on: a folder of real images, observations of them, or ``random`` for noise.
        samples: Folder of images whose answers the bundle keeps; None takes the calibration's folder, or makes some.
        data: Folder of images to hold the accuracy against its limit on, where there is one.
        labels_file: Labels of those images, where their folder does not tell.
        skip_corrupt: Leave damaged images out instead of stopping.
        require_speedup: Least speed over the FP32 model's, measured here, below which the build fails.
        calib_device: Where images are run to calibrate: ``auto`` takes the GPU where PyTorch sees one.

    Raises:
        SpecError: If the speed-up is no positive number.
    """

    model: Path
    output: Path | None = None
    calib: str | None = None
    samples: Path | None = None
    data: Path | None = None
    labels_file: Path | None = None
    skip_corrupt: bool = False
    require_speedup: float | None = None
    calib_device: CalibrationDevice = "auto"

    def __post_init__(self) -> None:
        if self.require_speedup is not None and not 0 < self.require_speedup < math.inf:
            raise SpecError(f"a speed-up of {self.require_speedup}", hint="give --require-speedup such as 1.2")


@dataclass(frozen=True)
class Built:
    """An engine bundle, and whether it was there already."""

    bundle: Bundle
    cache_hit: bool


def build(inputs: BuildInputs, spec: BuildSpec, progress: "Progress") -> Built:
    """Build an engine bundle, or find that it is there already.

    Args:
        inputs: Model, images and output.
        spec: What the engine is to be.
        progress: Shows what takes longer than a moment.

    Raises:
        UserError: If the request, the model or the images are at fault, or the backend is missing.
        BuildError: If the backend's compiler failed.
        AccuracyError: If the engine's answers are not numbers, or lose more than they may.
        SpeedError: If the engine is not as much faster than FP32 as it must be.
    """
    require_buildable(spec)
    runnable = backend_status(find_backend(spec.backend)).run
    if inputs.require_speedup is not None and not runnable.ok:
        reason = f"{spec.backend} cannot run here, so that no speed-up can be measured: {runnable.reason}"
        raise BackendError(reason, hint="drop --require-speedup, or build where the engine is to run")
    model = inputs.model.name.removesuffix(".onnx")  # not its stem: m.v1 and m.v2 are two models
    output = inputs.output or inputs.model.parent / f"{model}-{spec.precision}-{spec.backend}"
    skip = inputs.skip_corrupt
    with progress.task("reading the model and the images"):
        source = read_source(inputs.model)
        contract = source.card.preprocess
        material = Material()
        if spec.calibration is not None:
            where = inputs.calib_device
            material = find_material(inputs.calib, spec.calibration, contract, where, skip_corrupt=skip)
        folder = inputs.samples or (material.reader.dataset.root if material.reader is not None else None)
        samples = golden.find_samples(folder, material, contract, skip_corrupt=skip)
        data = _find_data(inputs, spec, source)
        images: list[str | bool] = [
            inputs.calib == RANDOM,
            skip,
            *material.fingerprint,
            samples.digest,
            *_identify(data),
        ]
        here = environment.collect()
        key = _cache_key(source, spec, images, here)
        # What a search measures does not depend on the limit: another limit can go on from it.
        unlimited = _cache_key(source, msgspec.structs.replace(spec, max_drop=None), images, here)
        existing = _cached(output, key)
    if existing is not None:
        require_speedup(existing.manifest.measured.speedup, inputs.require_speedup)
        return Built(existing, cache_hit=True)
    # The folder first: where there is no writing, nobody should wait for a calibration to learn it.
    with artifact.atomic_folder(output) as folder, artifact.translate_os_errors(output):
        if spec.calibration is not None:
            request = Request(source, spec, material, data, here.cpu)
            notes = output.resolve().with_name(f"{output.resolve().name}.search")
            quantized = quantize(request, notes, unlimited, progress)
        else:
            with progress.task(f"lowering to {spec.precision}"):
                lowered = lowering.lower(lowering.Recipe(source.model, spec, here.cpu))
            quantized = Quantized(lowered, "", {})
        job = _Job(source, spec, samples, quantized, here, key, inputs.require_speedup)
        _fill(folder, output.resolve().name, job, progress)
    return Built(open_bundle(output), cache_hit=False)


@dataclass(frozen=True)
class _Job:
    source: Source
    spec: BuildSpec
    samples: golden.Samples
    quantized: Quantized
    here: "Environment"
    key: str
    require_speedup: float | None


def _fill(folder: Path, name: str, job: _Job, progress: "Progress") -> None:
    """Write every file of a bundle into ``folder``."""
    draft = _compile(folder, name, job, progress)
    bundle, notes = Bundle(folder, draft), draft.notes
    graph = artifact.read_bytes(folder / (LOWERED if LOWERED in draft.files else draft.engine))
    with _opened(bundle, job.here) as runner:
        with progress.task("recording answers"):
            answers = golden.answer(runner, graph, job.spec, job.source.card, job.samples)
            golden.write(folder / GOLDEN, answers)
            measured = golden.compare(answers, job.source.data, job.samples.kind)
        if runner is not None:
            with progress.task("timing"):
                pace = measure_pace(runner, bundle, job.source, answers.images)
            measured = msgspec.structs.replace(measured, latency_s=pace.latency_s, speedup=pace.speedup)
            notes = (*pace.notes, *notes)
    notes = (*notes, *answers.notes)
    require_speedup(measured.speedup, job.require_speedup)
    write_manifest(folder, msgspec.structs.replace(draft, files=_digests(folder), measured=measured, notes=notes))


def _compile(folder: Path, name: str, job: _Job, progress: "Progress") -> Manifest:
    """Write the engine and what it was made from; return the manifest as far as it is known before anything ran."""
    import onnx

    from resnet_deploy.builders import find_builder
    from resnet_deploy.onnx_files import bytes_from_onnx, check_onnx

    lowered = job.quantized.lowered
    data = bytes_from_onnx(lowered.model)
    if data != job.source.data:  # which was checked when it was read
        check_onnx(data, name=f"the graph lowered to {job.spec.precision}")
    engine = find_builder(job.spec.backend)(data, job.spec, folder, progress)
    if engine.file != "model.onnx":
        (folder / LOWERED).write_bytes(data)
    for kept, content in job.quantized.files.items():
        (folder / kept).write_bytes(content)
    (folder / LOG).write_text("".join(f"{line}\n" for line in (*lowered.notes, *engine.log)), encoding="utf-8")
    files = _digests(folder)
    chain = HashChain(
        weights=job.source.card.weights_sha256,
        onnx=job.source.sha256,
        images=job.quantized.images,
        calibration=files.get(CALIBRATION, ""),
        lowered=artifact.sha256_bytes(data),
        engine=files[engine.file],
    )
    return Manifest(
        name=name,
        card=job.source.card,
        spec=job.spec,
        engine=engine.file,
        files=files,
        chain=chain,
        cache_key=job.key,
        requires=msgspec.structs.replace(engine.requires, int8_dot_product=lowered.int8_dot_product),
        toolchain={"resnet-deploy": __version__, "onnx": onnx.__version__, **engine.toolchain},
        environment=job.here,
        measured=_NOTHING,
        notes=(*lowered.notes, *engine.notes),
    )


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: artifact.sha256_file(path) for path in sorted(folder.iterdir())}


@contextlib.contextmanager
def _opened(bundle: Bundle, here: "Environment") -> "Iterator[Runner | None]":
    """Open an engine that was just built, if it can run on this machine."""
    from resnet_deploy.compatibility import check_fits

    name, runner = bundle.manifest.spec.backend, None
    with contextlib.suppress(BundleError):  # compiled for other GPUs than this one
        check_fits(bundle, here)
        if backend_status(find_backend(name), here).run.ok:
            runner = find_runner(name)(bundle, environment.compute_threads())
    try:
        yield runner
    finally:
        if runner is not None:
            runner.close()


def _find_data(inputs: BuildInputs, spec: BuildSpec, source: Source) -> "BatchReader | None":
    """Find the images that a limit of accuracy is held against.

    Raises:
        DataError, FileError: If there are none, or their labels do not fit the model.
        SpecError: If there is a limit and no data, or data and no limit.
    """
    from resnet_deploy.datasets import BatchReader, find_dataset

    if (inputs.data is None) != (spec.max_drop is None):
        raise SpecError("--max-drop and --data go together", hint="say how much may be lost, and on which images")
    if inputs.data is None:
        if inputs.labels_file is not None:
            raise SpecError("--labels-file has no effect without --data", hint="add --data DIR, or drop it")
        return None
    dataset = find_dataset(inputs.data, source.card, labels_file=inputs.labels_file)
    return BatchReader(dataset, source.card.preprocess, _EVALUATION_BATCH, skip_corrupt=inputs.skip_corrupt)


def _identify(data: "BatchReader | None") -> list[str]:
    """What of the data a search depends on: images and labels."""
    if data is None:
        return []
    return [data.dataset.digest, artifact.sha256_bytes(json.dumps(data.dataset.labels).encode())]


def require_buildable(spec: BuildSpec) -> None:
    """Refuse early, with the fix, what this installation cannot build.

    Raises:
        BackendError: If the backend is not here, or lacks the precision, or a target does.
    """
    backend = find_backend(spec.backend)
    status = backend_status(backend).build
    if not status.ok:
        hint = status.fix or "choose --backend onnxruntime, tensorrt or tensorrt-rtx"
        raise BackendError(f"cannot build for {spec.backend}: {status.reason}", hint=hint)
    require_precision(spec.backend, spec.precision)
    lacking = [target for target in spec.trt.targets if target in RTX_WITHOUT.get(spec.precision, ())]
    if lacking:
        what = f"{spec.backend} compiles no {spec.precision.upper()} for compute capability {lacking[0]}"
        raise BackendError(what, hint="name others with --target, or choose another precision")


def _cache_key(source: Source, spec: BuildSpec, images: list[str | bool], here: "Environment") -> str:
    """Digest everything that a build depends on; a failed probe is part of it by its reason."""
    parts = {
        "schema": _CACHE_SCHEMA,
        "onnx": source.sha256,
        # Not as builtins, which leave out what is the default's own object, and not what equals it, as after pickling.
        "spec": repr(spec),
        "images": images,
        "package": environment.package_digest(),
        "python": here.python,
        "libraries": {name: environment.installed_version(name) for name in _BUILD_LIBRARIES},
        "cpu": {"machine": here.machine, "int8_dot_product": here.cpu.has_vnni},
        "gpu": msgspec.to_builtins(here.gpu),
    }
    return artifact.sha256_bytes(json.dumps(parts, sort_keys=True).encode())


def _cached(output: Path, key: str) -> Bundle | None:
    """Return the bundle at ``output`` if it is whole and was built from just this; refuse to replace other folders."""
    if not artifact.exists(output):
        return None
    if not artifact.is_file(output / MANIFEST):
        raise FileError(f"{output} exists and is not an engine bundle", hint="choose another place with -o")
    try:
        bundle = open_bundle(output)
        bundle.verify_files()
        if bundle.manifest.cache_key == key:
            artifact.remove_abandoned(output)  # of a build that was killed when this one was in its place
            return bundle
    except BundleError:
        pass  # damaged: built anew in its place
    # Web applications have a manifest.json too, and people put notes beside an engine: neither is ours to delete.
    strangers = sorted({path.name for path in artifact.list_folder(output)} - _OWN_FILES)
    if strangers:
        raise FileError(
            f"{output} would be replaced, and holds {strangers[0]}, which no build made",
            hint="move it away, or choose another place with -o",
        )
    return None
