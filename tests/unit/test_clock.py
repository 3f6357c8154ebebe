"""The wall clock may jump: it labels what is made, and measures nothing."""

import ast
from pathlib import Path

import pytest

import resnet_deploy

PACKAGE = Path(resnet_deploy.__file__).parent
OF_THE_WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "clock_gettime"}
ALLOWED = {"bench/record_files.py": 1}  # created_now: the one label


def readings(source):
    """Calls that read the wall clock, as ``time.time()`` and ``datetime.now()``."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = [call for call in calls if isinstance(call, ast.Attribute) and call.attr in OF_THE_WALL]
    roots = [call.value.id if isinstance(call.value, ast.Name) else getattr(call.value, "attr", "") for call in found]
    return sum(root in ("time", "datetime", "date") for root in roots)


def test_one_function_reads_the_wall_clock():
    modules = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, source in modules.items() if (count := readings(source))} == ALLOWED
    assert not [name for name, source in modules.items() if "from time import" in source]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import time\nbegun = time.time()", 1),
        ("import datetime\nbegun = datetime.datetime.now()", 1),
        ("from datetime import datetime\nbegun = datetime.now(None)", 1),
        ("import time\nbegun = time.monotonic(), time.perf_counter()", 0),
    ],
)
def test_readings_are_found(source, count):
    assert readings(source) == count
