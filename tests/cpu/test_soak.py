"""A soak in small: every kind of request is made and checked, and what is planted is found."""

import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="its tensors are among what is asked")
pytest.importorskip("onnxruntime", reason="it runs the engine")
if not Path("/proc/self/smaps_rollup").exists():
    pytest.skip("Linux tells what a process holds", allow_module_level=True)

import soak
import soak_child
import soak_reading
from soak_records import Load, SoakRecord
from soak_requests import BATCHING, KINDS, Subject, WrongError, make_golden
from soak_verdicts import handles, judge, readings

from resnet_deploy.engine import load


@pytest.fixture(scope="module")
def subject(deployment, tmp_path_factory):
    path = deployment.engines["int8"]
    with load(path, batching=BATCHING) as engine:
        golden = make_golden(engine, tmp_path_factory.mktemp("soak"), seed=0)
        yield Subject(engine, golden, Load(engine=str(path), window_s=0.1, windows=3, workers=3))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_answered_rightly(subject, kind):
    before = list(Path("/proc/self/fd").iterdir())
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert KINDS[kind][0](subject, rng) >= 0
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)
    assert subject.golden.worst <= subject.golden.opening.tolerance


# Those that are answered at all; `deadline` may be answered never.
@pytest.mark.parametrize(
    "kind", ["call", "call into", "call torch", "call files", "submit", "cancel", "flood", "event loop"]
)
def test_the_answer_to_another_image_is_wrong_in_every_kind(subject, kind):
    golden = subject.golden
    shifted = replace(golden, logits=np.roll(golden.logits, 1, 0), of_files=np.roll(golden.of_files, 1, 0))
    rng = np.random.default_rng(0)
    other, request = replace(subject, golden=shifted), KINDS[kind][0]
    with pytest.raises(WrongError, match="off by"):
        request(other, rng)


def test_no_answer_passes_for_another(subject):
    golden = subject.golden
    for row in range(len(golden.images)):
        for other in {*range(len(golden.images))} - {row}:
            with pytest.raises(WrongError):
                golden.compare(golden.logits[row], golden.logits[other])
    with pytest.raises(WrongError, match="off by nan"):
        golden.compare(np.full_like(golden.logits, np.nan), golden.logits)
    with pytest.raises(WrongError, match="shape"):
        golden.compare(golden.logits[:3], golden.logits[:4])


def test_windows_tell_what_was_done(subject):
    windows = list(soak_child.soak(subject, KINDS))
    assert len(windows) == 3
    done = {kind for window in windows for kind in window.times}
    assert len(done) > 2  # as it comes, of at least ten requests
    assert sum(window.wrong_count for window in windows) == 0
    assert all(window.processor_s > 0 for window in windows)
    assert len(set(readings(windows, "files"))) == 1


def test_handles_that_are_left_are_found(subject):
    """Descriptors of the kind that a forgotten file leaves, and threads that wait, one of each every 5 ms."""
    files, ends, slow = [], [], threading.Event()
    asked = msgspec.structs.replace(subject.load, window_s=0.01, windows=4, workers=1)

    def leak(subject, rng):
        if len(files) < 20:
            files.append(os.open(os.devnull, os.O_RDONLY))
            ends.append(threading.Event())
            threading.Thread(target=ends[-1].wait, daemon=True).start()
        slow.wait(0.005)
        return 0

    try:
        windows = list(soak_child.soak(replace(subject, load=asked), {"leak": (leak, 1)}))
    finally:
        for file, end in zip(files, ends, strict=True):
            os.close(file)
            end.set()
    for name in ("files", "threads"):
        assert handles(name, readings(windows, name)).verdict == "grew", name


def test_what_fails_is_told_with_its_kind(subject):
    def fails(subject, rng):
        raise ZeroDivisionError("no such luck")

    asked = msgspec.structs.replace(subject.load, window_s=0.01, windows=1, workers=1)
    (window,) = soak_child.soak(replace(subject, load=asked), {"luckless": (fails, 1)})
    assert window.wrong[0] == "luckless: ZeroDivisionError: no such luck"
    assert window.wrong_count >= len(window.wrong)


