"""Kernels in print: facts, the table, findings; of a plan made by hand."""

import io
from dataclasses import replace

from compiled_factory import PROGRAM, plan_bytes
from rich.console import Console

from resnet_deploy.compiled.lint import Finding
from resnet_deploy.compiled.plan import read_plan
from resnet_deploy.report.kernels import finding_lines, kernel_facts, print_kernels

GRAPH = read_plan(plan_bytes(PROGRAM))
ODD = read_plan(plan_bytes(PROGRAM.replace("type=uint8", "type=odd")))


def printed(graph):
    console = Console(file=io.StringIO(), width=160)
    print_kernels(graph, 8, console)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_facts():
    facts = dict(kernel_facts(GRAPH, 8))
    assert facts["kernels"] == "4 by the plan"
    assert facts["multiplied"] == "2 float16 x float16 -> float16; 1 float16 x float16 -> float32"
    assert facts["fused"] == "relu in 2, bias in 2, add in 1"
    assert facts["constants"] == "0.0 MB"
    assert dict(kernel_facts(replace(GRAPH, constants_bytes=None), 8))["constants"] == ""
    assert facts["traffic"] == "0.0 MB of activations per image at batch 8; no timing"
    assert dict(kernel_facts(ODD, 8))["traffic"] == ""


def test_the_table():
    rows = printed(GRAPH)
    line = "conv2 + add + relu convolution float16 x float16 -> float16 bias, add, relu 0.00"
    assert line.split() in rows
    assert sum(row[-1:] == ["0.00"] for row in rows) == 4
    assert sum(row[-1:] == ["–"] for row in printed(ODD)) == 1  # noqa: RUF001 - what stands for an empty cell


def test_a_finding_is_a_line():
    assert finding_lines([Finding("Q/DQ", "conv1", "it quantizes", "move it")]) == [
        "conv1: Q/DQ: it quantizes; move it"
    ]
