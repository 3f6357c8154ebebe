"""Reading what LoadGen logs: settings and figures from its detail log, answers from its accuracy log.

The detail log has one JSON object per line behind ``:::MLLOG``; the summary says the same for people and is only kept.
"""

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_deploy import artifact
from resnet_deploy.bench.loadgen_records import LoadgenResult, Metric, Setting
from resnet_deploy.bench.loadgen_spec import LOADGEN_NAMES, Scenario
from resnet_deploy.errors import LoadgenError
from resnet_deploy.json_files import decode_json

DETAIL: Final = "mlperf_log_detail.txt"
SUMMARY: Final = "mlperf_log_summary.txt"
ACCURACY: Final = "mlperf_log_accuracy.json"

_MARK: Final = ":::MLLOG "
_PERCENTS: Final = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
_SCENARIOS: Final = {theirs: ours for ours, theirs in LOADGEN_NAMES.items()}
# What a test must meet to be valid, and how LoadGen's summary calls it.
_CONDITIONS: Final = (
    ("result_perf_constraints_met", "performance constraints not satisfied"),
    ("result_min_duration_met", "min duration not satisfied"),
    ("result_min_queries_met", "min queries not satisfied"),
    ("early_stopping_met", "early stopping not satisfied"),
)


class _Metadata(msgspec.Struct):
    is_error: bool = False


class _Entry(msgspec.Struct):
    key: str
    value: Any
    metadata: _Metadata


class _Answer(msgspec.Struct):
    qsl_idx: int
    data: str


@dataclass(frozen=True)
class _Log:
    """The last value of each key, and what was logged as an error."""

    values: dict[str, Any]
    errors: tuple[str, ...]


def _accuracy_samples(values: dict[str, Any]) -> Any:
    """Return how many samples an accuracy test asks for: all, which LoadGen 6.0.3 does not say once more."""
    return values.get("effective_accuracy_sample_count") or values["qsl_reported_total_count"]


def read_detail(path: Path) -> LoadgenResult:
    """Read the detail log of a test that came to its end.

    Raises:
        FileError: If it is missing.
        LoadgenError: If it is not LoadGen's, or ends before the result.
    """
    log = _read_log(path)
    values = log.values
    try:
        scenario, mode = _SCENARIOS[values["effective_scenario"]], values["effective_test_mode"]
        measured = mode == "PerformanceOnly"
        queries = int(values["result_query_count"] if measured else _accuracy_samples(values))
        samples = queries * int(values["effective_samples_per_query"]) if measured else queries
        valid = values["result_validity"] == "VALID" if measured else None
        return LoadgenResult(
            scenario=scenario,
            settings=_settings(values),
            valid=valid,
            reasons=() if valid is not False else _reasons(values),
            errors=log.errors,
            metric=_metric(scenario, values) if measured else None,
            percentiles=_percentiles(scenario, values) if measured else {},
            queries=queries,
            samples=samples,
            seconds=(_time(values["power_end"]) - _time(values["power_begin"])).total_seconds(),
            late=int(values["result_overlatency_query_count"]) if measured and scenario == "server" else None,
            loadgen=str(values["loadgen_version"]),
            scheduled=float(values["result_scheduled_samples_per_sec"]) if measured and scenario == "server" else None,
        )
    except KeyError as error:
        raise LoadgenError(f"{path} has no entry {error}", hint=_HINT) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise LoadgenError(f"{path} has an entry that makes no sense: {error}", hint=_HINT) from error


def read_answers(path: Path, images: int) -> NDArray[np.int64]:
    """Read the class that was answered for each image, (images,), from an accuracy run over all of them.

    Raises:
        FileError: If the log is missing.
        LoadgenError: If it is damaged, or an image was not answered exactly once.
    """
    try:
        entries = decode_json(artifact.read_bytes(path), list[_Answer])
        indices = [entry.qsl_idx for entry in entries]
        classes = np.frombuffer(bytes.fromhex("".join(entry.data for entry in entries)), np.int64)
    except ValueError as error:
        raise LoadgenError(f"{path} is not an accuracy log of LoadGen's: {error}", hint=_HINT) from error
    if sorted(indices) != list(range(images)) or len(classes) != images:
        raise LoadgenError(f"{path}: {len(entries)} answers for {images} images, not one each", hint=_HINT)
    answers = np.empty(images, np.int64)
    answers[indices] = classes
    return answers


_HINT: Final = "run the test again; if it happens again, its version of LoadGen may log something else"


def _read_log(path: Path) -> _Log:
    values: dict[str, Any] = {}
    errors: list[str] = []
    for line in artifact.read_bytes(path).decode(errors="replace").splitlines():
        if not line.startswith(_MARK):
            continue
        try:
            entry = decode_json(line.removeprefix(_MARK), _Entry)
        except ValueError as error:
            raise LoadgenError(f"{path} is not a detail log of LoadGen's: {error}", hint=_HINT) from error
        values[entry.key] = entry.value
        if entry.metadata.is_error:
            errors.append(_one_line(str(entry.value)))
    return _Log(values, tuple(errors))


def _time(text: str) -> datetime:
    """Read the wall clock as LoadGen writes it for power meters: 11-26-2026 12:56:50.163, in UTC."""
    return datetime.strptime(text, "%m-%d-%Y %H:%M:%S.%f").replace(tzinfo=timezone.utc)


def _settings(values: dict[str, Any]) -> dict[str, Setting]:
    return {key.removeprefix("effective_"): value for key, value in values.items() if key.startswith("effective_")}


def _reasons(values: dict[str, Any]) -> tuple[str, ...]:
    unmet = [words for key, words in _CONDITIONS if values.get(key) is False]
    advice = (str(values.get(key, "")) for key in ("result_invalid_reason", "early_stopping_result"))
    return (*unmet, *(line for text in advice if (line := _one_line(text))))


def _one_line(text: str) -> str:
    """Undo the layout of the summary: bullets and line breaks."""
    return " ".join(word for word in text.split() if word != "*")


def _metric(scenario: Scenario, values: dict[str, Any]) -> Metric:
    """Take what the summary prints as the result; a latency is early stopping's estimate, and 0 there means none."""
    if scenario == "offline":
        return Metric(name="throughput", value=float(values["result_samples_per_second"]), unit="samples/s")
    if scenario == "server":
        return Metric(name="completed rate", value=float(values["result_completed_samples_per_sec"]), unit="queries/s")
    name, key = ("p90", "early_stopping_latency_ss")
    if scenario == "multistream":
        name, key = ("p99", "early_stopping_latency_ms")
    value = values[key]
    return Metric(name=f"{name} estimate", value=value * 1e-9 if value else None, unit="s")


def _percentiles(scenario: Scenario, values: dict[str, Any]) -> dict[str, float]:
    if scenario == "offline":
        return {}
    kind = "percentile_per_query_latency_ns" if scenario == "multistream" else "percentile_latency_ns"
    return {percent: values[f"result_{percent}_{kind}"] * 1e-9 for percent in _PERCENTS}
