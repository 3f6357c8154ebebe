"""The HTML page in a real browser: plots, raw samples, a silent console, light and dark, narrow and wide, paper."""

import json
import re
import runpy
from pathlib import Path

import pytest
from browser import BROWSER, Browser
from PIL import Image

pytest.importorskip("plotly", reason="plotly draws the page")
pytest.importorskip("jinja2", reason="jinja2 fills in the page")

from resnet_deploy.report.html import render_html

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

FACTORY = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "record_factory.py"))
INT8 = "resnet50-onnxruntime-int8"
WIDTHS = (390, 768, 1280)  # of a telephone, a tablet, a window
# Traces of each plot of a full record: six engines, of which two have layers and one has histograms and a search.
TRACES = {
    "plot-accuracy": 6 + 1,  # and the front
    "plot-batches-host": 6,
    "plot-batches-device": 6,
    "plot-batches-end_to_end": 6,
    "plot-callers-host-1": 6,
    "plot-callers-host-8": 6,
    "plot-distribution": 2 * 6,  # ridges and ticks
    "plot-latency": 6,
    "plot-rounds": 6 + 3,  # and other processes, stolen time, clock
    "plot-kinds": 6,  # kinds of layer
    "plot-layers-1": 1,
    "plot-layers-2": 1,
    "plot-pair-1-2": 2 + 1,  # and what joins them
    "plot-search": 2,
    "plot-histograms-2": 6,
}


COUNT_TRACES = """return Object.fromEntries([...document.querySelectorAll("figure .plot")].map(
  plot => [plot.id, plot.querySelectorAll(".main-svg .trace").length ? plot.data.length : 0]));"""
PRINT = """const all = [...document.querySelectorAll("figure .plot")];
  const sizes = () => all.map(plot => plot._fullLayout.width);
  const before = sizes(); dispatchEvent(new Event("beforeprint")); await pause(); const paper = sizes();
  dispatchEvent(new Event("afterprint")); await pause(); return [before, paper, sizes()];"""
PANEL = """const panel = document.getElementById("panel"); return {
  open: panel.open, title: document.getElementById("panel-title").textContent,
  rule: document.getElementById("panel-rule").textContent,
  parts: [...panel.querySelectorAll("#panel-body > p:not(.note)")].map(one => one.textContent),
  rows: [...panel.querySelectorAll("table")].map(one => one.querySelectorAll("tbody tr").length),
  marked: [...panel.querySelectorAll("tr.call")].map(one => one.textContent),
  wrong: panel.querySelectorAll("tr.wrong").length,
  plots: panel.querySelectorAll(".js-plotly-plot").length,
  files: [...panel.querySelectorAll("a[download]")].map(one => one.download),
  hash: location.hash};"""


def visit(fragments):
    """Go to one address after the other, and return what the panel shows at each."""
    steps = "".join(
        f"location.hash = {json.dumps(one)}; await settle(); shown.push((() => {{ {PANEL} }})());" for one in fragments
    )
    return f"const shown = []; {steps} return shown;"


# Rows of the tables that each address opens, and what is said above one of them.
ADDRESSES = {
    f"#samples/{INT8}/host-b8-c2": ([400], f"{INT8}: batch 8, host, 2 callers. 400 calls in 10 rounds."),
    f"#samples/{INT8}/end_to_end-b32": ([200], f"{INT8}: batch 32, end to end, 1 caller."),
    f"#samples/{INT8}/host-b8-c2/speed-up": ([400, 400], "pytorch: batch 8, host, 2 callers."),
    f"#answers/{INT8}/top-1": ([400], "400 images, in the order of the data set."),
    "#samples/nobody/host-b1": ([], ""),
    f"#samples/{INT8}/host-b3": ([], ""),
    "#answers/nobody/top-1": ([], ""),
}
CLICK = f"""document.querySelector('#results a[href$="{INT8}/host-b1/p99"]').click(); await settle(); {PANEL}"""
LEGEND = """const count = () => [...document.querySelectorAll("figure .plot")].flatMap(plot => plot.data)
    .filter(trace => trace.meta?.engine === 2 && trace.visible !== false).length;
  const before = count(), button = document.querySelector('.legend button[data-engine="2"]');
  button.click(); await pause(); const off = [count(), button.getAttribute("aria-pressed")];
  button.click(); await pause(); return [before, ...off, count()];"""
