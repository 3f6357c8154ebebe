"""The search for layers to give back their precision: hand-worked cases, with measurements that are made up here."""

import pytest

from resnet_deploy.errors import AccuracyError
from resnet_deploy.protocols import Silent
from resnet_deploy.quantize.search import Point, Search, Unit, search

A, B, C = Unit("a", ("a",)), Unit("b", ("b",)), Unit("c", ("c",))
BLOCK = Unit("block", ("b", "c", "add"))


class Bench:
    """Noise and cost are sums over the nodes; the drop is a hundred times the noise."""

    def __init__(self, noise: dict[str, float], cost: dict[str, float]) -> None:
        self.noise, self.cost, self.asked = noise, cost, []

    def __call__(self, in_float, with_drop):
        self.asked.append((tuple(in_float), with_drop))
        noise = sum(value for node, value in self.noise.items() if node not in in_float)
        cost = 1.0 + sum(value for node, value in self.cost.items() if node in in_float)
        return Point(in_float=tuple(in_float), noise=noise, cost=cost, drop=100 * noise if with_drop else None)


def run(bench, units, max_drop):
    return search(units, bench, max_drop, Silent())


def test_nothing_is_tried_where_nothing_is_lost():
    bench = Bench({"a": 0.01}, {"a": 0.1})
    assert run(bench, [A], 1.0) == ({}, (Point(in_float=(), noise=0.01, cost=1.0, drop=1.0),))
    assert bench.asked == [((), True)]


def test_the_most_gained_for_the_least_cost_comes_first():
    # Gained per cost: a 0.2 / 0.1 = 2, b 0.5 / 0.1 = 5, c 0.3 / 0.3 = 1.
    bench = Bench({"a": 0.02, "b": 0.05, "c": 0.03}, {"a": 0.1, "b": 0.1, "c": 0.3})
    alone, steps = run(bench, [A, B, C], 3.5)
    assert [point.in_float for point in steps] == [(), ("b",), ("b", "a")]
    assert [point.drop for point in steps] == pytest.approx([10, 5, 3])
    assert {name: point.in_float for name, point in alone.items()} == {"a": ("a",), "b": ("b",), "c": ("c",)}
    assert bench.asked[1:4] == [(("a",), False), (("b",), False), (("c",), False)]
    # The twin: were b dearer than a for what it gains, a would come first.
    dear = Bench({"a": 0.02, "b": 0.05, "c": 0.03}, {"a": 0.1, "b": 0.9, "c": 0.3})
    assert run(dear, [A, B, C], 3.5)[1][1].in_float == ("a",)


def test_what_is_gained_counts_as_a_share():
    # Half of the noise at twice the cost comes before a fifth at the same.
    bench = Bench({"a": 0.05, "b": 0.02, "c": 0.03}, {"a": 2.0, "b": 1.0})
    assert run(bench, [B, A], 5.0)[1][1].in_float == ("a",)
    assert run(Bench(bench.noise, {"a": 3.0, "b": 1.0}), [A, B], 3.0)[1][1].in_float == ("b",)


def test_a_cost_within_the_noise_of_the_clock_is_not_divided_by():
    # b gains a thousandth and seems to make the engine faster; a gains half for a cost of 1 %.
    bench = Bench({"a": 0.05, "b": 0.0001, "c": 0.0499}, {"a": 0.01, "b": -0.01, "c": 1.0})
    assert run(bench, [A, B, C], 6.0)[1][1].in_float == ("a",)


def test_a_block_takes_its_layers_along():
    bench = Bench({"b": 0.02, "c": 0.02, "add": 0.05}, {"b": 1.0, "c": 1.0, "add": -1.0})
    steps = run(bench, [B, C, BLOCK], 0.0)[1]
    assert [point.in_float for point in steps] == [(), ("b", "c", "add")]


def test_layers_in_a_block_given_back_are_not_tried_again():
    bench = Bench({"b": 0.02, "c": 0.02, "add": 0.05, "a": 0.001}, {"b": 1.0, "c": 1.0, "add": -1.0, "a": 9.0})
    steps = run(bench, [B, C, BLOCK, A], 0.0)[1]
    assert [len(point.in_float) for point in steps] == [0, 3, 4]


def test_a_limit_that_cannot_be_kept_is_an_error():
    bench = Bench({"a": 0.02, "elsewhere": 0.01}, {"a": 0.1})
    with pytest.raises(AccuracyError, match=r"1\.00 points are lost even with every layer in floating point, 0\.5 are"):
        run(bench, [A], 0.5)


def point(cost, drop):
    return Point(in_float=(), noise=drop, cost=cost, drop=drop)


def test_the_front_is_what_no_other_step_beats():
    steps = (point(1.0, 3.0), point(1.2, 3.0), point(1.1, 2.0), point(1.5, 2.5), point(1.3, 0.5))
    found = Search(
        max_drop=1, metric="top-1", cost="seconds", dataset="", dataset_sha256="", images=1, sensitivity={}, steps=steps
    )
    assert found.front == (steps[0], steps[2], steps[4])
    assert found.in_float == steps[-1].in_float
