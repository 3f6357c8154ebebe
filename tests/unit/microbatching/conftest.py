"""The fake engine, and batchers at it."""

import pytest
from fake_engine import IMAGES, LOGITS, Fake, image

from resnet_deploy.microbatching import Batching, MicroBatcher


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def make(fake):
    """Make a batcher: (size=4, **batching); closed at the end."""
    made = []

    def run(size=4, **batching):
        settings = Batching(**{"max_delay_s": 0.0} | batching)
        made.append(MicroBatcher(fake.turn, IMAGES, LOGITS, size, settings))
        return made[-1]

    yield run
    fake.go.set()
    for batcher in made:
        batcher.close()


@pytest.fixture
def held(make, fake):
    """A batcher whose engine is busy with image 0 until ``fake.go`` is set: what is submitted waits. (size=4, ...)."""

    def run(size=4, **batching):
        batcher = make(size, **batching)
        fake.hold()
        batcher.first = batcher.submit(image(0))
        fake.await_begin()
        return batcher

    return run
