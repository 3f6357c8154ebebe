"""What LoadGen measured, in the terminal; and its record on the disk."""

import io
import json

import msgspec
import pytest
from click.testing import CliRunner
from loadgen_factory import ENGINE, logged, make_record, run_of
from rich.cells import cell_len
from rich.console import Console

from resnet_deploy.bench.loadgen_records import (
    Peak,
    RulesVerdict,
    read_loadgen_record,
)
from resnet_deploy.bench.record_files import encode
from resnet_deploy.cli import main
from resnet_deploy.errors import FileError
from resnet_deploy.report import wording
from resnet_deploy.report.loadgen_table import DISCLAIMER, print_loadgen

TESTS = (
    run_of("singlestream-valid", engine="null", purpose="overhead"),
    run_of("offline-valid", engine="null", purpose="overhead"),
    run_of("singlestream-valid"),
    run_of("multistream-invalid"),
    run_of("offline-valid"),
    run_of("server-given-up"),
)


def text_of(record, width=200):
    console = Console(file=io.StringIO(), width=width)
    print_loadgen(record, console)
    return console.file.getvalue()


def flat(text):
    return " ".join(text.split())


def test_each_test_has_a_line_and_the_overhead_none():
    lines = [line for line in text_of(make_record(TESTS)).splitlines() if line.startswith(f"{ENGINE}  ")]
    assert [line.split(maxsplit=1)[1].split("  ")[0].strip() for line in lines] == [
        "SingleStream",
        "MultiStream (8)",
        "Offline, batch 8",
        "Server, 5000/s, 15.0 ms, batch 8",
    ]
    assert [line.split()[-1] for line in lines] == ["VALID", "INVALID", "VALID", "INVALID"]
    assert "p90 estimate 1.82 ms" in lines[0]
    assert "1.74" in lines[0]
    assert f"p99 estimate {wording.NOTHING}" in lines[1]
    assert "1,288 samples/s" in lines[2]


def test_reasons_overhead_and_disclaimer_are_said():
    text = flat(text_of(make_record(TESTS)))
    assert f"{ENGINE}, MultiStream: early stopping not satisfied; Only processed 315 queries." in text
    assert "Too many outstanding queries" in text
    assert "LoadGen and our own code cost 1,739 µs per query at p50" in text
    assert "776 µs per image (Offline)" in text  # 1 / 1,288.12
    assert DISCLAIMER in text
    assert "since v5.1" in text
    assert "by LoadGen 6.0.17" in text


@pytest.mark.parametrize("missing", [("50.00",), ("99.00",), ("50.00", "99.00")], ids=str)
def test_overhead_without_its_percentiles_is_not_measured(missing):
    alone = logged("singlestream-valid")
    kept = {percent: value for percent, value in alone.percentiles.items() if percent not in missing}
    test = run_of(
        "singlestream-valid", engine="null", purpose="overhead", result=msgspec.structs.replace(alone, percentiles=kept)
    )
    text = flat(text_of(make_record((test, *TESTS[1:]))))
    assert "not measured" in text
    assert "not measured" not in flat(text_of(make_record(TESTS)))


def test_server_is_not_spoken_of_where_there_is_none():
    assert "v5.1" not in text_of(make_record(TESTS[:5]))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_fits_and_loses_no_figure(width):
    text = text_of(make_record(TESTS), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    for figure in ("1.74", "1.94", "1,138", "VALID", "INVALID"):
        assert figure in text


def test_verdicts():
    verdict = RulesVerdict(
        engine=ENGINE, scenario="offline", accuracy=0.98, target=0.97, reference="99 % of 98 %", unmet=()
    )
    failed = msgspec.structs.replace(verdict, scenario="singlestream", unmet=("one", "two"))
    text = flat(text_of(make_record(TESTS[:5], verdicts=(verdict, failed))))
    assert (
        f"{ENGINE}, Offline: met, as far as they are checked; accuracy 98.00 %, target 97.00 % (99 % of 98 %)" in text
    )
    assert f"{ENGINE}, SingleStream: not met; accuracy 98.00 %, target 97.00 % (99 % of 98 %) - one - two" in text
    assert "not checked: whether the weights are those of MLPerf's reference model" in text


def test_peaks():
    found = Peak(engine=ENGINE, latency_s=0.015, tolerance=0.02, seconds=10, queries=1001, rate=314.8)
    missing = Peak(
        engine="slow", latency_s=0.015, tolerance=0.02, seconds=10, queries=1001, rate=None, reason="it is slow"
    )
    tests = [run_of("server-valid", purpose="probe"), run_of("server-late", purpose="probe")]
    text = flat(text_of(make_record(tests, peaks=(found, missing))))
    # Both logs have LoadGen's draw of a thousand or so arrivals, which is no thousand to the second.
    assert "fall due at 1.039 times the rate" in text
    held, failed = (f"{logged(name).settings['target_qps']:.4g}" for name in ("server-valid", "server-late"))
    assert (
        "314.8 queries/s with p99 within 15.0 ms: held twice in succession, and failed twice at most 2% above" in text
    )
    assert f"2 probes of at least 10 s and 1,001 queries: {held} yes, {failed} no" in text
    assert "slow: no rate found with p99 within 15.0 ms: it is slow" in text


def test_names_that_steer_the_terminal_are_printed():
    text = text_of(make_record([run_of("multistream-invalid", engine="a\x1b[2Jb")]))
    assert "\x1b[2J" not in text
    assert r"a\x1b[2Jb" in text


def test_records_are_read_as_they_were_written(tmp_path):
    record = make_record(TESTS, data=None)
    path = tmp_path / "record.json"
    path.write_bytes(encode(record))
    assert read_loadgen_record(path) == record
    assert json.loads(path.read_bytes())["schema_version"] == 1


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "loadgen", "schema_version": 1}', "\xff"])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match="is no record of `loadgen`"):
        read_loadgen_record(path)


def test_a_later_record_is_refused(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"kind": "loadgen", "schema_version": 2}')
    with pytest.raises(FileError, match="has schema version 2"):
        read_loadgen_record(path)


def test_the_command_prints_the_table_of_a_record_and_has_no_page_of_it(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(encode(make_record(TESTS, data=None)))
    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 0, result.output
    assert DISCLAIMER in flat(result.stdout)
    refused = CliRunner().invoke(main, ["report", str(path), "--html", str(tmp_path / "page.html")])
    assert refused.exit_code == 2
    assert "--html has no effect with a record of `loadgen`" in refused.stderr
    assert not (tmp_path / "page.html").exists()
