"""The HTML page in a real browser: plots drawn, nothing on the console, light and dark, narrow and wide."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("plotly", reason="plotly draws the page")
pytest.importorskip("jinja2", reason="jinja2 fills in the page")

from resnet_deploy.report.html import render_html

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

FACTORY = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "record_factory.py"))
ENGINES = FACTORY["ENGINES"]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=5000"),
)


@pytest.fixture
def browse(tmp_path):
    """Open a page and return what the browser printed and what its console said."""

    def run(html, *flags):
        page = tmp_path / "page.html"
        page.write_text(html, encoding="utf-8")
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return run


@pytest.fixture(scope="module")
def page():
    return render_html(FACTORY["make_record"]())


def drawn_plots(dom):
    return re.findall(r'<div class="plot js-plotly-plot" id="(plot-\w+)"', dom)


def test_plots_are_drawn_without_a_word_on_the_console(browse, page):
    dom, console = browse(page, "--dump-dom")
    assert console == []
    assert drawn_plots(dom) == ["plot-accuracy", "plot-latency", "plot-batches"]
    assert dom.count('<svg class="main-svg"') >= 3
    # One trace per engine and plot, and the front.
    assert dom.count('class="trace scatter') == 3 * len(ENGINES) + 1
    assert re.search(r'<a[^>]* href="blob:', dom)


def test_a_broken_page_is_noticed(browse, page):
    dom, console = browse(page.replace("Plotly.newPlot(id", "Plotly.noSuchFunction(id"), "--dump-dom")
    assert drawn_plots(dom) == []
    assert any("noSuchFunction is not a function" in line for line in console)


def test_the_page_may_not_load_anything(browse, page, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    probe = f'<img src="{(tmp_path / "pixel.png").as_uri()}">'
    _, console = browse(page.replace("</main>", f"{probe}</main>"), "--dump-dom")
    assert any("Content Security Policy" in line and "pixel.png" in line for line in console)


def test_hostile_names_do_not_run(browse):
    name = "</script><script>console.log('reached')</script><img src=x onerror=\"console.log('reached')\">"
    engine = FACTORY["SyntheticEngine"](name)
    record = FACTORY["make_record"]((FACTORY["REFERENCE"], engine), dataset_name=name)
    dom, console = browse(render_html(record), "--dump-dom")
    assert console == []
    assert len(drawn_plots(dom)) == 3
    _, console = browse(f"<!DOCTYPE html><body>{name}</body>", "--dump-dom")
    assert any("reached" in line for line in console)


@pytest.mark.parametrize(
    ("preference", "is_dark"), [("preferredColorScheme=1", False), ("preferredColorScheme=0", True)]
)
def test_follows_the_preferred_colours(browse, page, tmp_path, preference, is_dark):
    shot = tmp_path / "shot.png"
    browse(page, f"--blink-settings={preference}", "--window-size=1280,2200", f"--screenshot={shot}")
    with Image.open(shot) as image:
        shades = image.convert("L")
    assert shades.size == (1280, 2200)
    darkest, lightest = shades.getextrema()
    assert darkest < 60
    assert lightest > 200
    paper = max(shades.getcolors(), key=lambda counted: counted[0])[1]
    assert paper < 40 if is_dark else paper > 240


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_only_tables_scroll_sideways(browse, page, tmp_path, width):
    (tmp_path / "inner.html").write_text(page, encoding="utf-8")
    outer = f"""<!DOCTYPE html><body><iframe src="inner.html" style="width:{width}px;height:800px;border:0"></iframe>
    <script>onload = () => {{
      const inner = document.querySelector("iframe").contentDocument;
      document.body.dataset.widths = [inner.documentElement.clientWidth, inner.documentElement.scrollWidth];
      document.body.dataset.plots = [...inner.querySelectorAll(".plot .main-svg")].map(svg => svg.clientWidth);
    }}</script>"""
    dom, console = browse(outer, "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,900")
    assert console == []
    assert re.search(r'data-widths="(\d+,\d+)"', dom)[1] == f"{width},{width}"
    plots = [int(plot) for plot in re.search(r'data-plots="([\d,]+)"', dom)[1].split(",")]
    assert len(plots) >= 3
    assert 250 < max(plots) <= width
