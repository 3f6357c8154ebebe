"""The terminal table and the HTML page, over synthetic records."""

import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import msgspec
import pytest
from record_factory import ENGINES, REFERENCE, SyntheticEngine, make_record
from rich.cells import cell_len
from rich.console import Console

pytest.importorskip("plotly", reason="plotly draws the page")
pytest.importorskip("jinja2", reason="jinja2 fills in the page")

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.environment import Gpu, GpuProbe
from resnet_deploy.report import plots, wording
from resnet_deploy.report.html import render_html
from resnet_deploy.report.table import print_table

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>[red]\x1b[31m\u202e&amp;{{ 7*7 }}"
PLOTS = ["plot-accuracy", "plot-latency", "plot-batches"]


def table_text(record, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    print_table(record, console)
    return console.file.getvalue()


def headers(text):
    """The two header lines above each rule."""
    lines = text.splitlines()
    return [lines[number - 2 : number] for number, line in enumerate(lines) if line.startswith("─")]


class Page(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.texts, self.scripts = [], {}, [], []
        self._inside = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids[attributes["id"]] = (tag, attributes)
        if tag in ("script", "style", "title"):
            self._inside.append(attributes | {"tag": tag, "text": ""})

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1]["tag"] == tag:
            self.scripts.append(self._inside.pop())

    def handle_data(self, data):
        if self._inside:
            self._inside[-1]["text"] += data
        else:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def script(self, element_id):
        (found,) = [script for script in self.scripts if script.get("id") == element_id]
        return found["text"]

    @property
    def figures(self):
        return json.loads(self.script("figures"))


@pytest.fixture(scope="module")
def record():
    return make_record()


@pytest.fixture(scope="module")
def page(record):
    return Page(render_html(record))


class TestTable:
    @pytest.mark.parametrize(("width", "tables"), [(80, 2), (100, 2), (129, 2), (130, 1), (140, 1), (200, 1)])
    def test_fits_with_names_and_figures_whole(self, record, width, tables):
        text = table_text(record, width)
        assert len(headers(text)) == tables
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text
        for row in statistics.summarize(record):
            (*_, line) = [line for line in text.splitlines() if line.startswith(f"{row.engine.name} ")]
            assert f"{wording.milliseconds(row.p50_s)}  {wording.milliseconds(row.p90_s)}" in line
            assert f"{wording.significant(row.throughput)} ({row.best_batch})" in line

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
            "2 threads per engine on the CPU; 10 untimed calls first",
            "µs at batch 1,",
            "as the null runner shows",
            "synthetic-set: 400 images, labelled, SHA-256 dddddddddddd",
            "Synthetic CPU 9000, 8 cores; avx2, avx512_vnni; INT8 dot product: yes; memory 32 GiB; no GPU (libcuda",
            "torch 0.0.1; onnxruntime 0.0.2",
            "not run resnet50-tensorrt-rtx-fp16 (tensorrt-rtx fp16, 51.3 MB): no NVIDIA GPU: libcuda",
            "speed-up: images/s over PyTorch's, with the 95 % interval",
        ):
            assert said in text
        assert "warnings" not in text
        assert "no labels" not in text

    def test_warnings_name_their_engine(self):
        text = " ".join(table_text(make_record(rounds=1), 140).split())
        assert "warnings pytorch: p99 of 20 calls at batch 1 is simply the slowest call; " in text
        assert text.count("intervals rest on 1 round at batch") == len(ENGINES)

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


class TestPage:
    def test_plots_have_their_places(self, page):
        assert list(page.figures) == PLOTS
        for name in PLOTS:
            assert page.ids[name] == ("div", page.ids[name][1])
            assert page.ids[name][1]["class"] == "plot"

    def test_loads_nothing(self, page):
        # Plotly's code names addresses in its strings; what counts is what a browser would fetch.
        loading = [
            (tag, name, value)
            for tag, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href")
        ]
        assert loading == [("a", "href", "#record")]
        assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
        (style,) = [script["text"] for script in page.scripts if script["tag"] == "style"]
        assert "url(" not in style
        assert "@import" not in style

    def test_forbids_loading(self, page):
        (policy,) = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") is not None]
        assert policy.startswith("default-src 'none';")
        assert "http" not in policy

    def test_offers_no_upload(self, page):
        (code,) = [script["text"] for script in page.scripts if "Plotly.newPlot(id" in script["text"]]
        assert 'modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]' in code

    def test_raw_samples_read_back(self, record, page):
        assert page.ids["record"][1]["type"] == "application/json"
        read = msgspec.json.decode(page.script("record"), type=BenchRecord)
        assert read == record
        assert read != make_record(batches=(1, 8))
        assert page.ids["download"][1]["download"] == "bench.json"

    def test_shows_every_figure_with_its_interval(self, record, page):
        rows = statistics.summarize(record)
        ends = wording.limits(rows[2].speedup, wording.ratio)
        top1 = statistics.share_interval(rows[2].accuracy.top1, 400)
        for said in (
            f"{wording.percent(top1.value)} {wording.limits(top1, wording.percent)}",
            f"{wording.points(rows[2].accuracy.top1_change.value)}",
            f"{wording.ratio(rows[2].speedup.value)} {ends}",
            "latency ms, batch 1",
            "Synthetic CPU 9000, 8 cores · 2026-01-02 03:04 UTC",
            "resnet50-tensorrt-rtx-fp16",
            "no NVIDIA GPU: libcuda.so.1 not found: no NVIDIA driver",
            "host: arrays in host memory in",
            "INT8 dot product: yes",
            "Fastest: resnet50-openvino-int8",
        ):
            assert said in page.text
        assert "Warnings" not in page.text

    def test_warnings(self):
        text = Page(render_html(make_record(rounds=1))).text
        assert "Warnings pytorch: p99 of 20 calls at batch 1 is simply the slowest call" in text

    def test_hostile_names_stay_text(self, page):
        missing = make_record().not_run[0]
        record = make_record(
            (REFERENCE, SyntheticEngine(HOSTILE, HOSTILE, HOSTILE)),
            dataset_name=HOSTILE,
            skipped=(HOSTILE,),
            not_run=(msgspec.structs.replace(missing, name=HOSTILE, reason=HOSTILE, backend=HOSTILE),),
        )
        hostile = Page(render_html(record))
        harmless = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>[red]\\x1b[31m\\u202e&amp;{{ 7*7 }}"
        tags = [tag for tag, _ in hostile.tags]
        assert tags.count("script") == [tag for tag, _ in page.tags].count("script") == 4
        assert "img" not in tags
        assert not any("onerror" in attributes for _, attributes in hostile.tags)
        assert hostile.text.count(harmless) >= 6
        assert msgspec.json.decode(hostile.script("record"), type=BenchRecord) == record
        # Plotly reads tags in text; what it gets must be escaped once more.
        names = [trace["name"] for figure in hostile.figures.values() for trace in figure["data"] if "name" in trace]
        names += [one["text"] for one in hostile.figures["plot-accuracy"]["layout"]["annotations"]]
        assert len(names) == 8
        assert not any("<" in name for name in names)
        assert sum("&lt;script&gt;" in name for name in names) == 4

    def test_a_hostile_reference_is_escaped_in_the_axis_title(self):
        engines = (SyntheticEngine(HOSTILE), ENGINES[1])
        hostile = Page(render_html(make_record(engines, reference=HOSTILE, labelled=False)))
        assert "<" not in hostile.figures["plot-accuracy"]["layout"]["yaxis"]["title"]["text"]
        assert "img" not in [tag for tag, _ in hostile.tags]

    @pytest.mark.parametrize(
        ("kwargs", "drawn", "present", "absent"),
        [
            ({}, PLOTS, ["top-1", "agreement", "speed-up"], ["no labels"]),
            ({"labelled": False}, PLOTS, ["agreement", "No labels: agreement with PyTorch only."], ["top-1 "]),
            ({"images": 0}, PLOTS[1:], ["speed-up", "No images: latencies"], ["top-1", "agreement"]),
            ({"reference": ""}, PLOTS, ["top-1", "images/s"], ["agreement", "speed-up", "SQNR"]),
            ({"reference": "", "labelled": False}, PLOTS[1:], ["No labels: no accuracy"], ["agreement", "top-1"]),
            ({"engines": (), "reference": ""}, [], ["No engine could be run here."], ["Results", "Plots"]),
        ],
        ids=["labelled", "unlabelled", "no-data", "no-reference", "neither", "no-engine"],
    )
    def test_variants(self, kwargs, drawn, present, absent):
        variant = Page(render_html(make_record(**kwargs)))
        assert list(variant.figures) == drawn
        assert [name for name in PLOTS if name in variant.ids] == drawn
        assert [said for said in present if said not in variant.text] == []
        assert [said for said in absent if said in variant.text] == []

    def test_logits_that_are_not_finite(self):
        record = make_record((REFERENCE, SyntheticEngine("overflowing-fp16", "tensorrt", "fp16", noise=math.nan)))
        page = Page(render_html(record))
        assert "overflowing-fp16: 400 of 400 images gave logits that are NaN or infinite" in page.text
        assert "NaN" in page.text
        assert msgspec.json.decode(page.script("record"), type=BenchRecord).engines[1].outputs.noise[0] is None


class TestPlots:
    @pytest.mark.parametrize(
        ("points", "front"),
        [
            ([(1, 1)], [(1, 1)]),
            ([(1, 3), (2, 2), (3, 1)], [(1, 3), (2, 2), (3, 1)]),
            ([(1, 3), (2, 2), (3, 2.5)], [(1, 3), (3, 2.5)]),
            ([(1, 1), (2, 1), (2, 0.5)], [(2, 1)]),
            ([(2, 1), (2, 1)], [(2, 1)]),
        ],
    )
    def test_pareto_front(self, points, front):
        assert plots.pareto_front(points) == front

    def test_front_is_drawn(self, record, page):
        trace = page.figures["plot-accuracy"]["data"][0]
        assert trace["line"]["shape"] == "vh"
        rows = statistics.summarize(record)
        # PyTorch is as accurate as the FP32 engine and slower: not on the front.
        assert trace["x"] == pytest.approx([row.throughput for row in rows[1:]])
        assert trace["y"] == pytest.approx([100 * row.accuracy.top1 for row in rows[1:]])

    def test_tail_curve_by_hand(self, record):
        samples = msgspec.structs.replace(record.harness[0], seconds=(3.0, 1.0, 2.0, 4.0), rounds=(0,) * 4)
        assert plots.tail_curve(samples) == [(1.0, 1.0), (2.0, 0.75), (3.0, 0.5), (4.0, 0.25)]

    def test_tail_curve_keeps_the_tail_of_many_calls(self, record):
        seconds = tuple(float(number) for number in range(1, 10_001))
        samples = msgspec.structs.replace(record.harness[0], seconds=seconds, rounds=(0,) * 10_000)
        curve = plots.tail_curve(samples)
        assert 200 < len(curve) <= 400
        assert curve[0] == (1.0, 1.0)
        assert [time for time, _ in curve[-20:]] == [float(number) for number in range(9_981, 10_001)]
        assert all(share == pytest.approx((10_001 - time) / 10_000) for time, share in curve)

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (9.4, 11.2, ["9.5", "10", "10.5", "11"]),
            (9.0, 45.0, ["10", "15", "20", "30", "40"]),
            (0.25, 44.0, ["0.5", "1", "2", "5", "10", "20"]),
            (30.0, 120_000.0, ["100", "1,000", "10,000", "100,000"]),
        ],
    )
    def test_log_ticks(self, low, high, expected):
        assert plots.log_ticks(low, high)["ticktext"] == expected

    def test_log_ticks_of_equal_values(self):
        assert plots.log_ticks(2.0, 2.0)["tickvals"] == [2.0]

    def test_labels_evade_each_other(self):
        assert plots.place_labels([(0.1, 0.5)], [10]) == [(1, 0)]
        assert plots.place_labels([(0.9, 0.5)], [10]) == [(-1, 17)]
        crowded = plots.place_labels([(0.1, 0.50), (0.1, 0.51), (0.1, 0.52)], [20, 20, 20])
        heights = sorted(330 * y + up for y, (_, up) in zip((0.50, 0.51, 0.52), crowded, strict=True))
        assert min(b - a for a, b in itertools.pairwise(heights)) >= 17

    def test_error_bars_stay_inside_the_plot(self):
        figure = Page(render_html(make_record(rounds=2))).figures["plot-batches"]
        highest = max(
            rate + up
            for trace in figure["data"]
            for rate, up in zip(trace["y"], trace["error_y"]["array"], strict=True)
        )
        assert highest > max(rate for trace in figure["data"] for rate in trace["y"])
        assert figure["layout"]["yaxis"]["range"][1] > highest

    def test_full_agreement_leaves_no_room_for_more(self):
        figure = Page(render_html(make_record(ENGINES[:2], labelled=False))).figures["plot-accuracy"]
        assert [trace["y"][0] for trace in figure["data"]] == [100.0] * 3
        low, high = figure["layout"]["yaxis"]["range"]
        assert low <= 99.5
        assert 100 < high < 100.1  # no tick above 100 %

    def test_engines_look_different(self, record):
        looks = plots.styles(record)
        assert len({look.colour for look in looks}) == len(ENGINES)
        assert looks[0].dash != looks[2].dash
        assert looks[0].symbol != looks[2].symbol

    def test_throughputs_far_apart_go_on_a_logarithmic_axis(self):
        fast = SyntheticEngine("synthetic-fast", "tensorrt", "int8", call_s=1e-4, image_s=1e-5)
        figures = Page(render_html(make_record((REFERENCE, fast)))).figures
        assert figures["plot-accuracy"]["layout"]["xaxis"]["type"] == "log"
        near = Page(render_html(make_record())).figures
        assert near["plot-accuracy"]["layout"]["xaxis"].get("type") != "log"
        assert near["plot-accuracy"]["layout"]["xaxis"]["range"][0] == 0


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

    def test_printable(self):
        assert wording.printable("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"
        assert wording.printable("Grüße 模型") == "Grüße 模型"
