"""What was tested, held against MLPerf's rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_deploy.bench import loadgen_rules as rules
from resnet_deploy.bench.loadgen_records import LoadgenTest, RulesVerdict
from resnet_deploy.bench.records import NotRun
from resnet_deploy.errors import DataError, SpecError

if TYPE_CHECKING:
    from resnet_deploy.datasets import ImageDataset
    from resnet_deploy.pipeline.loadgen_session import SystemUnderTest
    from resnet_deploy.specs import ModelCard


@dataclass(frozen=True)
class Systems:
    """What takes part in a run.

    Attributes:
        under_test: Engines that may run here.
        not_run: Those that may not.
        card: The model that they share.
        dataset: The images; None for synthetic ones.
        reference_accuracy: Of the model in FP32 on these images, in percent; None where it was not given.
    """

    under_test: "tuple[SystemUnderTest, ...]"
    not_run: tuple[NotRun, ...]
    card: "ModelCard"
    dataset: "ImageDataset | None"
    reference_accuracy: float | None


def require_reference(systems: Systems) -> None:
    """Refuse, before hours of tests, where there would be no accuracy or nothing to hold it against.

    Raises:
        SpecError: If images or a reference are missing.
        DataError: If the images have no labels.
    """
    if systems.dataset is None:
        raise SpecError("--mlperf-rules needs labelled images", hint="add --data DIR")
    if systems.dataset.labels is None:
        raise DataError(
            f"{systems.dataset.root}: no labels, and --mlperf-rules counts right answers", hint="add --labels-file FILE"
        )
    if systems.reference_accuracy is not None or rules.is_reference_model(systems.card):
        return
    if not any(one.tested.precision == "fp32" for one in systems.under_test):
        raise SpecError(
            "--mlperf-rules needs the accuracy of the FP32 model on these images",
            hint="name an FP32 engine too, or give --reference-accuracy PERCENT",
        )


def judge(systems: Systems, tests: Sequence[LoadgenTest]) -> tuple[RulesVerdict, ...]:
    """Judge each performance run and the accuracy run beside it; one that lacks the other gets no verdict."""
    assert systems.dataset is not None
    by_subject = rules.unmet_by_subject(systems.card, len(systems.dataset))
    shares = {(one.engine, one.result.scenario): one.accuracy.share for one in tests if one.accuracy is not None}
    verdicts = []
    for ran in tests:
        key = (ran.engine, ran.result.scenario)
        if ran.purpose == "performance" and key in shares:
            of_scenario = {engine: share for (engine, scenario), share in shares.items() if scenario == key[1]}
            target = _target(systems, of_scenario)
            missed = rules.unmet_by_accuracy(shares[key], target)
            verdict = RulesVerdict(
                engine=ran.engine,
                scenario=ran.result.scenario,
                accuracy=shares[key],
                target=target.share,
                reference=target.reference,
                unmet=(*rules.unmet_by_run(ran.result), *missed, *by_subject),
            )
            verdicts.append(verdict)
    return tuple(verdicts)


def _target(systems: Systems, shares: dict[str, float]) -> rules.Target:
    """Take the number that was given, or the best FP32 engine in this scenario, or MLPerf's own model's accuracy."""
    if systems.reference_accuracy is not None:
        return rules.target_of(systems.reference_accuracy / 100, "given with --reference-accuracy")
    precise = {one.tested.name for one in systems.under_test if one.tested.precision == "fp32"}
    measured = [(share, engine) for engine, share in shares.items() if engine in precise]
    if measured:
        share, engine = max(measured)
        return rules.target_of(share, f"{engine} in the same scenario")
    return rules.target_of(rules.REFERENCE_ACCURACY, "MLPerf's own ResNet-50 in FP32")