AGAIN = f"""location.hash = "#samples/{INT8}/host-b1/p99"; await settle();
  document.getElementById("panel-close").click(); location.hash = "#samples/{INT8}/host-b8-c2";
  await settle(); await pause(); {PANEL}"""
KEYBOARD = f"""const link = document.querySelector('#results a[href$="{INT8}/host-b1/p50"]');
  link.focus(); const focused = document.activeElement === link && link.tabIndex === 0;
  link.click(); await settle(); document.getElementById("panel-close").click(); await settle();
  return [focused, document.getElementById("panel").open, location.hash, document.activeElement === link];"""
# The page may fetch nothing, not even its own blobs, and to read one takes time that the page's clock does not know of:
# what goes into them is looked at where they are made.
DOWNLOADS = f"""const plain = Blob, made = [];
  window.Blob = class extends plain {{ constructor(parts, options) {{ super(parts, options);
    made.push([parts.join(""), this.type]); }} }};
  location.hash = "#samples/{INT8}/host-b8-c2"; await settle(); window.Blob = plain;
  const links = [...document.querySelectorAll("#panel a[download]")];
  return [links.length, made.map(one => one[1]), ...made.map(one => one[0])];"""
TOUR = {
    "traces": COUNT_TRACES,
    "legend": LEGEND,
    "click": CLICK,
    "addresses": visit(ADDRESSES),
    "elsewhere": visit([f"#samples/{INT8}/host-b1", "#section-plots", "#%zz", "#"]),
    "again": AGAIN,
    "downloads": DOWNLOADS,
    "keyboard": KEYBOARD,
    "print": PRINT,
}


# What is waited for is looked at; what cannot be made to hold is not waited for for ever.
WAITS = """const sleep = milliseconds => new Promise(done => setTimeout(done, milliseconds));
  const until = async holds => { for (const end = Date.now() + 5000; Date.now() < end && !holds();) await sleep(10); };
  const isOpen = () => document.getElementById("panel").open;
  const settle = () => until(() => /^#(samples|answers)/.test(location.hash)
    ? isOpen() && shownHash === location.hash
    : !isOpen() && !document.getElementById("panel-body").childElementCount);
  const pause = () => sleep(200);"""
ALL_DRAWN = "await until(() => !waiting.length);"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def ask(browser):
    """Run the body of an asynchronous function in the drawn page; return what it returns, and the console."""

    def run(html, body, *, drawn=ALL_DRAWN, **options):
        with browser.open(html, **options) as page:
            return page.ask(f"{WAITS} {drawn} {body}"), page.console

    return run


@pytest.fixture(scope="module")
def record():
    return FACTORY["make_full_record"]()


@pytest.fixture(scope="module")
def page(record):
    return render_html(record)


@pytest.fixture(scope="module")
def tour(page, ask):
    """What the sound page answers to every question of TOUR, asked of one window one after the other."""
    steps = "".join(
        f"""location.hash = ""; await settle(); answers[{json.dumps(name)}] = await (async () => {{ {body} }})();"""
        for name, body in TOUR.items()
    )
    body = f"const answers = {{}}; {steps} return answers;"
    answers, console = ask(page, body)
    assert console == []
    return answers


class TestPlots:
    def test_plots_are_drawn_without_a_word_on_the_console(self, tour):
        assert tour["traces"] == TRACES

    def test_a_broken_page_is_noticed(self, ask, page):
        broken = page.replace("return Plotly.newPlot(element", "return Plotly.noSuchFunction(element")
        drawn, console = ask(broken, COUNT_TRACES.replace("plot.data.length", "1"), drawn="await pause();")
        assert set(drawn.values()) == {0}
        assert any("noSuchFunction is not a function" in line for line in console)

    def test_a_plot_that_is_missing_is_noticed(self, ask, record):
        without = FACTORY["msgspec"].structs.replace(record, machine=())
        drawn, _ = ask(render_html(without), COUNT_TRACES)
        assert drawn == TRACES | {"plot-rounds": 6}

    def test_the_legend_switches_an_engine_off_in_all_plots(self, tour):
        assert tour["legend"] == [13, 0, "false", 13]


