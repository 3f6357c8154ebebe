"""The lower bounds in pyproject.toml are those that are tested: the versions in constraints-oldest.txt."""

import re
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
UNTESTED = {"gpu", "ort-rtx", "pycuda", "dev"}  # three need a GPU; the last is no user's
BOUND = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<version>[\d.]+)(;.*)?")


def numbers(version):
    """Make versions comparable: 2.10 is 2.10.0."""
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return parts


def lower_bounds():
    """Yield extra, name and lower bound of every dependency of a tested extra."""
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    assert extras.keys() > UNTESTED
    for extra, dependencies in extras.items():
        for text in dependencies if extra not in UNTESTED else ():
            bound = BOUND.fullmatch(text.replace(" ", ""))
            assert bound is not None, f"{text} has no lower bound, or another form"
            yield extra, bound["name"].lower(), bound["version"]


@pytest.fixture(scope="module")
def oldest():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


BOUNDS = sorted(set(lower_bounds()))


def test_there_are_bounds():
    assert len(BOUNDS) > 20


@pytest.mark.parametrize(("extra", "name", "version"), BOUNDS)
def test_a_lower_bound_is_the_version_that_is_tested(oldest, extra, name, version):
    assert numbers(oldest[name]) == numbers(version), f"constraints-oldest.txt says how it is made: [{extra}] {name}"


def test_newer_pins_are_within_the_bounds():
    text = (ROOT / "constraints.txt").read_text()
    newest = dict(re.findall(r"^([\w.-]+)==([\d.]+)", text, re.MULTILINE))
    for _, name, version in BOUNDS:
        if name != "tomli":  # for Python 3.10 alone
            assert numbers(newest[name]) >= numbers(version), name
