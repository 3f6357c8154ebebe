"""The schema of benchmark records, and records of earlier versions: read, valid, and with the figures they had."""

import json
from pathlib import Path

import msgspec
import pytest
from record_factory import make_record

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import SCHEMA_VERSION, MachineState, read_record, write_record
from resnet_deploy.bench.schema import record_schema
from resnet_deploy.errors import FileError

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "bench-record.schema.json"


def is_bench_record(path):
    """Other benchmarks write other records into the same folder."""
    found = json.loads(path.read_text())
    return isinstance(found, dict) and "warmup_calls" in found and "harness" in found


COMMITTED = [path for path in sorted((ROOT / "benchmarks" / "results").rglob("*.json")) if is_bench_record(path)]
OF_VERSION_1 = [path for path in COMMITTED if json.loads(path.read_text())["schema_version"] == 1]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def as_json(record):
    return json.loads(msgspec.json.encode(record))


def test_the_file_is_what_the_code_generates():
    assert SCHEMA.read_bytes() == record_schema(), (
        "run `python -m resnet_deploy.bench.schema > docs/bench-record.schema.json`"
    )


class TestValidation:
    def test_committed_records_are_valid(self, validator):
        assert len(COMMITTED) >= 2
        for path in COMMITTED:
            validator.validate(json.loads(path.read_text()))

    def test_fresh_records_are_valid(self, validator):
        record = msgspec.structs.replace(make_record(), machine=(MachineState(round=0, seconds=1.0),))
        validator.validate(as_json(record))
        validator.validate(as_json(make_record(images=0)))

    @pytest.mark.parametrize(
        ("change", "where"),
        [
            (lambda data: data.pop("seed"), "seed"),
            (lambda data: data.update(threads="two"), "two"),
            (lambda data: data["engines"][0].update(latency=[]), "non-empty|too short"),
            (lambda data: data["engines"][0]["latency"][0].update(scope="guess"), "guess"),
            (lambda data: data["engines"][0]["latency"][0].update(batch=0), "minimum"),
        ],
        ids=["missing", "type", "no latency", "scope", "batch"],
    )
    def test_what_is_no_record_is_not(self, validator, change, where):
        data = as_json(make_record())
        validator.validate(data)
        change(data)
        with pytest.raises(jsonschema.ValidationError, match=where):
            validator.validate(data)


class TestVersions:
    def test_fields_that_nobody_knows_are_ignored(self, tmp_path, validator):
        record = make_record()
        data = as_json(record)
        data["weather"] = data["engines"][0]["weather"] = "fair"
        validator.validate(data)
        (tmp_path / "bench.json").write_text(json.dumps(data))
        assert read_record(tmp_path / "bench.json") == record

    def test_the_next_version_is_refused_by_its_number(self, tmp_path):
        data = as_json(make_record()) | {"schema_version": SCHEMA_VERSION + 1}
        (tmp_path / "bench.json").write_text(json.dumps(data))
        with pytest.raises(FileError, match=f"has schema version {SCHEMA_VERSION + 1}") as refused:
            read_record(tmp_path / "bench.json")
        assert refused.value.hint == "read it with a newer resnet-deploy"

    def test_records_of_version_1_survive_being_written_again(self, tmp_path):
        assert len(OF_VERSION_1) >= 2
        for path in OF_VERSION_1:
            record = read_record(path)
            write_record(record, tmp_path / path.name)
            assert read_record(tmp_path / path.name) == record

    @pytest.mark.parametrize(
        ("name", "p50", "p90", "p99", "rate", "speedup"),
        # The table in benchmarks/README.md as it was printed when version 1 was current; speed-ups were then the ratio
        # of totals, which lies in the interval of a typical round's.
        [
            ("resnet50-fp16-onnxruntime", 66.0, 75.9, 99.6, 17.0, 1.50),
            ("resnet50-fp32-onnxruntime", 65.0, 73.9, 79.1, 15.3, 1.36),
            ("resnet50-int8-onnxruntime", 34.4, 38.1, 51.4, 33.4, 2.96),
        ],
    )
    def test_of_version_1_have_the_figures_they_had(self, name, p50, p90, p99, rate, speedup):
        record = read_record(ROOT / "benchmarks/results/resnet50-20261125T011307Z.json")
        (row,) = (row for row in statistics.summarize(record) if row.engine.name == name)
        # Half of the last digit that is printed.
        latencies = [1e3 * statistics.percentile(row.latency.seconds, percent) for percent in (50, 90, 99)]
        assert latencies == pytest.approx([p50, p90, p99], rel=5e-3)
        assert (row.throughput, row.best.batch) == (pytest.approx(rate, abs=0.05), 8)
        assert row.speedup.low < speedup < row.speedup.high
        assert row.speedup.value == pytest.approx(speedup, rel=0.02)  # a tenth of what the interval is wide
