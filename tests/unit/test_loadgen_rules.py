"""What is asked of LoadGen, and MLPerf's rules held against what it logged."""

import math
from types import SimpleNamespace

import pytest
from loadgen_factory import logged, official, run_of

from resnet_deploy.bench.loadgen_records import Accuracy
from resnet_deploy.bench.loadgen_rules import (
    is_reference_model,
    target_of,
    unmet_by_accuracy,
    unmet_by_run,
    unmet_by_subject,
)
from resnet_deploy.bench.loadgen_spec import LoadgenSpec, PeakSpec
from resnet_deploy.errors import DataError, SpecError
from resnet_deploy.pipeline.loadgen_peaks import hopeless
from resnet_deploy.pipeline.loadgen_verdicts import Systems, judge, require_reference
from resnet_deploy.specs import ModelCard, Preprocess


def card(**changes):
    values = {"architecture": "resnet50", "num_classes": 1000, "weights": "imagenet", "weights_sha256": "0" * 64}
    return ModelCard(**values | changes, preprocess=Preprocess())


# --- the run


@pytest.mark.parametrize("name", ["singlestream-valid", "offline-valid", "server-valid"])
def test_a_valid_run_with_official_settings_meets_the_rules(name):
    assert unmet_by_run(official(name)) == ()


def test_a_short_run_is_valid_to_loadgen_and_not_to_the_rules():
    assert unmet_by_run(logged("singlestream-valid")) == (
        "min_duration_ms was 2000, the rules ask for at least 600,000",
        "performance_sample_count was 360, the rules ask for at least 1,024",
        "min_query_count was 1, the rules ask for at least 100",
    )


@pytest.mark.parametrize(
    ("name", "setting", "value", "words"),
    [
        ("singlestream-valid", "min_duration_ms", 599_999, "min_duration_ms was 599999"),
        ("singlestream-valid", "performance_sample_count", 1023, "performance_sample_count was 1023"),
        ("singlestream-valid", "target_latency_percentile", 0.5, "target_latency_percentile was 0.5"),
        ("singlestream-valid", "schedule_rng_seed", 0, "schedule_rng_seed was 0"),
        ("offline-valid", "min_sample_count", 24_575, "min_sample_count was 24575"),
        ("server-valid", "target_latency_ns", 16_000_000, "target_latency_ns was 16000000"),
        ("server-valid", "target_latency_percentile", 0.97, "target_latency_percentile was 0.97"),
    ],
)
def test_each_setting_that_is_not_official_is_named(name, setting, value, words):
    (line,) = unmet_by_run(official(name, **{setting: value}))
    assert line.startswith(words)


def test_what_loadgen_calls_invalid_is_so():
    (line,) = unmet_by_run(official("multistream-invalid"))
    assert line.startswith("LoadGen: INVALID: early stopping not satisfied; Only processed 315 queries.")


def test_errors_in_the_log_are_named():
    _, line = unmet_by_run(official("server-given-up"))
    assert line.startswith("LoadGen logged an error: IssueQueryThread 0 Ending early")


# --- model and data


def test_imagenet_and_resnet50_meet_the_rules():
    assert unmet_by_subject(card(), 50_000) == ()


def test_another_model_and_other_images_do_not():
    assert unmet_by_subject(card(architecture="resnet18"), 50_000) == (
        "the model is resnet18, MLPerf's is ResNet-50 v1.5",
    )
    assert len(unmet_by_subject(card(), 49_999)) == 1
    (line,) = unmet_by_subject(card(num_classes=10), 360)
    assert line.startswith("the data set has 360 images of 10 classes, MLPerf's is ImageNet's validation set")


# --- accuracy


def test_the_official_target():
    target = target_of(0.7646, "MLPerf's")
    assert f"{target.share:.4%}" == "75.6954%"  # the rules: 99 % of 76.46 %
    assert unmet_by_accuracy(0.75696, target) == ()
    assert unmet_by_accuracy(target.share, target) == ()
    (line,) = unmet_by_accuracy(0.75695, target)
    assert line.startswith("accuracy is ")
    assert line.endswith("99 % of 76.46 % (MLPerf's)")


@pytest.mark.parametrize(
    ("changes", "is_one"),
    [
        ({}, True),
        ({"weights": "imagenet-v1"}, True),
        ({"weights": "mine.pth"}, False),
        ({"architecture": "resnet101"}, False),
        ({"num_classes": 10}, False),
    ],
)
def test_whose_reference_mlperfs_accuracy_is(changes, is_one):
    assert is_reference_model(card(**changes)) is is_one


# --- verdicts


def systems(*engines, model=None, images=50_000, labels=(0,), reference=None):
    """Engines as (name, precision)."""
    under_test = tuple(SimpleNamespace(tested=SimpleNamespace(name=name, precision=kind)) for name, kind in engines)

    class Images:
        root = "val"

        def __len__(self):
            return images

    dataset = Images()
    dataset.labels = labels
    return Systems(under_test, (), model or card(), dataset, reference)


