"""Any number of images through a runner that takes a limited range of batch sizes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_deploy.batching import check_feed, check_images, infer, infer_some, run_into, run_once
from resnet_deploy.errors import FeedError
from resnet_deploy.protocols import TensorSpec
from resnet_deploy.specs import BatchRange

SHAPE = (2, 3, 3)


class Recorder:
    """Answers (number, -number) for an image whose pixels are all that number; keeps what it was fed."""

    def __init__(self, least=1, most=4):
        self.input = TensorSpec("images", "uint8", SHAPE)
        self.output = TensorSpec("logits", "float32", (2,))
        self.batch = BatchRange(least, most, most)
        self.feeds, self.steps = [], []

    def load(self, feed):
        check_feed(feed, self)
        self.feeds.append(feed)
        self.steps.append("load")

    def enqueue(self):
        self.steps.append("enqueue")

    def synchronize(self):
        self.steps.append("synchronize")

    def fetch(self):
        self.steps.append("fetch")
        number = self.feeds[-1][:, 0, 0, 0].astype(np.float32)
        return np.stack([number, -number], axis=1)

    def close(self):
        pass


def numbered(count):
    """Images of which each is filled with its own number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, *SHAPE))


@given(count=st.integers(0, 70), least=st.integers(1, 9), span=st.integers(0, 9))
def test_every_image_is_answered_once_and_in_order(count, least, span):
    runner = Recorder(least, least + span)
    answers = infer(runner, numbered(count))
    assert answers.dtype == np.float32
    np.testing.assert_array_equal(answers, np.stack([np.arange(count), -np.arange(count)], axis=1))

    sizes = [len(feed) for feed in runner.feeds]
    largest = least + span
    assert len(sizes) == math.ceil(count / largest)
    assert sizes[:-1] == [largest] * len(sizes[:-1])
    assert sum(sizes) == count + max(0, least - (count % largest or largest)) * bool(count)
    assert all(feed.flags.c_contiguous for feed in runner.feeds)
    # The remainder is filled up with its own last image: nothing unlike the data may reach an engine.
    assert all(feed.max() < count for feed in runner.feeds)
    if sizes and sum(sizes) > count:
        padding = runner.feeds[-1][count - sum(sizes) :]
        np.testing.assert_array_equal(padding, np.full_like(padding, count - 1))


def test_no_images_give_no_answers_and_no_call():
    runner = Recorder()
    assert infer(runner, numbered(0)).shape == (0, 2)
    assert runner.steps == []


def test_steps_in_their_order():
    runner = Recorder()
    run_once(runner, np.ascontiguousarray(numbered(3)))
    assert runner.steps == ["load", "enqueue", "synchronize", "fetch"]


@pytest.mark.parametrize("order", ["F", "reversed", "strided"])
def test_images_in_any_memory_order(order):
    images = np.ascontiguousarray(numbered(6))
    images = {"F": np.asfortranarray(images), "reversed": images[::-1], "strided": images[::2]}[order]
    runner = Recorder()
    np.testing.assert_array_equal(infer(runner, images)[:, 0], images[:, 0, 0, 0])
    assert all(feed.flags.c_contiguous for feed in runner.feeds)


def test_images_of_the_caller_are_left_alone():
    images = np.ascontiguousarray(numbered(5))
    before = images.copy()
    infer(Recorder(least=4, most=4), images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint16", "object"])
def test_wrong_dtype_is_named(dtype):
    with pytest.raises(FeedError, match=f"images has dtype {dtype}, the engine takes uint8") as caught:
        infer(Recorder(), numbered(2).astype(dtype))
    assert caught.value.hint


def test_foreign_byte_order_is_another_dtype():
    runner = Recorder()
    runner.input = TensorSpec("images", "float32", SHAPE)
    check_images(np.zeros((1, *SHAPE), np.dtype("float32")), runner)
    foreign = np.dtype("float32").newbyteorder()
    with pytest.raises(FeedError, match="the engine takes float32"):
        check_images(np.zeros((1, *SHAPE), foreign), runner)


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), SHAPE, (4, 18), (1, 3, 2, 3), (1, *SHAPE, 1), (3,), ()])
def test_wrong_shape_is_named(shape):
    with pytest.raises(FeedError, match=r"has shape .*, the engine takes \(N, 2, 3, 3\)") as caught:
        infer(Recorder(), np.zeros(shape, np.uint8))
    assert str(shape) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("size", [0, 1, 5])
def test_batch_out_of_range_is_named(size):
    with pytest.raises(FeedError, match=f"batch of {size}, the engine takes 2 to 4") as caught:
        check_feed(np.zeros((size, *SHAPE), np.uint8), Recorder(least=2))
    assert caught.value.hint


@pytest.mark.parametrize("size", [2, 3, 4])
def test_batch_in_range_is_taken(size):
    check_feed(np.zeros((size, *SHAPE), np.uint8), Recorder(least=2))


def test_batch_that_is_not_contiguous_is_named():
    with pytest.raises(FeedError, match="not contiguous") as caught:
        check_feed(np.zeros((8, *SHAPE), np.uint8)[::2], Recorder())
    assert "ascontiguousarray" in caught.value.hint