class TestRawSamples:
    def test_a_figure_leads_to_the_calls_it_was_computed_from(self, tour, record):
        shown = tour["click"]
        seconds = record.engines[2].latency[0].seconds
        call = seconds.index(sorted(seconds)[197])
        assert shown["open"]
        assert shown["title"] == f"{INT8}: p99 {1e3 * seconds[call]:.1f} ms"
        assert shown["rule"] == "Nearest-rank p99 of 200 calls: number 198 from the fastest."
        assert shown["rows"] == [200]
        assert shown["marked"] == [f"{call + 1}{call // 20}{seconds[call]}"]
        assert shown["plots"] == 1
        assert shown["files"] == [f"{INT8}-host-b1.csv", f"{INT8}-host-b1.json"]
        assert shown["hash"] == f"#samples/{INT8}/host-b1/p99"

    def test_without_the_handler_nothing_opens(self, ask, page):
        broken = page.replace('addEventListener("hashchange", showPanel)', "")
        shown, _ = ask(broken, CLICK.replace("settle", "pause"))
        assert not shown["open"]
        assert shown["rows"] == []

    def test_addresses_open_their_samples(self, tour):
        for one, (rows, said) in zip(tour["addresses"], ADDRESSES.values(), strict=True):
            assert one["open"]
            assert one["rows"] == rows
            if rows:
                assert any(part.startswith(said) for part in one["parts"])
            else:
                assert one["title"] == "There are no such samples in this record"

    def test_other_addresses_close_the_panel(self, tour):
        assert [one["open"] for one in tour["elsewhere"]] == [True, False, False, False]

    def test_an_address_that_comes_while_the_panel_closes_is_shown(self, tour):
        assert tour["again"]["open"]
        assert tour["again"]["rows"] == [400]
        assert tour["again"]["hash"] == f"#samples/{INT8}/host-b8-c2"

    def test_answers_that_are_wrong_are_marked(self, ask, page, record):
        shown, _ = ask(page, PANEL, fragment=f"#answers/{INT8}/top-1")
        pairs = zip(record.engines[2].outputs.top5, record.dataset.labels, strict=True)
        assert shown["wrong"] == sum(best[0] != label for best, label in pairs) == 116
        assert shown["rule"] == "Images whose best class is the label: 284 of 400; Wilson's interval."

    def test_the_keyboard_reaches_figures_and_closing_cleans_the_address(self, tour):
        assert tour["keyboard"] == [True, False, "", True]

    def test_downloads_hold_every_call(self, tour, record):
        count, types, csv, text = tour["downloads"]
        samples = next(one for one in record.engines[2].latency if one.batch == 8 and one.concurrency == 2)
        assert (count, types) == (2, ["text/csv", "application/json"])
        lines = csv.splitlines()
        assert lines[0] == "call,round,seconds"
        assert [float(line.split(",")[2]) for line in lines[1:]] == list(samples.seconds)
        assert json.loads(text)["wall"] == list(samples.wall)

    def test_many_calls_are_shown_in_part_until_asked_for(self, ask):
        record = FACTORY["make_record"](FACTORY["ENGINES"][:1], batches=(1,), rounds=5, calls=1200)
        body = """location.hash = "#samples/pytorch/host-b1/p50"; await settle();
          const rows = () => document.querySelectorAll("#panel tbody tr").length;
          const before = rows(), points = document.querySelector("#panel .plot").data[0].x.length;
          document.querySelector("#panel .buttons button").click(); return [before, points <= 4001, rows()];"""
        answer, console = ask(render_html(record), body)
        assert console == []
        assert answer == [1000, True, 6000]