def pair(engine, correct, result=None):
    """A performance run and an accuracy run."""
    result = result or official("singlestream-valid")
    accuracy = Accuracy(correct=correct, images=1000)
    return [
        run_of("singlestream-valid", engine=engine, result=result),
        run_of("singlestream-valid", engine=engine, result=result, purpose="accuracy", accuracy=accuracy),
    ]


def test_the_fp32_engine_is_the_reference_wherever_it_stands():
    tests = [*pair("int8", 791), *pair("fp32", 800)]
    low, own = judge(systems(("int8", "int8"), ("fp32", "fp32")), tests)
    assert (low.engine, low.accuracy, low.target) == ("int8", 0.791, pytest.approx(0.792, abs=1e-12))
    assert low.reference == "99 % of 80.00 % (fp32 in the same scenario)"
    assert low.unmet == ("accuracy is 79.10 %, the target is 79.20 %: 99 % of 80.00 % (fp32 in the same scenario)",)
    assert own.unmet == ()


def test_one_right_answer_more_meets_the_target():
    verdicts = judge(systems(("int8", "int8"), ("fp32", "fp32")), [*pair("int8", 792), *pair("fp32", 800)])
    assert [verdict.unmet for verdict in verdicts] == [(), ()]


def test_a_number_that_was_given_goes_first():
    (verdict,) = judge(systems(("a", "fp32"), reference=90.0), pair("a", 890))
    assert verdict.reference == "99 % of 90.00 % (given with --reference-accuracy)"
    assert len(verdict.unmet) == 1


def test_without_another_reference_it_is_mlperfs():
    (verdict,) = judge(systems(("a", "int8")), pair("a", 757))
    assert verdict.reference == "99 % of 76.46 % (MLPerf's own ResNet-50 in FP32)"
    assert verdict.unmet == ()


def test_a_run_without_its_accuracy_has_no_verdict():
    assert judge(systems(("a", "int8")), pair("a", 757)[:1]) == ()


def test_everything_that_lacks_is_listed():
    tests = pair("a", 500, logged("singlestream-valid"))
    (verdict,) = judge(systems(("a", "int8"), model=card(num_classes=10), images=360), tests)
    assert [line.split()[0] for line in verdict.unmet] == [
        "min_duration_ms",
        "performance_sample_count",
        "min_query_count",
        "accuracy",
        "the",
    ]


def test_rules_without_labels_or_reference_are_refused_beforehand():
    require_reference(systems(("a", "int8")))
    require_reference(systems(("a", "int8"), model=card(weights="mine.pth"), reference=70.0))
    require_reference(systems(("a", "fp32"), model=card(weights="mine.pth")))
    with pytest.raises(SpecError, match="accuracy of the FP32 model"):
        require_reference(systems(("a", "int8"), model=card(weights="mine.pth")))
    with pytest.raises(DataError, match="no labels"):
        require_reference(systems(("a", "int8"), labels=None))
    with pytest.raises(SpecError, match="labelled images"):
        require_reference(Systems((), (), card(), None, 76.0))


# --- requests


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scenarios": ()}, "scenarios"),
        ({"scenarios": ("offline", "offline")}, "scenarios offline, offline"),
        ({"scenarios": ("offline", "online")}, "unknown scenario 'online'"),
        ({"scenarios": ("server",)}, "needs a rate"),
        ({"scenarios": ("server",), "qps": 0.0}, "--qps is 0"),
        ({"seconds": 0.0}, "--seconds is 0"),
        ({"seconds": math.inf}, "--seconds is inf"),
        ({"latency_s": math.nan}, "latency bound is nan"),
        ({"batch": 0}, "batch size 0"),
        ({"batch": 1025}, "batch size 1025"),
    ],
)
def test_requests_that_make_no_sense_are_refused(values, words):
    with pytest.raises(SpecError, match=words):
        LoadgenSpec(**values)


@pytest.mark.parametrize("values", [{"latency_s": 0.0}, {"seconds": -1.0}, {"tolerance": 0.0}, {"batch": 0}])
def test_searches_that_make_no_sense_are_refused(values):
    with pytest.raises(SpecError):
        PeakSpec(**values)


def test_a_probe_is_given_up_only_once_it_is_lost():
    spec = PeakSpec(latency_s=0.015, seconds=10.0, queries=1001)
    # 1,000/s for 10 s: 100 may be late, 15 are on their way within the bound, give or take 6 x 3.9.
    assert hopeless(1000.0, spec) == math.ceil(15 + 6 * math.sqrt(15) + 100) + 1
    # 1/s: 1,001 queries, 10.01 of which may be late.
    assert hopeless(1.0, spec) == 12