def in_turns(runners, images):
    logits = np.full((len(images), 2), np.nan, np.float32)
    assert infer_some(runners, images, logits) == len(images)
    return logits


class Writer(Recorder):
    """Writes its answers where it was told, and notes whose memory that was."""

    def __init__(self, **options):
        super().__init__(**options)
        self.out, self.places = None, []

    def load(self, feed):
        super().load(feed)
        self.out = None

    def write_into(self, out):
        self.out = out
        self.places.append(out.ctypes.data)

    def fetch(self):
        answers = super().fetch()
        if self.out is None:
            return answers
        self.out[...] = answers
        return self.out


@pytest.mark.parametrize("count", [1, 2])
def test_a_backend_that_can_writes_whole_batches_where_they_go(count):
    runners = [Writer(least=4) for _ in range(count)]
    logits = np.full((10, 2), np.nan, np.float32)
    infer_some(runners, numbered(10), logits)
    np.testing.assert_array_equal(logits, infer(Recorder(), numbered(10)))
    # Not the last two: their batch is filled up to four, and would not fit.
    places = sorted(place for runner in runners for place in runner.places)
    assert places == [logits[row:].ctypes.data for row in (0, 4)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_runners_take_turns_and_answers_keep_their_order(count):
    runners = [Recorder() for _ in range(count)]
    images = numbered(18)  # five batches, the last of two
    np.testing.assert_array_equal(in_turns(runners, images), infer(Recorder(), images))
    calls = ["load", "enqueue", "synchronize", "fetch"]
    assert [runner.steps for runner in runners] == [calls * len(range(one, 5, count)) for one in range(count)]
    assert in_turns(runners, images[:0]).shape == (0, 2)


def test_as_many_batches_are_under_way_as_there_are_runners():
    steps = []

    class Noted(Recorder):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def load(self, feed):
            steps.append(f"load {self.name}")
            super().load(feed)

        def fetch(self):
            steps.append(f"fetch {self.name}")
            return super().fetch()

    in_turns([Noted("a"), Noted("b")], numbered(12))
    assert steps == ["load a", "load b", "fetch a", "load a", "fetch b", "fetch a"]


def test_what_was_begun_is_waited_for_when_a_batch_fails():
    class Failing(Recorder):
        def enqueue(self):
            raise KeyboardInterrupt

    runners = [Recorder(), Failing()]
    with pytest.raises(KeyboardInterrupt):
        in_turns(runners, numbered(12))
    assert runners[0].steps == ["load", "enqueue", "synchronize"]


class Interrupted(Recorder):
    """Is struck once, within a step or after it."""

    def __init__(self, step, **options):
        super().__init__(**options)
        self.step = step

    def strike(self, step):
        if self.step == step:
            self.step = None
            raise KeyboardInterrupt

    def enqueue(self):
        super().enqueue()
        self.strike("enqueue")

    def synchronize(self):
        self.strike("synchronize")
        super().synchronize()

    def fetch(self):
        answers = super().fetch()
        self.strike("fetch")
        return answers


class Ahead(Interrupted):
    """Answers what was enqueued last, when another batch is loaded already."""

    loads_ahead = True

    def enqueue(self):
        self.enqueued = self.feeds[-1]
        super().enqueue()

    def fetch(self):
        number = self.enqueued[:, 0, 0, 0].astype(np.float32)
        super().fetch()
        return np.stack([number, -number], axis=1)


@pytest.mark.parametrize("step", ["enqueue", "synchronize", "fetch"])
def test_an_interrupted_batch_is_waited_for(step):
    """Else the next call finds the runner busy, and memory of this one is written to."""
    images = np.ascontiguousarray(numbered(4))

    def run_ahead(runner, images):
        infer(runner, np.concatenate([images] * 3))

    for kind, call in (
        (Interrupted, run_once),
        (Interrupted, lambda runner, images: run_into(runner, images, np.empty((4, 2), np.float32))),
        (Interrupted, lambda runner, images: in_turns([runner, Recorder()], images)),
        (Interrupted, lambda runner, images: in_turns([runner, Recorder()], np.concatenate([images] * 3))),
        (Ahead, run_ahead),
    ):
        runner = kind(step)
        with pytest.raises(KeyboardInterrupt):
            call(runner, images)
        assert runner.steps[-1] == "synchronize"


@pytest.mark.parametrize("runners", [[Recorder()], [Recorder(), Recorder()], [Ahead(None)]], ids=["1", "2", "ahead"])
@pytest.mark.parametrize("most", [1, 2, 5, 9])
def test_what_is_stopped_says_how_far_it_came(runners, most):
    """Its answers are there up to that, and no batch is under way."""
    images, logits = numbered(18), np.full((18, 2), np.nan, np.float32)
    asked = iter(range(1, 100))
    done = infer_some(runners, images, logits, lambda: next(asked) < most)
    assert done == min(4 * most, 18)
    np.testing.assert_array_equal(logits[:done], infer(Recorder(), images)[:done])
    assert np.isnan(logits[done:]).all()