class TestSafety:
    def test_the_page_may_not_load_anything(self, ask, page, tmp_path):
        Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
        probe = f'<img src="{(tmp_path / "pixel.png").as_uri()}">'
        _, console = ask(page.replace("</main>", f"{probe}</main>"), "")
        assert any("Content Security Policy" in line and "pixel.png" in line for line in console)

    def test_hostile_names_do_not_run(self, ask):
        name = "</script><script>console.log('reached')</script><img src=x onerror=\"console.log('reached')\">/b1?#%zz"
        peer = FACTORY["SyntheticEngine"](name, role="peer", settings=name)
        record = FACTORY["make_full_record"](engines=(*FACTORY["ENGINES"], peer), dataset_name=name)
        click = '[...document.querySelectorAll("#results tbody tr:last-child a")].at(-1).click(); await settle();'
        shown, console = ask(render_html(record), click + PANEL)
        assert console == []
        assert shown["rows"] == [400, 400]
        assert shown["title"].startswith(f"{name}: speed-up ")
        _, console = ask(f"<!DOCTYPE html><body>{name}</body>", "await pause();", drawn="")
        assert any("reached" in line for line in console)

    def test_without_javascript_the_tables_stand(self, browser, page, tmp_path):
        with browser.open(page.replace("script-src 'unsafe-inline'", "script-src 'none'")) as shown:
            dom = shown.ask("return document.documentElement.outerHTML;")
            shown.screenshot(tmp_path / "shot.png")
            assert len(shown.console) == 2  # plotly and the page's own
            assert all("Content Security Policy" in line for line in shown.console)
        assert 'class="plot js-plotly-plot"' not in dom
        tables = re.findall(r'<table[^>]* id="([\w-]+)"', dom)
        assert tables[:7] == ["results", "verdicts", "ways", "not-run", "ways-0", "ways-1", "ways-2"]
        assert tables[7:] == ["engines", "decoding", "environment", "machine"]
        assert 'title="Nearest-rank p99 of 200 calls: number 198 from the fastest"' in dom
        with Image.open(tmp_path / "shot.png") as image:
            ink = sum(count for count, shade in image.convert("L").getcolors() if shade < 100)
        assert ink > 5000  # pixels; a page of text has tens of thousands, an empty one none


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_follows_the_preferred_colours(browser, page, tmp_path, scheme, is_dark):
    with browser.open(page, size=(1280, 2200), scheme=scheme) as shown:
        shown.ask(WAITS + ALL_DRAWN)
        shown.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as image:
        shades = image.convert("L")
    assert shades.size == (1280, 2200)
    darkest, lightest = shades.getextrema()
    assert darkest < 60
    assert lightest > 200
    paper = max(shades.getcolors(), key=lambda counted: counted[0])[1]
    assert paper < 40 if is_dark else paper > 240


@pytest.fixture(scope="module")
def frames(ask, page, tmp_path_factory):
    """Widths of the page, of what is in it and of its plots, in frames of several widths; the last page is too wide."""
    folder = tmp_path_factory.mktemp("frames")
    broken = page.replace("</main>", '<div style="width: 500px">wide</div></main>')
    for name, html in (("sound", page), ("broken", broken)):
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    shown = "".join(
        f"""<iframe src="{(folder / name).as_uri()}.html" style="width:{width}px;height:800px;border:0"></iframe>"""
        for name, width in (*(("sound", width) for width in WIDTHS), ("broken", WIDTHS[0]))
    )
    drawn = """const inner = [...document.querySelectorAll("iframe")].map(frame => frame.contentDocument);
      await until(() => !inner.some(page => page.querySelector("figure .plot:not(.js-plotly-plot)")));"""
    body = """return inner.map(({documentElement: page}) => [page.clientWidth, page.scrollWidth,
      [...page.querySelectorAll(".plot .main-svg")].map(svg => svg.clientWidth)]);"""
    found, console = ask(f"<!DOCTYPE html><body>{shown}</body>", body, drawn=drawn)
    assert console == []
    return found


@pytest.mark.parametrize("index", range(len(WIDTHS)))
def test_only_tables_scroll_sideways(frames, index):
    own, inside, plots = frames[index]
    assert own == inside == WIDTHS[index]
    assert len(plots) >= len(TRACES)
    assert 250 < max(plots) <= own


def test_what_is_too_wide_is_noticed(frames):
    own, inside, _ = frames[-1]
    assert (own, inside > 500) == (WIDTHS[0], True)


def test_plots_take_the_size_of_paper_and_back(ask, page, tour):
    before, paper, after = tour["print"]
    assert set(paper) == {930, 450}
    assert len(paper) == len(TRACES)
    assert before == after != paper
    (before, paper, _), _ = ask(page.replace('addEventListener("beforeprint"', 'addEventListener("never"'), PRINT)
    assert paper == before


def test_paper_is_a4_landscape(browser, page):
    with browser.open(page) as shown:
        data = shown.pdf()
    boxes = {tuple(map(float, box)) for box in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)}
    assert len(boxes) == 1
    (width, height) = boxes.pop()
    assert (round(width), round(height)) == (842, 595)  # A4, landscape, in points
