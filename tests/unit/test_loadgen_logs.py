"""LoadGen's logs, as version 6.0.17 wrote them: cut to what is read, and otherwise untouched."""

import re
from pathlib import Path

import pytest

from resnet_deploy.bench.loadgen_logs import read_answers, read_detail
from resnet_deploy.errors import FileError, LoadgenError

LOGS = Path(__file__).with_name("loadgen_logs")


def read(name):
    return read_detail(LOGS / f"{name}.txt")


def test_singlestream():
    result = read("singlestream-valid")
    assert (result.scenario, result.valid, result.reasons, result.errors) == ("singlestream", True, (), ())
    # As the summary of the same test has them, in nanoseconds.
    assert result.metric.name == "p90 estimate"
    assert result.metric.unit == "s"
    assert round(result.metric.value * 1e9) == 1822455
    assert {percent: round(value * 1e9) for percent, value in result.percentiles.items()} == {
        "50.00": 1738515,
        "90.00": 1816416,
        "95.00": 1836071,
        "97.00": 1856798,
        "99.00": 1942137,
        "99.90": 3872593,
    }
    assert (result.queries, result.samples) == (1138, 1138)
    assert result.late is None
    assert result.loadgen == "6.0.17 @ d6147c7eb7"
    assert result.settings["min_duration_ms"] == 2000
    assert result.settings["schedule_rng_seed"] == 16159082839903944936


def test_duration_is_that_of_the_test():
    result = read("singlestream-valid")
    # The test was to last 2 s, and its last query began before they were over; the log's clock has milliseconds.
    assert 2.0 <= result.seconds < 2.1


def test_multistream_that_is_invalid():
    result = read("multistream-invalid")
    assert result.valid is False
    assert result.reasons == (
        "early stopping not satisfied",
        "Only processed 315 queries. Need to process at least 662 queries for early stopping.",
    )
    assert result.metric.value is None  # LoadGen writes 0
    assert (result.queries, result.samples) == (315, 2520)
    assert result.settings["samples_per_query"] == 8


def test_offline():
    result = read("offline-valid")
    assert (result.valid, result.metric.value, result.metric.unit) == (True, 1288.12, "samples/s")
    assert result.percentiles == {}  # one query
    assert (result.queries, result.samples) == (1, result.settings["min_sample_count"])


def test_server():
    result = read("server-valid")
    assert (result.valid, result.metric.value, result.metric.unit) == (True, 326.821, "queries/s")
    assert (result.queries, result.late) == (1001, 0)
    assert round(result.percentiles["99.00"] * 1e9) == 7345962
    assert result.settings["target_latency_ns"] == 15_000_000


def test_server_that_was_late():
    result = read("server-late")
    assert result.valid is False
    assert result.errors == ()
    assert result.late == 24
    assert result.reasons[:2] == ("performance constraints not satisfied", "early stopping not satisfied")
    assert "Reduce target QPS to improve latency." in result.reasons


def test_server_that_was_given_up():
    result = read("server-given-up")
    assert result.valid is False
    assert result.late > 3
    (error,) = result.errors
    assert error.startswith("IssueQueryThread 0 Ending early: Too many outstanding queries.")
    assert result.reasons[0] == "performance constraints not satisfied"


@pytest.mark.parametrize("key", ["result_validity", "effective_scenario", "result_query_count", "power_end"])
def test_log_that_ends_early_is_refused(tmp_path, key):
    lines = (LOGS / "singlestream-valid.txt").read_text().splitlines(keepends=True)
    path = tmp_path / "mlperf_log_detail.txt"
    path.write_text("".join(line for line in lines if f'"{key}"' not in line))
    with pytest.raises(LoadgenError, match=f"has no entry '{key}'"):
        read_detail(path)


@pytest.mark.parametrize(
    "line", [":::MLLOG {", ':::MLLOG {"key": 3}', ':::MLLOG {"key": "power_end", "value": "x", "metadata": {}}']
)
def test_what_is_no_log_is_refused(tmp_path, line):
    path = tmp_path / "mlperf_log_detail.txt"
    path.write_text((LOGS / "singlestream-valid.txt").read_text() + line + "\n")
    with pytest.raises(LoadgenError, match="mlperf_log_detail"):
        read_detail(path)


@pytest.mark.parametrize("number", ["9" * 400, "1e400", "9" * 5000], ids=["400 digits", "1e400", "5000 digits"])
def test_numbers_that_no_float_holds_are_refused(tmp_path, number):
    text = (LOGS / "offline-valid.txt").read_text()
    path = tmp_path / "mlperf_log_detail.txt"
    changed = re.sub(r'("result_samples_per_second", "value": )[0-9.]+', rf"\g<1>{number}", text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(LoadgenError, match=r"mlperf_log_detail\.txt (has an entry|is not a detail log)"):
        read_detail(path)


def test_missing_log_is_an_error(tmp_path):
    with pytest.raises(FileError):
        read_detail(tmp_path / "mlperf_log_detail.txt")


def answer(index, value):
    return f'{{"seq_id": 0, "qsl_idx": {index}, "data": "{value.to_bytes(8, "little", signed=True).hex().upper()}"}}'


def write_answers(path, *pairs):
    path.write_text(f"[\n{','.join(answer(*pair) for pair in pairs)}\n]")
    return path


def test_answers_come_in_the_order_of_the_images(tmp_path):
    path = write_answers(tmp_path / "a.json", (2, 999), (0, -1), (1, 256))
    assert read_answers(path, 3).tolist() == [-1, 256, 999]


@pytest.mark.parametrize(
    "pairs", [((0, 1), (1, 1)), ((0, 1), (1, 1), (1, 1)), ((0, 1), (1, 1), (3, 1)), ((0, 1), (1, 1), (2, 1), (3, 1))]
)
def test_answers_that_are_not_one_for_each_image_are_refused(tmp_path, pairs):
    with pytest.raises(LoadgenError, match=f"{len(pairs)} answers for 3 images"):
        read_answers(write_answers(tmp_path / "a.json", *pairs), 3)


@pytest.mark.parametrize(
    "text", ["", "[", '[{"qsl_idx": 0, "data": "zz"}]', '[{"qsl_idx": 0, "data": "00"}]', '[{"data": "00"}]']
)
def test_damaged_answers_are_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(LoadgenError, match=r"a\.json is not an accuracy log"):
        read_answers(path, 1)


@pytest.mark.parametrize("version", ["6.0.3", "6.0.17"])
def test_an_accuracy_test_is_of_all_samples(tmp_path, version):
    text = (LOGS / "offline-valid.txt").read_text().replace('"PerformanceOnly"', '"AccuracyOnly"')
    lines = [line for line in text.splitlines() if '"effective_accuracy_sample_count"' not in line]
    total = next(line for line in lines if '"qsl_reported_total_count"' in line)
    if version == "6.0.17":  # says it once more
        lines.append(total.replace("qsl_reported_total_count", "effective_accuracy_sample_count"))
    path = tmp_path / "detail.txt"
    path.write_text("\n".join(lines))
    result = read_detail(path)
    assert (result.queries, result.samples, result.metric) == (360, 360, None)
