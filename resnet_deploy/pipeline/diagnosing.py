"""What a bundle keeps of its calibration and its search, in the few figures that a report draws."""

import math
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from resnet_deploy import artifact
from resnet_deploy.bench.records import SearchStep, TensorHistogram
from resnet_deploy.bundle import OBSERVATIONS, SEARCH, Bundle
from resnet_deploy.errors import BundleError
from resnet_deploy.json_files import decode_json
from resnet_deploy.pipeline.kept_calibration import read_calibration

if TYPE_CHECKING:
    from resnet_deploy.quantize.search import Search

T = TypeVar("T")

WORST: Final = 6
_DRAWN_BINS: Final = 128


def worst_histograms(bundle: Bundle) -> tuple[TensorHistogram, ...]:
    """Pick the tensors that the INT8 grid serves worst, by what the histograms expect; nothing for other precisions.

    Raises:
        BundleError, DataError, ModelError: If the bundle's calibration or observations are damaged, which its manifest
            would have told, do not belong together, or are of a later schema.
    """
    files = bundle.manifest.files
    if bundle.manifest.spec.precision != "int8":
        return ()  # FP8 has no even steps to expect an error from
    calibration = read_calibration(bundle)
    if calibration is None or OBSERVATIONS not in files:
        return ()
    from resnet_deploy.quantize.observations import read_observations
    from resnet_deploy.quantize.qdq import FORMS
    from resnet_deploy.quantize.ranges import Range, expected_sqnr_db

    observations = read_observations(bundle.path / OBSERVATIONS)
    is_symmetric = FORMS[bundle.manifest.spec.backend].activation == "int8"
    found = []
    for name, histogram in observations.histograms.items():
        chosen = Range(*calibration.range_of(name))
        grid, levels = (Range(-chosen.magnitude, chosen.magnitude), 254) if is_symmetric else (chosen, 255)
        occupied = np.flatnonzero(histogram.counts)
        span = int(occupied[-1] - occupied[0]) + 1
        together = math.ceil(span / _DRAWN_BINS)
        counts = np.pad(histogram.counts[occupied[0] : occupied[-1] + 1], (0, -span % together))
        found.append(
            TensorHistogram(
                tensor=name,
                first=float(occupied[0] - len(histogram.counts) // 2) * histogram.width,
                width=together * histogram.width,
                counts=tuple(counts.reshape(-1, together).sum(1).tolist()),
                low=grid.low,
                high=grid.high,
                sqnr_db=expected_sqnr_db(histogram, grid, levels),
            )
        )
    return tuple(sorted(found, key=lambda one: one.sqnr_db)[:WORST])


def read_search(bundle: Bundle) -> "Search | None":
    """Read the search that kept the engine to a limit of accuracy; None where there was none.

    Raises:
        BundleError: If it is damaged.
    """
    if SEARCH not in bundle.manifest.files:
        return None
    from resnet_deploy.quantize.search import Search

    return _read(bundle, SEARCH, Search)


def search_steps(bundle: Bundle) -> tuple[SearchStep, ...]:
    """List the steps of that search; nothing where there was none."""
    search = read_search(bundle)
    if search is None:
        return ()
    whole = search.steps[0].cost or 1.0
    layers = {node for point in search.sensitivity.values() for node in point.in_float if len(point.in_float) == 1}
    return tuple(
        SearchStep(layers=len(layers & set(point.in_float)), drop=point.drop or 0.0, cost=point.cost / whole)
        for point in search.steps
    )


def _read(bundle: Bundle, name: str, kind: type[T]) -> T:
    try:
        return decode_json(artifact.read_bytes(bundle.path / name), kind)
    except ValueError as error:
        reason = f"{bundle.path}: {name} is damaged: {error}"
        raise BundleError(reason, hint="build the engine again with `resnet-deploy build`") from error