def test_memory_that_is_held_is_read():
    """32 MB of either kind; what else is allocated meanwhile is less than one.

    What is given back is less sharp: the allocator may keep the first kind, and gives back what others left.
    """
    size = 32_000_000
    before = soak_reading.read()
    held = np.ones(size, np.uint8)
    with mmap.mmap(-1, size) as mapped:
        mapped.write(bytes([1]) * size)
        during = soak_reading.read()
    del held
    after = soak_reading.read()
    assert before.heap is not None
    assert during.heap - before.heap == pytest.approx(size, abs=1e6)
    assert after.heap - before.heap == pytest.approx(0, abs=1e6)
    assert during.private - before.private > size - 1e6
    assert during.private - after.private > size / 2


def test_the_command(deployment, tmp_path, monkeypatch, capsys):
    """A process of its own, half a second: its record is there, and the exit code is what it says."""
    out = tmp_path / "soak.json"
    arguments = [str(deployment.engines["int8"]), "--minutes", "0.004", "--window", "0.01", "-o", str(out)]
    monkeypatch.setattr("sys.argv", ["soak.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        soak.main()
    record = msgspec.json.decode(out.read_bytes(), type=SoakRecord)
    (one,) = record.soaks
    assert (one.end, len(one.windows), judge(one).wrong) == ("", 24, 0)
    assert ended.value.code == int(judge(one).is_bad)
    assert str(deployment.folder) not in out.read_text()
    assert "| wrong answers | 0 |" in capsys.readouterr().out


def test_a_process_that_dies_is_told(deployment, tmp_path, monkeypatch):
    opening = '{"images": 1, "largest": 1.0, "apart": 1.0, "tolerance": 0.25}'
    child = tmp_path / "soak_child.py"
    child.write_text(f"import os\nprint('{opening}', flush=True)\nos.abort()\n")
    monkeypatch.setattr(soak, "HERE", tmp_path)
    (found,) = soak.soak(Load(engine=str(deployment.engines["int8"]), windows=8))
    assert found.end == "exit code -6 after 0 of 8 windows"
    child.write_text("raise SystemExit(2)\n")
    with pytest.raises(SystemExit, match="could not be opened"):
        list(soak.soak(Load(engine=str(deployment.engines["int8"]))))


@pytest.fixture
def child_that_dies(subject, tmp_path, monkeypatch):
    """A mock of the process: once it tells two windows and half of a third, the next time nothing."""
    asked = msgspec.structs.replace(subject.load, window_s=0.01, windows=1, workers=1)
    (told,) = (msgspec.json.encode(one).decode() for one in soak_child.soak(replace(subject, load=asked), KINDS))
    opening = msgspec.json.encode(subject.golden.opening).decode()
    (tmp_path / "told").write_text("\n".join([opening, told, told, told[:50]]))
    (tmp_path / "soak_child.py").write_text(
        "from pathlib import Path\ntold = Path(__file__).parent / 'told'\nprint(told.read_text())\ntold.unlink()\n"
    )
    monkeypatch.setattr(soak, "HERE", tmp_path)


def test_each_window_is_told_before_the_next(deployment, child_that_dies):
    """What there is says so, should nothing come after it."""
    found = list(soak.soak(Load(engine=str(deployment.engines["int8"]), windows=8)))
    assert [(len(one.windows), one.end) for one in found] == [
        (1, "cut off after 1 of 8 windows"),
        (2, "cut off after 2 of 8 windows"),
        (2, "exit code 0 after 2 of 8 windows"),
    ]


def test_a_second_engine_that_fails_leaves_the_record_of_the_first(deployment, child_that_dies, tmp_path, monkeypatch):
    engine, out = str(deployment.engines["int8"]), tmp_path / "soak.json"
    monkeypatch.setattr("sys.argv", ["soak.py", engine, engine, "-o", str(out)])
    with pytest.raises(SystemExit, match="could not be opened"):
        soak.main()
    (kept,) = msgspec.json.decode(out.read_bytes(), type=SoakRecord).soaks
    assert kept.end == "exit code 0 after 2 of 360 windows"


@pytest.mark.parametrize(
    ("second", "extra", "match"), [("missing", [], "missing cannot be opened"), (".", ["--minutes", "1"], "too few")]
)
def test_what_cannot_be_soaked_is_refused_before_any_load(deployment, tmp_path, monkeypatch, second, extra, match):
    engine, out = deployment.engines["int8"], tmp_path / "soak.json"
    monkeypatch.setattr("sys.argv", ["soak.py", str(engine), str(engine / second), "-o", str(out), *extra])
    with pytest.raises(SystemExit, match=match):
        soak.main()
    assert not out.exists()
