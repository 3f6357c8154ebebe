"""Calibration takes constant memory: a process that observes many images peaks where one that observes few does."""

import subprocess
import sys

import pytest

PROGRAM = """
import re, sys
from pathlib import Path
from resnet_deploy.pipeline.source import read_source
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.quantize import calibrate

source, count, kept = read_source(Path(sys.argv[1])), int(sys.argv[2]), []
if sys.argv[3] == "keep":
    count_real = calibrate._count
    calibrate._count = lambda histogram, values, what: (kept.append(values.copy()), count_real(histogram, values, what))
images = (synthetic_images(source.card.preprocess, 8, seed=seed) for seed in range(count // 8))
histograms, seen = calibrate.observe(source.model, images)
# The peak that getrusage gives is the parent's where that was larger.
print(seen, len(histograms), re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture
def peak_kib(deployment, users_memory):
    def run(images, keep=""):
        command = [sys.executable, "-c", PROGRAM, deployment.model, str(images), keep]
        done = subprocess.run(command, env=users_memory, capture_output=True, text=True, check=True)
        seen, tensors, peak = map(int, done.stdout.split())
        assert (seen, tensors) == (images, 30)
        return peak

    return run


def test_memory_does_not_grow_with_the_images(peak_kib):
    # Of two processes each: now and then one peaks 5 % lower, whatever it observes.
    few = max(peak_kib(64) for _ in range(2))
    assert min(peak_kib(512) for _ in range(2)) <= 1.05 * few
    assert peak_kib(512, "keep") > 1.1 * few  # the twin keeps activations, as others do
