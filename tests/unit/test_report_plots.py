"""The plots of ways, rounds and layers: what is drawn, and that scopes are kept apart."""

import msgspec
import numpy as np
import pytest

pytest.importorskip("plotly", reason="the plots are drawn by plotly")

from record_factory import ENGINES, PEERS, SyntheticEngine, make_full_record, make_record, make_samples

from resnet_deploy.bench import statistics
from resnet_deploy.bench.records import LayerTime, LayerTimes, Way
from resnet_deploy.report import figures, latency_plots, layer_plots, throughput_plots
from resnet_deploy.report.gallery import gallery


@pytest.fixture(scope="module")
def record():
    return make_full_record()


def profile(*layers):
    listed = tuple(LayerTime(name=name, kind=kind, seconds=seconds) for name, kind, seconds in layers)
    return LayerTimes(batch=1, calls=5, profiler="ONNX Runtime", layers=listed)


class TestStyles:
    def test_peers_are_hollow_thin_and_coloured_like_their_counterpart(self, record):
        looks = dict(zip([engine.name for engine in record.engines], figures.styles(record), strict=True))
        plain, ours = looks["onnxruntime-plain"], looks["resnet50-onnxruntime-fp32"]
        assert (plain.colour, plain.dash, plain.symbol) == (ours.colour, ours.dash, ours.symbol)
        assert (plain.marker(8)["symbol"], ours.marker(8)["symbol"]) == ("circle-open", "circle")
        assert plain.line["width"] < ours.line["width"]

    def test_a_counterpart_lends_its_colour_once(self):
        peers = [SyntheticEngine(f"peer-{n}", "onnxruntime", "fp32", role="peer") for n in range(3)]
        looks = figures.styles(make_record((*ENGINES[:2], *peers)))
        assert looks[1].colour == looks[2].colour
        assert len({look.colour for look in looks}) == 4


class TestThroughput:
    def test_scopes_do_not_share_a_plot(self, record):
        sweeps = throughput_plots.batch_sweeps(record)
        assert [(sweep.scope, sweep.values) for sweep in sweeps] == [
            (scope, (1, 8, 32)) for scope in ("host", "device", "end_to_end")
        ]
        for sweep in sweeps:
            figure = throughput_plots.plot_batches(record, sweep)
            assert len(figure.data) == len(ENGINES) + len(PEERS)
            own = [one for one in record.engines[1].latency if one.scope == sweep.scope and one.concurrency == 1]
            assert list(figure.data[1].y) == pytest.approx([statistics.throughput(one) for one in own], rel=1e-12)

    def test_callers_by_batch(self, record):
        sweeps = throughput_plots.caller_sweeps(record)
        assert [(sweep.scope, sweep.fixed, sweep.values) for sweep in sweeps] == [
            ("host", 1, (1, 2, 4)),
            ("host", 8, (1, 2, 4)),
        ]
        figure = throughput_plots.plot_callers(record, sweeps[1])
        assert list(figure.data[1].x) == [1, 2, 4]
        own = [one for one in record.engines[1].latency if one.scope == "host" and one.batch == 8]
        assert list(figure.data[1].y) == pytest.approx([statistics.throughput(one) for one in own], rel=1e-12)

    def test_one_caller_is_no_sweep(self):
        assert throughput_plots.caller_sweeps(make_record()) == []

    def test_graphs_on_and_off_are_two_lines(self):
        ways = [Way(batch, "host", 1, graphs) for batch in (1, 8) for graphs in (True, False)]
        record = make_record(ENGINES[:2], ways=ways)
        (sweep,) = throughput_plots.batch_sweeps(record)
        figure = throughput_plots.plot_batches(record, sweep)
        assert [trace.name for trace in figure.data[:2]] == ["pytorch, CUDA graphs", "pytorch, no CUDA graphs"]
        assert [trace.opacity for trace in figure.data[:2]] == [1, 0.5]
        assert [len(trace.x) for trace in figure.data] == [2] * 4

    def test_paced_calls_are_not_throughput(self):
        record = make_record(ENGINES[:1], batches=(1,))
        paced = msgspec.structs.replace(record.engines[0].latency[0], batch=8, offered=10.0, wall=(1.0,) * 10)
        engine = msgspec.structs.replace(record.engines[0], latency=(*record.engines[0].latency, paced))
        (sweep,) = throughput_plots.batch_sweeps(msgspec.structs.replace(record, engines=(engine,)))
        assert sweep.values == (1,)


