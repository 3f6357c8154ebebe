"""The terminal table at several widths, over synthetic records."""

import io
import math
import re

import msgspec
import numpy as np
import pytest
from record_factory import (
    ENGINES,
    HOSTILE,
    REFERENCE,
    WAYS,
    SyntheticEngine,
    draw_samples,
    make_full_record,
    make_record,
)
from rich.cells import cell_len
from rich.console import Console

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import MachineState, Way
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.report import wording
from resnet_deploy.report.table import print_table


def table_text(record, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    print_table(record, console)
    return console.file.getvalue()


def headers(text):
    """The two header lines above each rule."""
    lines = text.splitlines()
    return [lines[number - 2 : number] for number, line in enumerate(lines) if line.startswith("─")]


@pytest.fixture(scope="module")
def record():
    return make_record()


@pytest.fixture(scope="module")
def full():
    return make_full_record()


class TestTable:
    @pytest.mark.parametrize(("width", "tables"), [(80, 2), (100, 2), (129, 2), (130, 1), (140, 1), (200, 1)])
    def test_fits_with_names_and_figures_whole(self, record, width, tables):
        text = table_text(record, width)
        assert len(headers(text)) == tables
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text
        for row in statistics.summarize(record):
            (*_, line) = [line for line in text.splitlines() if line.startswith(f"{row.engine.name} ")]
            p50, p90 = (wording.milliseconds(statistics.percentile(row.latency.seconds, one)) for one in (50, 90))
            assert f"{p50}  {p90}" in line
            assert f"{wording.significant(row.throughput)} ({row.best.batch})" in line

    def test_at_80_columns_accuracy_and_speed_are_apart(self, record):
        (_, accuracy), (above, speed) = headers(table_text(record, 80))
        assert accuracy.split() == ["engine", "precision", "MB", "%", "%", "PyTorch", "%", "SQNR", "dB"]
        assert above.split() == ["latency", "ms,", "batch", "1", "images/s", "speed-up"]
        assert speed.split() == ["engine", "p50", "p90", "p99", "(batch)", "PyTorch", "=", "1"]

    def test_names_that_do_not_fit_fold_at_hyphens(self):
        engines = (REFERENCE, SyntheticEngine("resnet152-onnxruntime-int8-percentile-without-the-classifier"))
        text = table_text(make_record(engines), 80)
        width = text.splitlines()[3].index("precision")
        lines = [line[:width].strip() for line in text.splitlines()]
        first = lines.index("pytorch") + 1
        assert "".join(lines[first : first + 3]) == engines[1].name
        assert [line[-1] for line in lines[first : first + 2]] == ["-", "-"]
        assert re.search(r"\d+\.\d \(32\)", text)

    @pytest.mark.parametrize("width", [40, 50, 60])
    def test_narrow_terminals_get_more_tables_not_cut_figures(self, record, width):
        text = table_text(record, width)
        assert len(headers(text)) > 2
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text
        assert re.search(r"2\.\d\d \(2\.\d\d\u20132\.\d\d\)", text)

    def test_figures_by_hand(self, record):
        text = table_text(record, 140)
        line = next(line for line in text.splitlines() if line.startswith("resnet50-onnxruntime-int8"))
        answers, labels = record.engines[2].outputs.top5, record.dataset.labels
        top1 = sum(best[0] == label for best, label in zip(answers, labels, strict=True)) / 4
        top5 = sum(label in best for best, label in zip(answers, labels, strict=True)) / 4
        pairs = zip(answers, record.engines[0].outputs.top5, strict=True)
        agreement = sum(best[0] == other[0] for best, other in pairs) / 4
        assert top1 < top5 < agreement < 100
        assert line.split()[:7] == [
            *("resnet50-onnxruntime-int8", "int8", "26.1"),
            *(f"{top1:.2f}", f"{top5:.2f}", f"{agreement:.2f}", "31.5"),
        ]
        reference = next(line for line in text.splitlines() if line.startswith("pytorch "))
        assert reference.split()[5:7] == ["\N{EN DASH}", "\N{EN DASH}"]
        assert reference.split()[-1] == "1"

    def test_conditions_stand_below(self, record):
        text = " ".join(table_text(record, 200).split())
        for said in (
            "host: arrays in host memory in, logits in host memory out; image decoding not included",
            "2 threads per engine on the CPU; up to 10 untimed calls first",
            "µs at batch 1,",
            "as the null runner shows",
            "synthetic-set: 400 images, labelled, SHA-256 dddddddddddd",
            "Synthetic CPU 9000, 8 cores; avx2, avx512_vnni; INT8 dot product: yes; memory 32 GiB; no GPU (libcuda",
            "torch 0.0.1; onnxruntime 0.0.2",
            "not run resnet50-tensorrt-rtx-fp16 (tensorrt-rtx fp16, 51.3 MB): no NVIDIA GPU: libcuda",
            "PyTorch's in a typical round, with intervals wide enough for all 3 of them to hold together with 95 %",
        ):
            assert said in text
        assert "warnings" not in text
        assert "no labels" not in text

    def test_verdicts_are_told(self, record):
        text = " ".join(table_text(record, 132).split())
        assert (
            "verdicts resnet50-onnxruntime-fp32: faster than PyTorch; top-1: no significant difference (0 images"
            in text
        )
        assert re.search(
            r"-int8: faster than PyTorch; top-1: worse \(\d+ images gained, \d+ lost, McNemar's exact p = 0", text
        )
        assert "pytorch: faster" not in text
        unlabelled = " ".join(table_text(make_record(labelled=False), 132).split())
        assert "verdicts resnet50-onnxruntime-fp32: faster than PyTorch resnet50" in unlabelled
        assert "verdicts" not in table_text(make_record(reference=""), 132)

    def test_too_few_rounds_have_no_interval(self):
        few, enough = (" ".join(table_text(make_record(rounds=n, calls=40), 132).split()) for n in (6, 7))
        said = "too few rounds for a verdict in speed, which takes 7; top-1"
        assert few.count(said) == few.count("(too few rounds)") == len(ENGINES) - 1
        assert "too few rounds" not in enough

    def test_a_busy_machine_is_told(self, record):
        busy = tuple(MachineState(round=number, seconds=1.0, elsewhere=0.2) for number in range(10))
        text = " ".join(table_text(msgspec.structs.replace(record, machine=busy), 132).split())
        assert "warnings other processes took 20% of the cores' time" in text

    def test_notes_of_engines_are_told(self, record):
        notes = ("not called by 2 at once: it takes one caller", "steers \x1b[31m")
        engines = tuple(msgspec.structs.replace(one, notes=notes) for one in record.engines[:2])
        text = " ".join(table_text(msgspec.structs.replace(record, engines=engines), 132).split())
        told = r"not called by 2 at once: it takes one caller; steers \x1b[31m"
        assert f"notes pytorch: {told} resnet50-onnxruntime-fp32: {told}" in text
        assert " notes " not in " ".join(table_text(record, 132).split())

    @pytest.mark.parametrize("width", [80, 140])
    def test_paces_have_columns(self, record, width):
        def paced(engine, *rates):
            (plain, *_) = engine.latency
            seconds = tuple(2 * s for s in plain.seconds)
            others = (msgspec.structs.replace(plain, seconds=seconds, offered=r, wall=(1.0,) * 10) for r in rates)
            return msgspec.structs.replace(engine, latency=(*engine.latency, *others))

        engines = (paced(record.engines[0], 20.0), paced(record.engines[1], 20.0, 30.0), record.engines[2])
        text = table_text(msgspec.structs.replace(record, engines=engines), width)
        tables = headers(text)
        assert max(map(cell_len, text.splitlines())) <= width
        said = [" ".join(above.split()) for above, _ in tables]
        both = " ".join(line for line in said if "calls/s" in line)
        assert both == "ms at 20.0 calls/s, batch 1, 1 caller ms at 30.0 calls/s, batch 1, 1 caller"
        ordered = sorted(record.engines[1].latency[0].seconds)
        p50, p99 = (wording.milliseconds(2 * ordered[rank]) for rank in (99, 197))
        (*_, line) = (one for one in text.splitlines() if one.startswith("resnet50-onnxruntime-fp32 "))
        assert line.split()[-2:] == [p50, p99]
        (*_, line) = (one for one in text.splitlines() if one.startswith("pytorch "))
        assert line.split()[-2:] == [wording.NOTHING] * 2
        assert "calls/s" not in table_text(record, width)

    def test_warnings_name_their_engine(self):
        text = " ".join(table_text(make_record(rounds=1), 140).split())
        assert "warnings pytorch: p99 at batch 1, 8, 32 is simply the slowest of fewer than 100 calls; " in text
        assert text.count("intervals of times and rates rest on 1 round at batch") == len(ENGINES)

    def test_without_labels(self):
        text = table_text(make_record(labelled=False), 140)
        assert "top-1" not in text
        assert "agreement" in headers(text)[0][0]
        assert "no labels: agreement with PyTorch only" in text

    def test_without_images(self):
        text = table_text(make_record(images=0), 140)
        assert not re.search("top-1|agreement|SQNR", text)
        assert "no images: latencies are taken on synthetic ones, and there is no accuracy" in text
        assert "speed-up" in headers(text)[0][0]

    def test_without_reference(self):
        text = table_text(make_record(reference=""), 140)
        assert "top-1" in headers(text)[0][0]
        assert not re.search("agreement|SQNR|speed-up", text)
        unlabelled = table_text(make_record(reference="", labelled=False), 140)
        assert "no labels: no accuracy without a reference" in unlabelled

    def test_without_any_engine(self):
        text = table_text(make_record((), reference=""))
        assert "no engine could be run here" in text
        assert "not run" in text

    def test_engines_of_different_smallest_batches_say_so_in_brackets(self, record):
        last = msgspec.structs.replace(record.engines[-1], latency=record.engines[-1].latency[1:])
        text = table_text(msgspec.structs.replace(record, engines=(*record.engines[:-1], last)), 160)
        assert "latency ms (batch)" in headers(text)[0][0]
        assert re.search(r"28\.\d \(1\)", text)
        assert re.search(r"6\d\.\d \(8\)", text)

    def test_no_colour_unless_asked_for(self, record):
        assert "\x1b" not in table_text(record)
        assert "\x1b" in table_text(record, force_terminal=True, color_system="standard")

    def test_names_cannot_steer_the_terminal(self):
        engines = (REFERENCE, SyntheticEngine(HOSTILE))
        text = table_text(make_record(engines, dataset_name=HOSTILE, skipped=(HOSTILE,)), 250)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert text.count(r"[red]\x1b[31m\u202e") >= 3

    def test_skipped_images_are_told(self):
        text = table_text(make_record(skipped=("a.jpg", "b.jpg", "c.jpg", "d.jpg")), 140)
        assert "4 corrupt left out at your request: a.jpg, b.jpg, c.jpg, ..." in text

    def test_gpus_are_told(self, record):
        probe = GpuProbe((Gpu("Synthetic GPU", "9.0", 80 * 2**30),), "13.0", "", "999.0")
        environment = msgspec.structs.replace(record.environment, gpu=probe)
        text = table_text(msgspec.structs.replace(record, environment=environment), 200)
        assert "; Synthetic GPU, compute capability 9.0, 80 GiB; CUDA 13.0, driver 999.0" in " ".join(text.split())


class TestWays:
    @pytest.mark.parametrize(("width", "tables"), [(80, 3), (132, 3), (140, 2)])
    def test_fits_with_every_figure_whole(self, full, width, tables):
        text = table_text(full, width)
        assert len(headers(text)) == tables
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text
        above, below = headers(text)[-1]
        assert above.split() == ["p50", "ms,", "batch", "1,", "1", "caller", "images/s", "(batch)", "by", "callers"]
        assert below.split() == ["engine", "host", "device", "end", "to", "end", "1", "2", "4"]

    def test_figures_by_hand(self, full):
        lines = [line for line in table_text(full, 200).splitlines() if line.startswith("resnet50-openvino-int8 ")]
        samples = {one.way: one for one in full.engines[3].latency}
        scopes = [sorted(samples[Way(1, scope)].seconds)[99] for scope in ("host", "device", "end_to_end")]
        expected = [wording.milliseconds(seconds) for seconds in scopes]
        rates = {callers: 8 * 200 * callers / sum(samples[Way(8, "host", callers)].wall) for callers in (2, 4)}
        assert lines[1].split()[1:4] == expected
        assert lines[1].split()[6:] == [word for rate in rates.values() for word in (wording.significant(rate), "(8)")]
        assert f"{wording.significant(rates[2])} (8\N{MULTIPLICATION SIGN}2)" in lines[0]

    def test_nothing_varied_needs_no_second_table(self, record):
        assert "callers" not in table_text(record, 140)
        assert len(headers(table_text(record, 140))) == 1

    def test_peers_stand_apart_and_say_what_they_are(self, full):
        text = table_text(full, 140)
        lines = text.splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("onnxruntime-plain "))
        assert not lines[first - 1].strip()
        assert lines[first - 2].startswith("resnet50-openvino-int8 ")
        assert "peers      onnxruntime-plain: InferenceSession with default options" in text
        assert "peers" not in table_text(make_record(), 140)

    def test_harness_is_told_for_single_callers_on_the_host(self, full):
        several = tuple(draw_samples(np.random.default_rng(0), ENGINES[0], way) for way in WAYS)
        text = wording.harness(msgspec.structs.replace(full, harness=several))
        assert [text.count(f"at batch {batch}") for batch in (1, 8, 32)] == [1, 1, 1]


class TestWording:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            *((0, "0"), (0.0123, "0.0123"), (0.3326, "0.333"), (9.6643, "9.66"), (27.71, "27.7"), (418.2, "418")),
            *((1252.4, "1,252"), (83107.2, "83,107"), (-1.5, "-1.50")),
            *((math.inf, "∞"), (-math.inf, "-∞"), (math.nan, "NaN")),
        ],
    )
    def test_significant(self, value, expected):
        assert wording.significant(value) == expected
