"""Engines of several models in one folder: which command compares those of one."""

import re
import shlex
from pathlib import Path

import pytest
from command_line import BENCH, assert_refused

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")


@pytest.fixture
def add_engine(workplace, copy_engine):
    """Put an engine into engines/, of the model that is there or of another: (name, precision, weights)."""

    def add(name, precision, weights=""):
        def change(manifest):
            manifest["card"]["weights_sha256"] = weights or manifest["card"]["weights_sha256"]

        copy_engine(precision, to=workplace / "engines" / name, change=change)

    return add


def suggested(invoke):
    """The paths of each command in the hint of a bare `bench`."""
    result = invoke(*BENCH.split(), "--no-pytorch")
    assert_refused(result, "are of different models: weights_sha256 differs", "name the engines of one model: ")
    return re.findall(r"`resnet-deploy bench ([^`]*)`", result.stderr)


def test_hint_names_the_engines_that_are_there(invoke, add_engine):
    add_engine("resnet18-fp16-onnxruntime", "fp16")
    add_engine("resnet34-fp16-onnxruntime", "fp16", "0" * 64)
    one, other = suggested(invoke)
    assert (one, other) == ("engines/resnet18-*", "engines/resnet34-fp16-onnxruntime")
    for command in (sorted(Path().glob(one)), [other]):
        assert invoke(*BENCH.split(), "--no-pytorch", *command).exit_code == 0


def test_hint_has_no_pattern_where_it_would_catch_another_model(invoke, add_engine):
    add_engine("resnet18-fp16-onnxruntime", "fp16")
    add_engine("resnet18-of mine-fp16", "fp16", "0" * 64)
    commands = [shlex.split(command) for command in suggested(invoke)]
    assert commands == [
        ["engines/resnet18-fp16-onnxruntime", "engines/resnet18-int8-onnxruntime"],
        ["engines/resnet18-of mine-fp16"],
    ]


def test_hint_stays_short_among_many_models(invoke, add_engine):
    for number in range(5):
        add_engine(f"net{number}", "fp16", str(number) * 64)
    assert suggested(invoke) == ["engines/net0", "engines/net1", "engines/net2"]
