"""The parity ladder: PyTorch, the exported model, the lowered graph, the engine, each held against those above."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from resnet_deploy import artifact, environment
from resnet_deploy.batching import infer
from resnet_deploy.bundle import CORRECTIONS, LOWERED, Bundle, open_bundle
from resnet_deploy.capabilities import have_modules
from resnet_deploy.compatibility import check_fits
from resnet_deploy.errors import BackendError, BundleError, DataError, DeviceError, FileError, ModelError, SpecError
from resnet_deploy.fleet import folders_beside
from resnet_deploy.names import readable
from resnet_deploy.parity import Ladder, Limits, Rung, Step, Tally
from resnet_deploy.pipeline.references import find_reference, open_reference
from resnet_deploy.pipeline.replaying import read_golden
from resnet_deploy.pipeline.source import Source, read_source
from resnet_deploy.runners import find_runner
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, BatchRange, BuildSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from resnet_deploy.datasets import Batch, BatchReader
    from resnet_deploy.protocols import Array, Progress

DEFAULT_IMAGES: Final = 256
_LIBRARIES: Final = {"onnx": "export", "onnx_ir": "export", "onnxruntime": "cpu"}  # and the extras with them
_BATCH: Final = 8
_STEP_IMAGES: Final = 8

Answer = Callable[["Array"], "Array"]


@dataclass(frozen=True)
class VerifyInputs:
    """What a ladder is made of.

    Attributes:
        engine: The bundle.
        data: Folder of images; None takes the few that the bundle keeps.
        labels_file: Labels of the images, where their folder does not tell.
        images: Most images to take, spread evenly over ``data``.
        model: The exported model; None looks for it beside the engine.
        reference: Weights to run in PyTorch; None looks for them beside the engine.
        pytorch: Whether PyTorch is the first rung; the exported model is otherwise.
        skip_corrupt: Leave damaged images out instead of stopping.
        limits: What the rungs must keep.

    Raises:
        SpecError: If something is asked for that would have no effect, or there is no image to take.
    """

    engine: Path
    data: Path | None = None
    labels_file: Path | None = None
    images: int = DEFAULT_IMAGES
    model: Path | None = None
    reference: Path | None = None
    pytorch: bool = True
    skip_corrupt: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.data is None:
            for name, given in (
                ("--labels-file", self.labels_file is not None),
                ("--skip-corrupt", self.skip_corrupt),
                ("--max-drop", self.limits.max_drop is not None),
            ):
                if given:
                    raise SpecError(f"{name} has no effect without --data", hint="add --data DIR, or drop it")
        if self.reference is not None and not self.pytorch:
            raise SpecError("--reference has no effect with --no-pytorch", hint="drop one of the two")
        if self.images < 1:
            raise SpecError(f"{self.images} images", hint="verify on at least one image")


def verify(inputs: VerifyInputs, *, threads: int, progress: "Progress") -> Ladder:
    """Walk the ladder: logits of every rung on the images, then every layer of the lowered graph on a few of them.

    Raises:
        UserError: If the engine was altered, the model or the weights are others than its own, or the images are at
            fault. A rung that cannot run here is none: it is left out, with the reason.
        BackendError: If ONNX or ONNX Runtime is not installed.
        BuildError: If ONNX Runtime refuses a graph.
    """
    libraries = have_modules(_LIBRARIES)
    if not libraries.ok:
        raise BackendError(f"cannot run graphs: {libraries.reason}", hint=libraries.fix)
    path = inputs.engine if inputs.engine.name not in ("", "..") else inputs.engine.resolve()
    bundle = open_bundle(path)
    samples = _Samples(inputs, bundle)
    threads = threads or environment.compute_threads()
    with progress.task("reading the engine and its model"):
        bundle.verify_files()
        source = find_source(bundle, inputs.model)
        lowered = read_lowered(bundle)
    with ExitStack() as stack:
        with progress.task("opening the rungs"):
            forms, not_run = _open_forms(inputs, bundle, (source.data, lowered), threads, stack)
        rungs = _answer(forms, samples, progress)
    spec = bundle.manifest.spec
    steps = _steps(bundle, (source, lowered), samples.kept, progress)
    return Ladder(
        engine=str(path),
        title=f"{bundle.manifest.card.architecture} {spec.precision} for {spec.backend}",
        inputs=samples.description(),
        caveats=samples.caveats(),
        rungs=(*rungs, *not_run),
        steps=steps,
        step_images=len(samples.kept),
    )


def compared_graph(source: Source, spec: BuildSpec) -> "ir.Model":
    """Return the FP32 graph that was lowered, which the lowered one is held against tensor by tensor.

    Where channels were rescaled for INT8, tensors differ from the exported model's, and logits do not.
    """
    if spec.calibration is None:
        return source.model
    graph, _ = source.graph_to_quantize(equalize=spec.calibration.equalize)
    return graph


def find_source(bundle: Bundle, model: Path | None) -> Source:
    """Read the exported model that a bundle was built from: ``model``, or the one beside the bundle with its digest.

    Raises:
        FileError: If it is not there.
        ModelError: If ``model`` is another one, or damaged.
    """
    wanted = bundle.manifest.chain.onnx
    if model is not None:
        source = read_source(model)
        if source.sha256 != wanted:
            raise ModelError(
                f"{model} is not the model that {bundle.path} was built from: its SHA-256 differs from chain.onnx",
                hint="name the model that it was built from, or build the engine again",
            )
        return source
    for path in itertools.chain.from_iterable(map(artifact.list_folder, folders_beside(bundle))):
        if path.suffix == ".onnx" and artifact.is_file(path) and artifact.sha256_file(path) == wanted:
            return read_source(path)
    raise FileError(
        f"the exported model of {bundle.path} is not beside it",
        hint="name it with --model PATH, or build the engine again from the model that is there",
    )


def read_lowered(bundle: Bundle) -> bytes:
    """Read the graph that a bundle's engine was compiled from, or is.

    Raises:
        BundleError: If the bundle has none.
    """
    name = LOWERED if LOWERED in bundle.manifest.files else bundle.manifest.engine
    if not name.endswith(".onnx"):
        raise BundleError(f"{bundle.path} has no {LOWERED}", hint="build the engine again with `resnet-deploy build`")
    return artifact.read_bytes(bundle.path / name)


def _open_forms(
    inputs: VerifyInputs, bundle: Bundle, graphs: tuple[bytes, bytes], threads: int, stack: ExitStack
) -> tuple[dict[str, Answer], list[Rung]]:
    """Open every form of the model that can run here, by name; say why the engine cannot where it cannot."""
    from resnet_deploy.simulation import simulated

    manifest = bundle.manifest
    forms: dict[str, Answer] = {}
    if inputs.pytorch:
        path = inputs.reference or find_reference(folders_beside(bundle), manifest.card)
        reference = open_reference(path, manifest.card, BatchRange(1, 1, _BATCH), threads)
        stack.callback(reference.close)
        forms["PyTorch, FP32"] = partial(infer, reference)
    exported, lowered = graphs
    forms["exported ONNX, FP32"] = _as_written(exported, threads)
    runnable, _ = simulated(lowered, name="the lowered graph")
    forms[f"lowered to {manifest.spec.precision}, simulated"] = _as_written(runnable, threads)
    engine = f"{manifest.spec.backend} engine"
    try:
        check_fits(bundle, environment.collect())
        runner = find_runner(manifest.spec.backend)(bundle, threads)
    except (BackendError, BundleError, DeviceError) as error:
        return forms, [Rung(engine, not_run=error.message)]
    stack.callback(runner.close)
    forms[engine] = partial(infer, runner)
    return forms, []


def _as_written(data: bytes, threads: int) -> Answer:
    """Open a graph to run node by node as it is written."""
    from resnet_deploy.ort_session import open_session, translate_refusals

    session: Any = open_session(data, threads=threads, as_written=True)

    def answer(images: "Array") -> "Array":
        with translate_refusals():
            logits: Array = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return logits

    return answer


def _answer(forms: dict[str, Answer], samples: "_Samples", progress: "Progress") -> list[Rung]:
    tallies = [Tally(name) for name in forms]
    for batch in samples.batches(progress):
        logits = [answer(batch.images) for answer in forms.values()]
        for tally, own, above in zip(tallies, logits, [logits[0], *logits], strict=False):
            tally.add(own, logits[0], above, batch.labels)
    if not tallies[0].images:
        raise DataError("every image is damaged", hint="give --data sound images")
    return [tally.rung(is_first=tally is tallies[0]) for tally in tallies]


def _steps(
    bundle: Bundle, graphs: "tuple[Source, bytes]", images: "Sequence[Array]", progress: "Progress"
) -> tuple[Step, ...]:
    from resnet_deploy.onnx_files import onnx_from_bytes
    from resnet_deploy.quantize.bias import correct_biases, read_corrections
    from resnet_deploy.quantize.divergence import compare_steps

    source, data = graphs
    lowered = onnx_from_bytes(data, name="the lowered graph")
    reference = compared_graph(source, bundle.manifest.spec)
    corrected = reference
    if CORRECTIONS in bundle.manifest.files:
        corrected = correct_biases(reference, read_corrections(bundle.path / CORRECTIONS))
    counted = progress.track(images, "comparing layers", len(images))
    return compare_steps(reference, lowered, counted, corrected=corrected)


class _Samples:
    """The images of a ladder, and the few of them that the layers are compared on.

    Attributes:
        kept: Those few, spread evenly over all, (1, *contract shape) each; filled by a pass over ``batches``.
    """

    def __init__(self, inputs: VerifyInputs, bundle: Bundle) -> None:
        from resnet_deploy import datasets

        self.kept: list[Array] = []
        self._bundle = bundle
        self._reader: BatchReader | None = None
        if inputs.data is None:
            return
        card = bundle.manifest.card
        dataset = datasets.find_dataset(inputs.data, card, labels_file=inputs.labels_file).subset(inputs.images)
        if inputs.limits.max_drop is not None and dataset.labels is None:
            raise DataError(f"{inputs.data} has no labels to hold --max-drop to", hint="add --labels-file FILE")
        self._reader = datasets.BatchReader(dataset, card.preprocess, _BATCH, skip_corrupt=inputs.skip_corrupt)

    def batches(self, progress: "Progress") -> "Iterator[Batch]":
        """Yield all images in batches."""
        if self._reader is None:
            images, count, batches = "those of the bundle", 1, iter([self._golden()])
        else:
            images, count, batches = "all rungs", len(self._reader), iter(self._reader)
        total = len(self._reader.dataset) if self._reader is not None else _STEP_IMAGES
        wanted = {position * total // _STEP_IMAGES for position in range(_STEP_IMAGES)}
        for batch in progress.track(batches, f"answering: {images}", count):
            chosen = [row for row, index in enumerate(batch.indices) if index in wanted]
            self.kept += [batch.images[row : row + 1].copy() for row in chosen or ([] if self.kept else [0])]
            yield batch

    def description(self) -> str:
        """Say what the images are."""
        if self._reader is None:
            return f"{len(self.kept)} {self._bundle.manifest.measured.inputs}, kept in the bundle"
        dataset = self._reader.dataset
        count = len(dataset) - len(self._reader.skipped)
        return f"{count} image{'s' if count != 1 else ''} of {readable(dataset.root.name or dataset.root)}"

    def caveats(self) -> tuple[str, ...]:
        """Say what a reader of the figures must know."""
        if self._reader is None:
            return ("so few images, without labels, prove numerics and not accuracy: for that, add --data DIR",)
        found = []
        dataset, skipped = self._reader.dataset, self._reader.skipped_names
        if dataset.labels is None:
            found.append("the images have no labels: agreement is no accuracy")
        if dataset.labels_note:
            found.append(dataset.labels_note)
        if skipped:
            more = ", ..." if len(skipped) > 3 else ""
            found.append(f"damaged images left out: {len(skipped)} ({', '.join(skipped[:3])}{more})")
        return tuple(found)

    def _golden(self) -> "Batch":
        from resnet_deploy.datasets import Batch

        images, _ = read_golden(self._bundle)
        return Batch(images, None, np.arange(len(images)))
