"""Processes that hang, die, or fail: each is one error, and none is left."""

import os
import sys
import textwrap

import pytest

from resnet_deploy.bench.loadgen_spec import LoadgenPlan
from resnet_deploy.errors import DataError, FileError, LoadgenError
from resnet_deploy.pipeline.loadgen_child import ChildAnswer, ChildRequest
from resnet_deploy.pipeline.loadgen_process import Patience, run_child

REQUEST = ChildRequest(plan=LoadgenPlan(scenario="offline", batch=1), bundle="nowhere", threads=1)
PATIENCE = Patience(opening=30.0, testing=30.0)
HEAD = """
import os, sys, time
from pathlib import Path
pipe = int(sys.argv[1])
Path("pid").write_text(str(os.getpid()))
"""


@pytest.fixture
def run(tmp_path):
    """Run a program in place of the test's own process."""

    def start(code, patience=PATIENCE):
        program = (sys.executable, "-c", HEAD + textwrap.dedent(code))
        try:
            return run_child(REQUEST, tmp_path, patience, program)
        finally:
            with pytest.raises(ProcessLookupError):
                os.kill(int((tmp_path / "pid").read_text()), 0)

    return start


def test_an_answer_is_handed_on_and_nothing_but_logs_is_left(run, tmp_path):
    answer = run("""
        assert b'"nowhere"' in sys.stdin.buffer.read()
        Path("log").touch()
        print("what a library prints")
        Path("answer.json").write_text('{"device": "gpu"}')
    """)
    assert answer == ChildAnswer(device="gpu")
    assert {path.name for path in tmp_path.iterdir()} == {"pid", "log"}


def test_one_that_hangs_before_the_test_is_ended(run):
    with pytest.raises(LoadgenError, match="no progress for 1 s, opening and warming up"):
        run("time.sleep(60)", Patience(opening=1.0, testing=30.0))


def test_one_that_hangs_in_the_test_is_ended_though_it_says_that_it_lives(run):
    with pytest.raises(LoadgenError, match="no progress for 1 s, after 41 images"):
        run(
            """
            while True:
                os.write(pipe, b"42\\n")
                time.sleep(0.1)
            """,
            Patience(opening=30.0, testing=1.0),
        )


def test_one_that_makes_progress_is_let_be(run):
    answer = run(
        """
        for count in range(25):
            os.write(pipe, b"%d\\n" % (count + 1))
            time.sleep(0.1)
        Path("answer.json").write_text("{}")
        """,
        Patience(opening=30.0, testing=2.0),
    )
    assert answer == ChildAnswer()


def test_one_that_is_killed_is_an_error_that_says_so(run):
    with pytest.raises(LoadgenError, match="ended by signal 9"):
        run("os.kill(os.getpid(), 9)")


def test_one_that_dies_of_itself_is_quoted(run):
    with pytest.raises(LoadgenError, match=r"ended with status 7: Segmentation fault, or so$"):
        run("""
            print("Segmentation fault, or so", file=sys.stderr, flush=True)
            os._exit(7)
        """)


def test_one_that_ends_well_and_says_nothing_is_an_error(run):
    with pytest.raises(LoadgenError, match=r"ended with status 0$"):
        run("")


def test_our_errors_keep_their_class_and_hint(run):
    with pytest.raises(DataError, match=r"^no image$") as caught:
        run("""Path("answer.json").write_text('{"error": "no image", "hint": "try", "kind": "DataError"}')""")
    assert caught.value.hint == "try"


@pytest.mark.parametrize("kind", ["", "ZeroDivisionError", "inspect"])
def test_other_errors_are_loadgens(run, kind):
    with pytest.raises(LoadgenError, match=r"failed: by zero$"):
        run(f"""Path("answer.json").write_text('{{"error": "by zero", "kind": "{kind}"}}')""")


def test_the_real_process_says_that_there_is_no_engine(tmp_path):
    pytest.importorskip("mlperf_loadgen")
    with pytest.raises(FileError, match="nowhere does not exist"):
        run_child(REQUEST, tmp_path, Patience())