class TestLatency:
    def test_ridge_by_hand(self):
        samples = make_samples(1, (0.0011, 0.0012, 0.0025, 0.0045))
        xs, ys = latency_plots.ridge(samples, np.array([0.5, 1.0, 2.0, 3.0, 4.0, 5.0]))
        assert xs == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 1]
        assert ys == [0, 1, 1, 0.5, 0.5, 0, 0, 0.5, 0.5, 0, 0]

    def test_a_ridge_and_its_ticks_for_each_engine(self, record):
        figure = latency_plots.plot_distributions(record)
        assert len(figure.data) == 2 * len(record.engines)
        own = statistics.smallest_samples(record.engines[2], "host").seconds
        expected = [1e3 * statistics.percentile(own, percent) for percent in (50, 99)]
        assert list(figure.data[5].x) == pytest.approx(expected, rel=1e-12)
        tops = [max(trace.y) for trace in figure.data[::2]]
        assert tops == pytest.approx([row + 0.62 for row in range(5, -1, -1)], abs=1e-3)  # rounded for the page
        assert [one.text for one in figure.layout.annotations] == [engine.name for engine in record.engines]

    def test_two_modes_show_as_two_hills(self):
        samples = make_samples(1, [0.0100] * 50 + [0.0125] * 50)
        edges = np.geomspace(9.9, 13.0, 241)
        _, ys = latency_plots.ridge(samples, edges)
        assert ys.count(1.0) == 4  # two bins of two corners each
        assert 0.0 in ys[ys.index(1.0) : -3]
        _, merged = latency_plots.ridge(make_samples(1, [0.0100] * 100), edges)
        assert merged.count(1.0) == 2

    def test_round_medians_by_hand(self):
        samples = make_samples(1, (3.0, 1.0, 2.0, 8.0, 9.0), (0, 0, 0, 4, 4))
        assert latency_plots.round_medians(samples) == {0: 2.0, 4: 8.0}

    def test_rounds_stand_above_the_machine_on_one_axis(self, record):
        figure = latency_plots.plot_rounds(record)
        engines, below = figure.data[: len(record.engines)], figure.data[len(record.engines) :]
        assert [trace.name for trace in below] == ["other processes", "stolen by the host", "clock"]
        assert [trace.yaxis for trace in below] == ["y2", "y2", "y3"]
        assert {tuple(trace.x) for trace in figure.data} == {tuple(range(10))}
        assert list(below[0].y) == [100 * state.elsewhere for state in record.machine]
        assert list(below[2].y) == [state.mhz for state in record.machine]
        assert all(99 < np.mean(trace.y) < 101 for trace in engines)

    def test_a_slow_round_stands_out(self, record):
        first = record.engines[0].latency[0]
        calls = zip(first.seconds, first.rounds, strict=True)
        seconds = tuple(each * (1.5 if number == 3 else 1) for each, number in calls)
        slowed = (msgspec.structs.replace(first, seconds=seconds), *record.engines[0].latency[1:])
        engine = msgspec.structs.replace(record.engines[0], latency=slowed)
        drifted = latency_plots.plot_rounds(msgspec.structs.replace(record, engines=(engine, *record.engines[1:])))
        assert drifted.data[0].y[3] > 140

    def test_without_the_machines_state_rounds_stand_alone(self):
        figure = latency_plots.plot_rounds(make_record())
        assert len(figure.data) == len(ENGINES)
        assert "yaxis2" not in figure.layout


