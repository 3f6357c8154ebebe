"""MLPerf Inference's rules for ResNet-50, as far as one run of LoadGen can be held against them.

Sources: inference_rules.adoc of mlcommons/inference_policies (ac93e89; Server, which v5.1 dropped, at dff5f51^), and
the configuration that LoadGen carries. What LoadGen really used is read from its log, not taken for granted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from resnet_deploy.bench.loadgen_records import LoadgenResult
from resnet_deploy.bench.loadgen_spec import MULTISTREAM_SAMPLES, OFFICIAL_LATENCY_S, OFFICIAL_SAMPLES, Scenario
from resnet_deploy.imagenet import CLASSES
from resnet_deploy.specs import ModelCard

ARCHITECTURE: Final = "resnet50"
REFERENCE_ACCURACY: Final = 0.7646  # of MLPerf's own ResNet-50 in FP32
TARGET: Final = 0.99  # of the reference
VALIDATION_IMAGES: Final = 50_000

# Entries of the detail log without "effective_", and the least that the rules allow.
_LEAST: Final[Mapping[Scenario, Mapping[str, int]]] = {
    "singlestream": {"min_query_count": 100},
    "multistream": {"min_query_count": 662},
    "offline": {"min_sample_count": 24_576},
    "server": {"min_query_count": 100},
}
_LEAST_ALWAYS: Final[Mapping[str, int]] = {"min_duration_ms": 600_000, "performance_sample_count": OFFICIAL_SAMPLES}
# Likewise, and what they demand.
_EXACT: Final[Mapping[Scenario, Mapping[str, float]]] = {
    "singlestream": {"target_latency_percentile": 0.9, "samples_per_query": 1},
    "multistream": {"target_latency_percentile": 0.99, "samples_per_query": MULTISTREAM_SAMPLES},
    "offline": {},
    "server": {"target_latency_percentile": 0.99, "target_latency_ns": round(OFFICIAL_LATENCY_S * 1e9)},
}
_SEEDS: Final = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")


@dataclass(frozen=True)
class Target:
    """The accuracy to reach, as a share, and where the reference comes from."""

    share: float
    reference: str


def target_of(reference: float, source: str) -> Target:
    """Make the target of a reference's accuracy, given as a share."""
    return Target(TARGET * reference, f"99 % of {reference * 100:.2f} % ({source})")


def is_reference_model(card: ModelCard) -> bool:
    """Whether MLPerf's own reference accuracy may stand for this model: a ResNet-50 with weights for ImageNet."""
    return card.architecture == ARCHITECTURE and card.num_classes == CLASSES and card.weights.startswith("imagenet")


def unmet_by_subject(card: ModelCard, images: int) -> tuple[str, ...]:
    """List what the model and the data set lack."""
    unmet = []
    if card.architecture != ARCHITECTURE:
        unmet.append(f"the model is {card.architecture}, MLPerf's is ResNet-50 v1.5")
    if images != VALIDATION_IMAGES or card.num_classes != CLASSES:
        unmet.append(
            f"the data set has {images:,} images of {card.num_classes:,} classes, MLPerf's is ImageNet's validation "
            f"set: {VALIDATION_IMAGES:,} images of {CLASSES:,} classes"
        )
    return tuple(unmet)


def unmet_by_run(result: LoadgenResult) -> tuple[str, ...]:
    """List what a performance run lacks: LoadGen's own verdict, and settings that are not the rules'."""
    unmet = []
    if not result.valid:
        unmet.append(f"LoadGen: INVALID: {'; '.join(result.reasons) or 'no reason given'}")
    unmet += [f"LoadGen logged an error: {error}" for error in result.errors]
    settings = result.settings
    for key, least in (*_LEAST_ALWAYS.items(), *_LEAST[result.scenario].items()):
        if float(settings.get(key, 0)) < least:
            unmet.append(f"{key} was {settings.get(key)}, the rules ask for at least {least:,}")
    for key, value in _EXACT[result.scenario].items():
        if settings.get(key) != value:
            unmet.append(f"{key} was {settings.get(key)}, the rules ask for {value:,}")
    unmet += [f"{key} was 0: LoadGen did not read its own configuration" for key in _SEEDS if not settings.get(key)]
    return tuple(unmet)


def unmet_by_accuracy(share: float, target: Target) -> tuple[str, ...]:
    """Say that the target is missed, if it is."""
    if share >= target.share:
        return ()
    return (f"accuracy is {share * 100:.2f} %, the target is {target.share * 100:.2f} %: {target.reference}",)
