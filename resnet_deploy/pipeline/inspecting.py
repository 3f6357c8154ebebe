"""What an exported model or an engine is, read from its files; nothing is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from resnet_deploy import artifact
from resnet_deploy.bundle import OBSERVATIONS, Bundle, Manifest, open_bundle
from resnet_deploy.capabilities import have_modules
from resnet_deploy.compiled.layers import CompiledGraph
from resnet_deploy.compiled.lint import Finding
from resnet_deploy.errors import BackendError, FileError, ModelError
from resnet_deploy.pipeline.kept_calibration import KeptCalibration, read_calibration
from resnet_deploy.pipeline.linting import lint_engine, read_compiled
from resnet_deploy.pipeline.source import Source, read_source
from resnet_deploy.pipeline.verifying import read_lowered
from resnet_deploy.specs import ModelCard

if TYPE_CHECKING:
    import onnx_ir as ir

    from resnet_deploy.protocols import Progress
    from resnet_deploy.quantize.layers import Grid, Layer
    from resnet_deploy.quantize.observations import Observations
    from resnet_deploy.quantize.outliers import ActivationSpread, WeightSpread

_LIBRARIES: Final = {"onnx": "export", "onnx_ir": "export"}  # and the extra with them


@dataclass(frozen=True)
class Activation:
    """A quantized activation: its grid in the graph, and the range that it was given in the calibration.

    Attributes:
        grid: Scale and zero point as they are in the lowered graph.
        observed: Smallest and largest value seen; None where the calibration does not know the tensor.
        chosen: Range that the method chose.
        method: Its name; empty where unknown.
        clipped: Share of the observed values beyond the chosen range; None where their histogram is not kept.
    """

    grid: "Grid"
    observed: tuple[float, float] | None = None
    chosen: tuple[float, float] | None = None
    method: str = ""
    clipped: float | None = None


@dataclass(frozen=True)
class InspectedEngine:
    """An engine bundle, whole.

    Attributes:
        path: The bundle, as it was named.
        size_bytes: Of the engine.
        manifest: What it says of itself.
        layers: Of the graph that the engine was compiled from, or is; empty where it could not be read.
        activations: Those that are quantized.
        unread: Why the graph could not be read; empty if it was.
        compiled: The kernels that a compiler made of the graph; None where there are none, or they could not be read.
        not_compiled: Why there are none; empty if there are.
        findings: What is wrong with them; None unless that was asked.
    """

    path: str
    size_bytes: int
    manifest: Manifest
    layers: "tuple[Layer, ...]" = ()
    activations: tuple[Activation, ...] = ()
    unread: str = ""
    compiled: CompiledGraph | None = None
    not_compiled: str = ""
    findings: tuple[Finding, ...] | None = None


@dataclass(frozen=True)
class InspectedModel:
    """An exported model.

    Attributes:
        path: The file, as it was named.
        size_bytes: Of the file.
        sha256: Of the file, as engines name it in ``chain.onnx``.
        card: What it says of itself.
        nodes: How many the graph has.
        layers: Convolutions and classifier.
        spreads: How evenly their weights fill an integer grid, worst first; empty unless asked for.
        activations: How evenly its activations do, worst first; empty without observations of them.
        rescaled: Whether both are of the graph with its channels rescaled, which is what was observed.
    """

    path: str
    size_bytes: int
    sha256: str
    card: ModelCard
    nodes: int
    layers: "tuple[Layer, ...]"
    spreads: "tuple[WeightSpread, ...]" = ()
    activations: "tuple[ActivationSpread, ...]" = ()
    rescaled: bool = False


def is_engine(path: Path) -> bool:
    """Whether ``path`` is to be read as an engine bundle: it is a folder.

    Raises:
        FileError: If there is nothing at ``path``.
    """
    if not artifact.is_folder(path) and not artifact.is_file(path):
        raise FileError(f"{path} does not exist", hint="give an engine bundle or an exported model")
    return artifact.is_folder(path)


def inspect_engine(path: Path, *, need_graph: bool, progress: "Progress", lint: bool = False) -> InspectedEngine:
    """Read a bundle, the kernels of its engine and its graph; without ONNX, and unless ``need_graph``, not the graph.

    Args:
        path: The bundle.
        need_graph: Whether to refuse where the graph cannot be read.
        progress: Shows that something is read.
        lint: Whether to hold the kernels against what is expected of them; takes the graph, too.

    Raises:
        FileError, BundleError: If there is no bundle at ``path``, or it is damaged or was altered.
        BackendError: If the graph is needed and ONNX is not installed, or kernels are and there are none to read.
    """
    path = path if path.name not in ("", "..") else path.resolve()
    bundle = open_bundle(path)
    with progress.task("reading the engine"):
        bundle.verify_files()
        size = bundle.engine_path.stat().st_size
        compiled, reason = read_compiled(bundle)
        libraries = have_modules(_LIBRARIES)
        if not libraries.ok:
            if need_graph or lint:
                raise BackendError(f"cannot read graphs: {libraries.reason}", hint=libraries.fix)
            unread = f"layers are not shown: {libraries.reason}; {libraries.fix}"
            return InspectedEngine(
                str(path), size, bundle.manifest, unread=unread, compiled=compiled, not_compiled=reason
            )
        layers, activations = _read_graph(bundle)
    findings = lint_engine(bundle.manifest, compiled, reason, layers) if lint else None
    return InspectedEngine(str(path), size, bundle.manifest, layers, activations, "", compiled, reason, findings)


def inspect_model(path: Path, *, outliers: bool, observed: Path | None, progress: "Progress") -> InspectedModel:
    """Read an exported model and, if asked for, measure how evenly its weights and activations fill an integer grid.

    Args:
        path: The model.
        outliers: Whether to measure the weights.
        observed: Observations of the model, to measure the activations by.
        progress: Counts what is measured.

    Raises:
        FileError, ModelError: If it is missing, damaged, or not a model that `export` wrote; or if the observations are
            of another.
        DataError: If the observations are damaged.
        BackendError: If ONNX is not installed.
    """
    libraries = have_modules(_LIBRARIES)
    if not libraries.ok:
        raise BackendError(f"cannot read graphs: {libraries.reason}", hint=libraries.fix)
    from resnet_deploy.quantize.layers import read_layers

    with progress.task("reading the model"):
        source = read_source(path)
        layers = read_layers(source.model)
    graph, activations, rescaled = source.model, [], False
    if observed is not None:
        observations = _read_observations(source, observed)
        graph, rescaled = _observed_graph(source, observations)
        activations = _activation_spreads(observations, progress)
    spreads = _spreads(graph.graph, progress) if outliers else []
    nodes = sum(1 for _ in source.model.graph)
    found = (tuple(spreads), tuple(activations), rescaled)
    return InspectedModel(str(path), len(source.data), source.sha256, source.card, nodes, layers, *found)


def to_json(found: InspectedEngine | InspectedModel) -> str:
    """Serialize what was found; a figure that is infinite is null."""
    fields: dict[str, Any] = msgspec.to_builtins(found)
    if isinstance(found, InspectedModel):
        for name in ("spreads", "activations"):
            for written, spread in zip(fields[name], getattr(found, name), strict=True):
                written["verdict"] = spread.verdict
    elif found.compiled is not None:
        fields["compiled"] |= _compiled_fields(found.compiled, found.manifest.spec.batch.opt)
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()


def _compiled_fields(graph: CompiledGraph, batch: int) -> dict[str, Any]:
    """What follows from the kernels; their traffic is that of a batch."""
    return {
        "kernels": len(graph.kernels),
        "weighted_types": graph.weighted_types(),
        "fused": graph.fused_counts(),
        "batch": batch,
        "activation_bytes": graph.activation_bytes(batch),
    }


def _read_graph(bundle: Bundle) -> "tuple[tuple[Layer, ...], tuple[Activation, ...]]":
    from resnet_deploy.onnx_files import onnx_from_bytes
    from resnet_deploy.quantize.layers import read_grids, read_layers

    model = onnx_from_bytes(read_lowered(bundle), name=f"the graph of {bundle.path}")
    calibration = read_calibration(bundle)
    grids = read_grids(model, calibration.tensors if calibration is not None else ())
    if calibration is None:
        return read_layers(model), tuple(map(Activation, grids))
    clipped = _clipped(bundle, calibration)
    activations = []
    for grid in grids:
        tensor = calibration.tensors.get(grid.source)
        if tensor is None:
            activations.append(Activation(grid))
            continue
        method, chosen = calibration.method_of(grid.source), calibration.range_of(grid.source)
        activations.append(Activation(grid, tensor.observed, chosen, method, clipped.get(grid.source)))
    return read_layers(model), tuple(activations)


def _clipped(bundle: Bundle, calibration: KeptCalibration) -> dict[str, float]:
    if OBSERVATIONS not in bundle.manifest.files or not have_modules({"safetensors": "export"}).ok:
        return {}
    from resnet_deploy.quantize.layers import clipped_shares
    from resnet_deploy.quantize.observations import read_observations
    from resnet_deploy.quantize.ranges import Range

    chosen = {name: Range(*calibration.range_of(name)) for name in calibration.tensors}
    return clipped_shares(read_observations(bundle.path / OBSERVATIONS).histograms, chosen)


def _read_observations(source: Source, observed: Path) -> "Observations":
    from resnet_deploy.quantize.observations import read_observations

    observations = read_observations(observed)
    if observations.model.onnx_sha256 != source.sha256:
        raise ModelError(f"{observed} was observed of another model", hint="run `resnet-deploy calibrate` on this one")
    return observations


def _observed_graph(source: Source, observations: "Observations") -> "tuple[ir.Model, bool]":
    """Return the graph whose activations were observed, and whether its channels are rescaled."""
    from resnet_deploy.onnx_files import initializers_digest

    if initializers_digest(source.model.graph) == observations.model.graph_sha256:
        return source.model, False
    return source.graph_to_quantize(equalize=True)[0], True


def _activation_spreads(observations: "Observations", progress: "Progress") -> "list[ActivationSpread]":
    from resnet_deploy.quantize.outliers import activation_spread

    histograms = progress.track(observations.histograms.items(), "measuring activations", len(observations.histograms))
    spreads = [activation_spread(name, histogram) for name, histogram in histograms]
    return sorted(spreads, key=lambda spread: spread.bulk_db["max"])


def _spreads(graph: Any, progress: "Progress") -> "list[WeightSpread]":
    import numpy as np

    from resnet_deploy.quantize.graph import weighted_nodes
    from resnet_deploy.quantize.outliers import weight_spread

    spreads = []
    nodes = weighted_nodes(graph)
    for node in progress.track(nodes, "measuring weights", len(nodes)):
        weights = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        if not np.isfinite(weights).all():
            raise ModelError(f"{node.name} has weights that are not finite", hint="check the weights for NaN")
        spreads.append(weight_spread(str(node.name), weights))
    return sorted(spreads, key=lambda spread: spread.per_tensor_db)
