"""What a long run measured survives whatever becomes of its output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import BENCH, SHORT, assert_refused, files

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("plotly", reason="the report has plots")

from resnet_deploy.bench.records import read_record
from resnet_deploy.pipeline import benchmarking

ROOT = Path(__file__).parents[2]
LONG = "n" * 300


@pytest.fixture
def shell(workplace):
    """Run the command line in a process of its own, with a standard output of one's choice."""

    def run(*arguments, stdout=subprocess.PIPE, **environment):
        command = [sys.executable, "-m", "resnet_deploy", *arguments]
        env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=env, check=False)

    return run


@pytest.fixture
def full():
    """A standard output that takes nothing."""
    with Path("/dev/full").open("wb") as device:
        yield device


@pytest.fixture
def unread():
    """A standard output that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def kept(folder):
    """The record and its report in ``folder``, both whole."""
    (path,) = folder.glob("*.json")
    assert "</html>" in path.with_suffix(".html").read_text()
    return read_record(path)


BENCH_WITH_REPORT = ("bench", "--no-pytorch", *SHORT, "-o", "results")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_output_does_not_cost_the_record(shell, full, unbuffered):
    done = shell(*BENCH_WITH_REPORT, stdout=full, PYTHONUNBUFFERED=unbuffered)
    error, hint = done.stderr.decode().splitlines()
    assert (error, done.returncode) == ("error: standard output: No space left on device", 2)
    assert hint.startswith("hint: ")
    assert len(kept(Path("results")).engines) == 1


def test_output_that_nobody_reads_does_not_cost_the_record(shell, unread):
    done = shell(*BENCH_WITH_REPORT, stdout=unread)
    assert (done.returncode, done.stderr) == (1, b"")
    assert len(kept(Path("results")).engines) == 1


def test_characters_that_the_output_cannot_show(shell):
    # The interval of a speed-up, which takes six rounds, has a dash that is in neither ASCII nor Latin-1.
    shown = {"ascii": shell("bench", *SHORT, "--rounds", "8", "-o", "results", PYTHONIOENCODING="ascii")}
    (path,) = Path("results").glob("*.json")
    for encoding in ("iso-8859-1", "utf-8"):  # the same table, again
        shown[encoding] = shell("report", path, PYTHONIOENCODING=encoding)
    for encoding, done in shown.items():
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode(encoding)
        assert "resnet18-int8-onnxruntime" in text
        assert ("\N{EN DASH}" in text) == (encoding == "utf-8")
    assert len(kept(Path("results")).engines) == 2


def test_name_that_is_no_text(shell, workplace):
    """A file name may hold any bytes."""
    name = b"caf\xe9.png"
    os.link("image.png", name)
    done = shell("predict", name)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0] == rb"caf\xe9.png"


@pytest.mark.parametrize("line", [("--help",), ("--version",), ("predict", "image.png")])
def test_full_and_unread_output_of_other_commands(shell, full, unread, line):
    done = shell(*line, stdout=full)
    assert done.returncode == 2
    assert [text.split(b":")[0] for text in done.stderr.splitlines()] == [b"error", b"hint"]
    done = shell(*line, stdout=unread)
    assert (done.returncode, done.stderr) == (1, b"")


def test_full_output_does_not_cost_the_page(shell, full):
    shell(*BENCH_WITH_REPORT)
    (path,) = Path("results").glob("*.json")
    assert shell("report", path, "--html", "again.html", stdout=full).returncode == 2
    assert Path("again.html").read_bytes() == path.with_suffix(".html").read_bytes()


def test_other_failures_of_the_system_keep_their_traceback(invoke, workplace, monkeypatch):
    """Only standard output is excused."""

    def fail(path, threads):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resnet_deploy.engine.load", fail)
    assert isinstance(invoke("predict", "image.png").exception, OSError)


def test_predictions_come_batch_by_batch(invoke, workplace, copy_engine, draw_image):
    """In order, and with what was answered before a damaged image; the engine takes two at once."""

    def change(manifest):
        manifest["spec"]["batch"] = {"min": 1, "opt": 2, "max": 2}

    engine = copy_engine("fp32", change=change)
    images = [Path(f"{number}.png") for number in range(5)]
    for number, path in enumerate(images):
        draw_image(path, number)
    result = invoke("predict", *images, "--engine", engine, "--top", 1)
    assert result.exit_code == 0
    each = [invoke("predict", path, "--engine", engine, "--top", 1).stdout.splitlines() for path in images]
    shown = result.stdout.splitlines()
    assert shown[::2] == [str(path) for path in images] == [lines[0] for lines in each]
    assert [line.split()[-1] for line in shown[1::2]] == [lines[1].split()[-1] for lines in each]

    images[3].write_bytes(images[3].read_bytes()[:70])
    result = invoke("predict", *images, "--engine", engine, "--top", 1)
    assert_refused(result, "3.png: damaged image")
    assert result.stdout.splitlines() == shown[:4]


def test_report_that_cannot_be_drawn_costs_neither_record_nor_table(invoke, workplace, monkeypatch):
    monkeypatch.setattr("resnet_deploy.report.html.render_html", lambda record: 1 / 0)
    result = invoke(*BENCH_WITH_REPORT)
    assert isinstance(result.exception, ZeroDivisionError)
    (path,) = Path("results").iterdir()
    assert len(read_record(path).engines) == 1
    assert "resnet18-int8-onnxruntime" in result.stdout
    assert f"raw samples: results/{path.name}" in result.stdout
    assert "report: " not in result.stdout


def test_results_are_shown_though_they_cannot_be_kept(invoke, workplace, mount_tmpfs, monkeypatch):
    """The disk becomes read-only while engines are timed."""
    disk = mount_tmpfs("size=2m")
    measure = benchmarking.bench

    def freeze(*arguments, **options):
        record = measure(*arguments, **options)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        return record

    monkeypatch.setattr(benchmarking, "bench", freeze)
    before = files(workplace)
    result = invoke(*BENCH.split(), "-o", disk)
    assert_refused(result, "the file system is read-only", "-o")
    assert "resnet18-int8-onnxruntime" in result.stdout
    assert "raw samples" not in result.stdout
    assert files(workplace) == before


# --- an output that would refuse the results, refused before they are measured


@pytest.fixture
def nothing_is_measured(monkeypatch):
    monkeypatch.setattr(benchmarking, "bench", lambda *arguments, **options: pytest.fail("engines were measured"))


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/dev/null", "/dev/null is not a folder"),
        ("image.png", "image.png is not a folder"),
        ("image.png/results", "image.png/results: a part of the path is not a folder"),
        (LONG, f"{LONG}: the name is too long"),
        (f"new/{LONG}", f"{LONG}: the name is too long"),
    ],
)
def test_output_that_takes_no_files(invoke, workplace, output, message):
    before = files(workplace)
    assert_refused(invoke(*BENCH.split(), "-o", output), message)
    assert files(workplace) == before


@pytest.mark.usefixtures("nothing_is_measured")
def test_output_on_a_disk_that_is_read_only(invoke, workplace, mount_tmpfs):
    disk = mount_tmpfs("size=2m")
    (disk / "there").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in ("there", "new"):
        assert_refused(invoke(*BENCH.split(), "-o", disk / folder), "the file system is read-only", "-o")


def test_output_is_made_for_the_results_alone(invoke, workplace, monkeypatch):
    """Nothing was measured: the folder that was made for it goes."""
    monkeypatch.setattr(benchmarking, "bench", lambda *arguments, **options: 1 / 0)
    before = files(workplace)
    assert isinstance(invoke(*BENCH.split(), "-o", "new/results").exception, ZeroDivisionError)
    assert files(workplace) == before
