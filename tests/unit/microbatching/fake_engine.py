"""An engine that tests of micro-batching hold in their hands."""

import contextlib
import threading
import time

import numpy as np

from resnet_deploy.protocols import TensorSpec

IMAGES, LOGITS = TensorSpec("images", "int32", (2,)), TensorSpec("logits", "float32", (3,))
LONG_S = 60.0  # so long that a test has failed


class Fake:
    """Answers (number, 2 number, -number); notes what it saw; waits when told to; fails for batches it is told of."""

    def __init__(self):
        self.batches = []
        self.failing = {}  # number of an image to what its batch raises
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        self.go.set()

    def __call__(self, images, logits):
        numbers = images[:, 0].tolist()
        assert images.shape == (len(numbers), 2)
        assert logits.shape == (len(numbers), 3)
        np.testing.assert_array_equal(images[:, 1], -images[:, 0])  # a row is whole
        self.batches.append(numbers)
        self.begun.release()
        assert self.go.wait(LONG_S)
        for number in numbers:
            if number in self.failing:
                raise self.failing[number]
        logits[...] = answers(numbers)

    def turn(self):
        return contextlib.nullcontext(self)

    def hold(self):
        """Let batches begin and not end, until ``go`` is set."""
        self.go.clear()

    def await_begin(self):
        assert self.begun.acquire(timeout=LONG_S)

    @property
    def seen(self):
        return [number for batch in self.batches for number in batch]


def image(number):
    return np.array([number, -number], np.int32)


def several(*numbers):
    return np.stack([image(number) for number in numbers])


def answers(numbers):
    return np.array([[number, 2 * number, -number] for number in numbers], np.float32)


def await_true(condition):
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def await_line(batcher, count):
    await_true(lambda: len(batcher._in_line) >= count)
