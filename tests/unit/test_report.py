"""The HTML page and its plots, over synthetic records."""

import itertools
import json
import math
import re
from html.parser import HTMLParser

import msgspec
import pytest
from record_factory import ENGINES, HOSTILE, REFERENCE, SyntheticEngine, make_full_record, make_record

pytest.importorskip("plotly", reason="plotly draws the page")
pytest.importorskip("jinja2", reason="jinja2 fills in the page")

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import BenchRecord
from resnet_deploy.report import figures, latency_plots, plots, wording
from resnet_deploy.report.html import render_html

PLOTS = ["plot-accuracy", "plot-batches-host", "plot-distribution", "plot-latency", "plot-rounds"]


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


def strings(value):
    """Every text within JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


@pytest.fixture(scope="module")
def record():
    return make_record()


@pytest.fixture(scope="module")
def page(record):
    return Page(render_html(record))


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
        assert ("a", "href", "#record") in loading
        assert {value[0] for _, _, value in loading} == {"#"}
        assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
        (style,) = [script["text"] for script in page.scripts if script["tag"] == "style"]
        assert "url(" not in style
        assert "@import" not in style

    def test_forbids_loading(self, page):
        (policy,) = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") is not None]
        assert policy.startswith("default-src 'none';")
        assert "http" not in policy

    def test_offers_no_upload(self, page):
        (code,) = [script["text"] for script in page.scripts if "Plotly.newPlot(element" in script["text"]]
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
        assert "Warnings pytorch: p99 at batch 1, 8, 32 is simply the slowest of fewer than 100 calls" in text

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
        assert tags.count("script") == [tag for tag, _ in page.tags].count("script") == 6
        assert "img" not in tags
        assert not any("onerror" in attributes for _, attributes in hostile.tags)
        assert hostile.text.count(harmless) >= 6
        assert msgspec.json.decode(hostile.script("record"), type=BenchRecord) == record
        # Plotly reads tags in text; what it gets must be escaped once more.
        names = [trace["name"] for figure in hostile.figures.values() for trace in figure["data"] if "name" in trace]
        names += [one["text"] for one in hostile.figures["plot-accuracy"]["layout"]["annotations"]]
        assert len(names) == 12
        assert not any("<" in name for name in names)
        assert sum("&lt;script&gt;" in name for name in names) == 6

    def test_hostile_text_from_everywhere_stays_text(self):
        record = make_full_record(dataset_name=HOSTILE)
        layers = record.engines[1].layers
        bad_layers = msgspec.structs.replace(
            layers,
            profiler=HOSTILE,
            layers=tuple(msgspec.structs.replace(one, name=HOSTILE + one.name, kind=HOSTILE) for one in layers.layers),
        )
        engine = msgspec.structs.replace(
            record.engines[1],
            name=HOSTILE,
            settings=HOSTILE,
            notes=(HOSTILE, HOSTILE),
            layers=bad_layers,
            histograms=(msgspec.structs.replace(record.engines[2].histograms[0], tensor=HOSTILE),),
            search=record.engines[2].search,
        )
        engines = (record.engines[0], engine, *record.engines[2:])
        states = tuple(msgspec.structs.replace(state, throttled=HOSTILE) for state in record.machine)
        decoding = msgspec.structs.replace(record.decoding, engines={HOSTILE: (1.0, 2.0)})
        everywhere = {
            "engines": engines,
            "machine": states,
            "decoding": decoding,
            "governor": HOSTILE,
            "suite": HOSTILE,
        }
        hostile = Page(render_html(msgspec.structs.replace(record, **everywhere)))
        assert "img" not in [tag for tag, _ in hostile.tags]
        assert not any("onerror" in attributes for _, attributes in hostile.tags)
        assert len(hostile.scripts) == 8  # with style and title
        told = list(strings(hostile.figures))
        assert sum("&lt;script&gt;" in text for text in told) > 30
        assert [text for text in told if "<" in re.sub("<br>|<extra></extra>", "", text)] == []

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
        assert latency_plots.tail_curve(samples) == [(1.0, 1.0), (2.0, 0.75), (3.0, 0.5), (4.0, 0.25)]

    def test_tail_curve_keeps_the_tail_of_many_calls(self, record):
        seconds = tuple(float(number) for number in range(1, 10_001))
        samples = msgspec.structs.replace(record.harness[0], seconds=seconds, rounds=(0,) * 10_000)
        curve = latency_plots.tail_curve(samples)
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
        assert figures.log_ticks(low, high)["ticktext"] == expected

    def test_log_ticks_of_equal_values(self):
        assert figures.log_ticks(2.0, 2.0)["tickvals"] == [2.0]

    def test_labels_evade_each_other(self):
        assert plots.place_labels([(0.1, 0.5)], [10]) == [(1, 0)]
        assert plots.place_labels([(0.9, 0.5)], [10]) == [(-1, 17)]
        crowded = plots.place_labels([(0.1, 0.50), (0.1, 0.51), (0.1, 0.52)], [20, 20, 20])
        heights = sorted(330 * y + up for y, (_, up) in zip((0.50, 0.51, 0.52), crowded, strict=True))
        assert min(b - a for a, b in itertools.pairwise(heights)) >= 17

    def test_error_bars_stay_inside_the_plot(self):
        figure = Page(render_html(make_record(rounds=2))).figures["plot-batches-host"]
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
        looks = figures.styles(record)
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
