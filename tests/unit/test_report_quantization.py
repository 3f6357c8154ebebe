"""The report's plots of INT8: a panel for each tensor, a point for each step of a search."""

import msgspec
import pytest

pytest.importorskip("plotly", reason="the plots are drawn by plotly")

from record_factory import make_record

from resnet_deploy.bench.records import SearchStep, TensorHistogram
from resnet_deploy.report.figures import styles
from resnet_deploy.report.html import render_html
from resnet_deploy.report.quantization_plots import plot_histograms, plot_searches

HISTOGRAMS = tuple(
    TensorHistogram(
        tensor=f"layer{number}.<b>",
        first=-1.0,
        width=0.5,
        counts=(1, 20, 300, number),
        low=-1.0,
        high=0.5,
        sqnr_db=20.0,
    )
    for number in range(5)
)
STEPS = tuple(SearchStep(layers=number, drop=3.0 - number, cost=1 + number / 10) for number in range(3))


@pytest.fixture(scope="module")
def record():
    plain = make_record()
    engine = msgspec.structs.replace(plain.engines[-1], histograms=HISTOGRAMS, search=STEPS)
    return msgspec.structs.replace(plain, engines=(*plain.engines[:-1], engine))


def test_every_tensor_has_a_panel_with_its_range(record):
    figure = plot_histograms(record.engines[-1], styles(record)[-1])
    assert [tuple(bar.y) for bar in figure.data] == [one.counts for one in HISTOGRAMS]
    assert list(figure.data[0].x) == [-0.75, -0.25, 0.25, 0.75]
    assert [bar.xaxis for bar in figure.data] == ["x", "x2", "x3", "x4", "x5"]
    assert [shape.x0 for shape in figure.layout.shapes] == [-1.0, 0.5] * 5
    assert [shape.xref for shape in figure.layout.shapes[:4]] == ["x", "x", "x2", "x2"]
    assert figure.layout.annotations[4].text == "layer4.&lt;b&gt;: 20 dB"


def test_every_step_of_a_search_is_a_point(record):
    points, front = plot_searches(record).data
    assert list(points.x) == [1.0, 1.1, 1.2]
    assert list(points.y) == [3.0, 2.0, 1.0]
    assert list(points.customdata) == [0, 1, 2]
    assert sorted(zip(front.x, front.y, strict=True)) == [(1.0, 3.0), (1.1, 2.0), (1.2, 1.0)]


def test_the_page_has_them_where_there_are_any(record):
    page = render_html(record)
    assert 'id="plot-search"' in page
    assert f'id="plot-histograms-{len(record.engines) - 1}"' in page
    plain = render_html(make_record())
    assert "plot-search" not in plain
    assert "plot-histograms" not in plain
