"""What one would get elsewhere: the same model run, and quantized, by the libraries that a user knows already.

Peers take part in the turns of a benchmark like engines. What a peer needs first, such as a model quantized by its own
tool, is made in a temporary folder, and is gone with the peer.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resnet_deploy import artifact, environment
from resnet_deploy.bench.records import NotRun
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.bundle import Bundle
from resnet_deploy.capabilities import have_modules
from resnet_deploy.errors import BackendError, BuildError, DataError, FileError, SpecError
from resnet_deploy.fleet import folders_beside
from resnet_deploy.pipeline.calibrating import RANDOM, Material, find_material, read_all
from resnet_deploy.pipeline.entrants import Opener, open_entrant
from resnet_deploy.pipeline.lineup import EVALUATION_BATCH, BenchInputs, Calibrated, Candidate, Lineup
from resnet_deploy.pipeline.references import find_reference
from resnet_deploy.specs import BatchRange, CalibrationSpec, ModelCard, Precision

if TYPE_CHECKING:
    from resnet_deploy.protocols import Progress, Runner

ALL: Final = "all"


@dataclass(frozen=True)
class _Kitchen:
    """What peers are made from.

    Attributes:
        model: The exported FP32 model.
        weights: Its PyTorch weights; None where no peer needs them.
        images: Prepared images to calibrate on, as NumPy saves them; None where no peer needs them.
        card: What the model is.
        folder: For models that tools make of it.
        spec: How peers are to be called.
        calibrated_on: Where the images come from; None where no peer needs them, or they are noise.
    """

    model: Path
    weights: Path | None
    images: Path | None
    card: ModelCard
    folder: Path
    spec: BenchSpec
    calibrated_on: Calibrated | None

    @property
    def range(self) -> BatchRange:
        """Batch sizes that a peer must take: those measured, and what a data set is answered in."""
        return BatchRange(1, 1, max(*self.spec.batches, EVALUATION_BATCH))


@dataclass(frozen=True)
class _Made:
    """A peer ready to be opened, and the files that it is opened from."""

    opener: Opener
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Peer:
    """One row of the table of peers.

    Attributes:
        name: What ``--peers`` takes and tables show.
        backend: The library that runs it, by its row in the table of backends.
        precision: What it computes in.
        settings: What is called, and how.
        extras: Modules that it needs, with the extras that install them.
        make: Makes of the model what it runs.
        calibrates: Whether it is quantized, on images, by a tool that is not ours.
        from_weights: Whether it is made of the PyTorch weights rather than of the exported model.
    """

    name: str
    backend: str
    precision: Precision
    settings: str
    extras: Mapping[str, str]
    make: Callable[[_Kitchen], _Made] = field(repr=False)
    calibrates: bool = False
    from_weights: bool = False


def _make_torch(kitchen: _Kitchen, *, channels_last: bool, compiled: bool = False) -> _Made:
    from resnet_deploy.models import load_model
    from resnet_deploy.runners.torch_peer import Setup, TorchPeer

    assert kitchen.weights is not None
    weights, batches = kitchen.weights, kitchen.spec.batches
    setup = Setup(channels_last=channels_last, compiled=compiled)
    # Every batch size is compiled for: one that is only answered in, and not measured, is not worth a minute.
    sizes = BatchRange(1, 1, max(batches)) if compiled else kitchen.range

    def opener(threads: int, count: int, **_: bool) -> "Sequence[Runner]":
        assert count == 1  # threads are the whole process's: callers could not part them
        network = load_model(kitchen.card.architecture, str(weights)).module
        runner = TorchPeer(network, kitchen.card, sizes, setup, threads=threads)
        if compiled:
            runner.prepare(batches)
        return (runner,)

    return _Made(opener, (weights,))


def _make_onnxruntime(kitchen: _Kitchen) -> _Made:
    from resnet_deploy.runners.ort_plain import PlainOrtRunner

    def opener(threads: int, count: int, **_: bool) -> "Sequence[Runner]":
        return [PlainOrtRunner(kitchen.model, kitchen.card, kitchen.range, threads=threads) for _ in range(count)]

    return _Made(opener, (kitchen.model,))


def _make_openvino(kitchen: _Kitchen) -> _Made:
    from resnet_deploy.runners.openvino import OpenVinoRunner

    def opener(threads: int, count: int, **_: bool) -> "Sequence[Runner]":
        total = threads * count
        first = OpenVinoRunner(kitchen.model, kitchen.card, kitchen.range, threads=total, requests=count)
        return first.and_others(count - 1)

    own_format = kitchen.model.suffix == ".xml"
    return _Made(opener, (kitchen.model, kitchen.model.with_suffix(".bin")) if own_format else (kitchen.model,))


def _make_quantized(kitchen: _Kitchen, *, tool: str, suffix: str, then: Callable[[_Kitchen], _Made]) -> _Made:
    from resnet_deploy.quantize.other_tools import quantize_apart

    assert kitchen.images is not None
    quantized = kitchen.folder / f"{tool}{suffix}"
    quantize_apart(tool, kitchen.model, kitchen.images, quantized)
    return then(replace(kitchen, model=quantized))


_TORCH: Final = {"torch": "export", "safetensors": "export"}
_PLAIN: Final = 'InferenceSession(model), default options but for the threads, run(None, {"images": ...})'
_COMPILED: Final = 'compile_model(model, "CPU"), PERFORMANCE_HINT LATENCY as by default, INFERENCE_PRECISION_HINT f32'
PEERS: Final = (
    Peer(
        "torch-eager",
        "torch",
        "fp32",
        "eager in inference mode, contiguous",
        _TORCH,
        partial(_make_torch, channels_last=False),
        from_weights=True,
    ),
    Peer(
        "torch-channels-last",
        "torch",
        "fp32",
        "eager in inference mode, channels last: what the reference is, a second time",
        _TORCH,
        partial(_make_torch, channels_last=True),
        from_weights=True,
    ),
    Peer(
        "torch-compile",
        "torch",
        "fp32",
        "torch.compile(model, dynamic=False), compiled for each batch size; in inference mode, channels last",
        _TORCH,
        partial(_make_torch, channels_last=True, compiled=True),
        from_weights=True,
    ),
    Peer("onnxruntime-plain", "onnxruntime", "fp32", _PLAIN, {"onnxruntime": "cpu"}, _make_onnxruntime),
    Peer(
        "onnxruntime-int8",
        "onnxruntime",
        "int8",
        f"quant_pre_process, quantize_static(QDQ, per channel, U8S8, MinMax), 7-bit weights without VNNI; {_PLAIN}",
        {"onnxruntime": "cpu", "onnx": "export"},
        partial(_make_quantized, tool="onnxruntime", suffix=".onnx", then=_make_onnxruntime),
        calibrates=True,
    ),
    Peer("openvino-fp32", "openvino", "fp32", _COMPILED, {"openvino": "openvino"}, _make_openvino),
    Peer(
        "openvino-nncf",
        "openvino",
        "int8",
        f"nncf.quantize(model, images) with its defaults, save_model; {_COMPILED}",
        {"openvino": "openvino", "nncf": "peers"},
        partial(_make_quantized, tool="nncf", suffix=".xml", then=_make_openvino),
        calibrates=True,
    ),
)


def choose_peers(inputs: BenchInputs) -> tuple[Peer, ...]:
    """Look up the peers that are asked for, in the order of the table.

    Raises:
        SpecError: If one is unknown or named twice, or images to calibrate on are given where no peer does, or not
            where one does.
    """
    known = [peer.name for peer in PEERS]
    wanted = known if inputs.peers == (ALL,) else list(inputs.peers)
    for name in wanted:
        if name not in known:
            raise SpecError(f"unknown peer {name!r}", hint=f"choose {ALL}, or of: {', '.join(known)}")
        if wanted.count(name) > 1:
            raise SpecError(f"the peer {name} is named twice", hint="name each once")
    chosen = tuple(peer for peer in PEERS if peer.name in wanted)
    calibrating = [peer.name for peer in chosen if peer.calibrates]
    if calibrating and inputs.peer_calib is None:
        hint = f"add --peer-calib DIR with the engines' calibration images, or {RANDOM} for an untrained network"
        raise SpecError(f"{calibrating[0]} needs images to calibrate on", hint=hint)
    if not calibrating and inputs.peer_calib is not None:
        raise SpecError("--peer-calib has no effect: no peer calibrates", hint="drop it, or add peers to --peers")
    return chosen


def need_images(names: Sequence[str]) -> bool:
    """Whether one of these peers, or of ``all``, is quantized on images."""
    return any(peer.calibrates for peer in PEERS if peer.name in names or tuple(names) == (ALL,))


@contextlib.contextmanager
def with_peers(
    lineup: Lineup, bundles: Sequence[Bundle], inputs: BenchInputs, spec: BenchSpec, progress: "Progress"
) -> Iterator[Lineup]:
    """Add the peers that are asked for to a lineup; close them at the end of the block.

    A peer whose library is missing, or whose tool refuses the model, is listed with the reason.

    Raises:
        UserError: If the exported model or its weights are not beside the engines, or the images are at fault.
    """
    chosen = choose_peers(inputs)
    folders = list(dict.fromkeys(folder for bundle in bundles for folder in folders_beside(bundle)))
    candidates: list[Candidate] = []
    not_run: list[NotRun] = []
    with tempfile.TemporaryDirectory(prefix="resnet-deploy-peers-") as scratch, contextlib.ExitStack() as stack:
        most = images_of(bundles)
        material = _find_material(chosen, inputs, lineup.card, most)
        kitchen = _Kitchen(
            model=find_model(folders, {bundle.manifest.chain.onnx for bundle in bundles}),
            weights=_find_weights(chosen, inputs, folders, lineup.card),
            images=_save_images(material, lineup.card, Path(scratch), progress),
            card=lineup.card,
            folder=Path(scratch),
            spec=spec,
            calibrated_on=Calibrated(material.digest, most) if material is not None else None,
        )
        for peer in chosen:
            with progress.task(f"preparing {peer.name}"):
                opened = _open(peer, kitchen, lineup.threads)
            if isinstance(opened, NotRun):
                not_run.append(opened)
            else:
                stack.callback(opened.entrant.close)
                candidates.append(opened)
        yield replace(lineup, candidates=(*lineup.candidates, *candidates), not_run=(*lineup.not_run, *not_run))


def find_model(folders: Sequence[Path], digests: set[str]) -> Path:
    """Find the exported model that engines were built from, by its digest.

    Raises:
        FileError: If no file in ``folders`` is it.
    """
    for folder in folders:
        for path in sorted(folder.glob("*.onnx")):
            if artifact.sha256_file(path) in digests:
                return path
    raise FileError(
        "the exported model is not beside the engines, and peers are made of it",
        hint="put the .onnx file that they were built from there, or leave --peers out",
    )


def _open(peer: Peer, kitchen: _Kitchen, threads: int) -> Candidate | NotRun:
    """Open a peer, or say why it cannot be had here, and what would help."""
    libraries = have_modules(peer.extras)
    if not libraries.ok:
        return _not_run(peer, libraries.reason, libraries.fix)
    try:
        made = peer.make(kitchen)
        if peer.from_weights:
            (runner,) = made.opener(threads, 1)
            entrant = Entrant(peer.name, runner, threads=threads)
        else:
            entrant = open_entrant(peer.name, made.opener, kitchen.spec, threads)
    except (BackendError, BuildError) as error:
        return _not_run(peer, error.message, error.hint)
    if next(entrant.ways(kitchen.spec), None) is None:
        entrant.close()
        return _not_run(peer, "it can be called in none of the ways that are measured", "add one caller, or host")
    digests = [artifact.sha256_file(path) for path in made.files]
    return Candidate(
        entrant,
        peer.backend,
        peer.precision,
        sum(path.stat().st_size for path in made.files),
        digests[0] if len(digests) == 1 else artifact.sha256_bytes("".join(digests).encode()),
        role="peer",
        settings=_settings(peer),
        calibrated_on=kitchen.calibrated_on if peer.calibrates else None,
    )


def _not_run(peer: Peer, reason: str, hint: str) -> NotRun:
    reason = f"{reason}: {hint}" if hint else reason
    return NotRun(name=peer.name, backend=peer.backend, precision=peer.precision, size_bytes=0, reason=reason)


def _settings(peer: Peer) -> str:
    """Put the versions of the libraries before what is called of them."""
    versions = [f"{module} {environment.installed_version(module)}" for module in peer.extras if module not in _HELPERS]
    return f"{', '.join(versions)}: {peer.settings}"


_HELPERS: Final = ("safetensors", "onnx")  # which read files, and do not run anything


def images_of(bundles: Sequence[Bundle]) -> int:
    """How many images the engines were calibrated on at most, that peers have the same.

    Raises:
        SpecError: If some were allowed more than others.
    """
    specs = [bundle.manifest.spec.calibration for bundle in bundles]
    found = sorted({spec.max_images for spec in specs if spec is not None})
    if len(found) > 1:
        numbers = " and ".join(map(str, found))
        hint = "compare peers with engines that were built with the same --calib-images"
        raise SpecError(f"the engines were calibrated on at most {numbers} images", hint=hint)
    return found[0] if found else CalibrationSpec().max_images


def _find_material(chosen: Sequence[Peer], inputs: BenchInputs, card: ModelCard, most: int) -> Material | None:
    """Find the images to calibrate on: at most so many, which a build takes as well."""
    if not any(peer.calibrates for peer in chosen):
        return None
    material = find_material(
        inputs.peer_calib, CalibrationSpec(max_images=most), card.preprocess, "cpu", skip_corrupt=inputs.skip_corrupt
    )
    if material.observations is not None:
        raise DataError("peers calibrate on images, and observations have none", hint="give --peer-calib a folder")
    return material


def _save_images(material: Material | None, card: ModelCard, folder: Path, progress: "Progress") -> Path | None:
    """Prepare the images once for all peers, in a file that other processes read."""
    import numpy as np

    if material is None:
        return None
    path = folder / "images.npy"
    np.save(path, np.concatenate(list(read_all(material, card, progress))))
    return path


def _find_weights(chosen: Sequence[Peer], inputs: BenchInputs, folders: Sequence[Path], card: ModelCard) -> Path | None:
    needed = any(peer.from_weights and have_modules(peer.extras).ok for peer in chosen)
    return (inputs.reference or find_reference(folders, card)) if needed else None
