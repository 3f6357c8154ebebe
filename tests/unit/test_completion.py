"""What the shell is offered, as it asks: in a process of its own, without a heavy library."""

import os
import subprocess
import sys

import pytest

from resnet_deploy.backends import BACKENDS
from resnet_deploy.cli.completion import ARCHITECTURES


def offered(*words):
    environment = {
        **os.environ,
        "_RESNET_DEPLOY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("resnet-deploy", *words)),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; from resnet_deploy.cli import main; main(prog_name='resnet-deploy')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return [line.split(",", 1)[1] for line in done.stdout.split()]


def test_commands_and_options():
    assert offered("ver") == ["verify"]
    assert offered("bench", "--da") == ["--data"]


def test_architectures_are_those_that_there_are():
    models = pytest.importorskip("resnet_deploy.models")

    assert models.ARCHITECTURES == ARCHITECTURES
    assert offered("export", "--arch", "resnet1") == ["resnet18", "resnet101", "resnet152"]


def test_backends_that_have_a_builder():
    everything = offered("build", "--backend", "''")  # nothing typed yet

    assert everything == ["auto", *(backend.name for backend in BACKENDS if backend.builder)]
    assert offered("build", "--backend", "tensorrt") == ["tensorrt-rtx", "tensorrt"]
    assert "torch" in {backend.name for backend in BACKENDS}
    assert offered("build", "--backend", "torch") == []


def test_lists_go_on_after_a_comma():
    assert offered("bench", "--scopes", "host,de") == ["host,device"]
    assert "int8,fp16" in offered("prebuild", "--precisions", "int8,")
    assert "int8,int8" not in offered("prebuild", "--precisions", "int8,")