class TestLayers:
    def test_kinds_add_up_to_the_call(self, record):
        colours = layer_plots.kind_colours(record)
        assert set(colours) == {"Conv", "QLinearConv", "QLinearAdd", "QGemm", "Cast", "Gemm"}
        figure = layer_plots.plot_kinds(record, colours)
        for number, engine in enumerate(record.engines[1:3]):
            total = 1e3 * sum(layer.seconds for layer in engine.layers.layers)
            assert sum(trace.x[number] for trace in figure.data) == pytest.approx(total, rel=1e-9)  # float sums

    def test_kinds_beyond_the_coloured_share_grey(self, record):
        times = profile(*[(f"n{n}", f"Kind{n}", 1.0 + n) for n in range(12)])
        engine = msgspec.structs.replace(record.engines[1], layers=times)
        other = msgspec.structs.replace(record, engines=(engine,), reference="")
        figure = layer_plots.plot_kinds(other, layer_plots.kind_colours(other))
        assert [trace.name for trace in figure.data][-1] == "other kinds"
        assert len(figure.data) == 9
        assert figure.data[-1].x[0] == 1e3 * (1 + 2 + 3 + 4)

    def test_slowest_first_and_the_rest_told(self, record):
        times = record.engines[1].layers
        figure = layer_plots.plot_slowest(times, {"Conv": "#123456"})
        (bar,) = figure.data
        assert len(bar.x) == 20
        assert list(bar.x) == sorted((1e3 * layer.seconds for layer in times.layers), reverse=True)[:20]
        rest = sorted(layer.seconds for layer in times.layers)[:-20]
        assert layer_plots.rest(times).startswith(f"the other {len(rest)} take {1e3 * sum(rest):.2f} ms together, ")
        assert layer_plots.rest(profile(("conv1", "Conv", 1.0))) == ""

    def test_layers_are_matched_by_the_one_convolution_they_hold(self):
        float32 = profile(
            ("images.cast", "Cast", 9.0),
            ("conv1.relu_nchwc", "Conv", 1.0),
            ("layer1.0.conv1.relu_nchwc", "Conv", 2.0),
            ("layer1.0.downsample.0_nchwc", "Conv", 3.0),
            ("layer1.0.conv1 || layer1.0.conv2", "Convolution", 4.0),
            ("fc", "Gemm", 5.0),
        )
        int8 = profile(
            ("conv1_token_2", "QLinearConv", 0.1),
            ("InsertedPrecisionFreeCast_layer1.0.conv1_nchwc", "Conv", 0.2),
            ("layer1.0.conv1.relu.quantize", "QuantizeLinear", 7.0),
            ("layer1.0.downsample.0_token_19", "QLinearConv", 0.3),
            ("fc_token_4", "QGemm", 0.5),
        )
        assert layer_plots.matched(float32, int8) == {
            "conv1": (1.0, 0.1),
            "layer1.0.conv1": (2.0, 0.2),
            "layer1.0.downsample.0": (3.0, 0.3),
            "fc": (5.0, 0.5),
        }
        assert layer_plots.matched(float32, profile(("node_12", "Conv", 1.0))) == {}

    def test_pairs_are_of_one_backend_and_batch(self, record):
        assert list(layer_plots.pairs(record)) == [(1, 2)]
        other = msgspec.structs.replace(record.engines[2].layers, batch=8)
        engines = (*record.engines[:2], msgspec.structs.replace(record.engines[2], layers=other))
        assert list(layer_plots.pairs(msgspec.structs.replace(record, engines=engines))) == []

    def test_a_pair_is_drawn_in_the_order_of_execution(self, record):
        figure = layer_plots.plot_pair(record, (1, 2))
        names = [layer.name.removesuffix("_nchwc") for layer in record.engines[1].layers.layers if layer.kind != "Cast"]
        assert list(figure.data[1].y) == list(figure.data[2].y) == names
        assert len(names) == 50


class TestGallery:
    def test_everything_has_its_place_once(self, record):
        groups = gallery(record, statistics.summarize(record))
        assert [heading for heading, _ in groups] == [
            *("Accuracy and speed", "Throughput", "Latency", "Layers", "Quantization")
        ]
        divs = [plot.div for _, drawn in groups for plot in drawn]
        assert divs == [
            *("plot-accuracy", "plot-batches-host", "plot-batches-device", "plot-batches-end_to_end"),
            *("plot-callers-host-1", "plot-callers-host-8", "plot-distribution", "plot-latency", "plot-rounds"),
            *("plot-kinds", "plot-layers-1", "plot-layers-2", "plot-pair-1-2", "plot-search", "plot-histograms-2"),
        ]

    def test_scopes_are_named_in_titles(self, record):
        groups = dict(gallery(record, statistics.summarize(record)))
        assert [plot.title for plot in groups["Throughput"]] == [
            "Throughput over batch size, host",
            "Throughput over batch size, device",
            "Throughput over batch size, end to end",
            "Throughput over callers, host, batch 1",
            "Throughput over callers, host, batch 8",
        ]
