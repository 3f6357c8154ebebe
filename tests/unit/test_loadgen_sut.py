"""A runner as LoadGen's system under test, with LoadGen's own functions stood in for."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("mlperf_loadgen", reason="it has wheels for x86-64 only")

from resnet_deploy.bench import loadgen_sut
from resnet_deploy.bench.loadgen_spec import LoadgenPlan
from resnet_deploy.bench.loadgen_sut import SampleLibrary, SystemUnderTest, images_of, warm_up
from resnet_deploy.protocols import TensorSpec
from resnet_deploy.specs import BatchRange

IMAGES = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)


class Recorder:
    """Answers the class that an image's pixel names; keeps the sizes of its batches."""

    def __init__(self, least=1, most=4, loads_ahead=False):
        self.input = TensorSpec("images", "uint8", (1, 1, 1))
        self.output = TensorSpec("logits", "float32", (20,))
        self.batch = BatchRange(least, most, most)
        self.loads_ahead = loads_ahead
        self.sizes = []

    def load(self, feed):
        assert self.batch.min <= len(feed) <= self.batch.max
        assert feed.flags.c_contiguous
        self.feed = feed

    def enqueue(self):
        self.sizes.append(len(self.feed))
        self.answers = np.eye(20, dtype=np.float32)[self.feed.ravel()]

    def synchronize(self):
        pass

    def fetch(self):
        return self.answers


@pytest.fixture
def completed(monkeypatch):
    """What LoadGen was told, as (id, class), read from where it was told to look."""
    import ctypes

    told = []

    def complete(responses):
        told.extend((one.id, ctypes.c_int64.from_address(one.data).value) for one in responses)
        assert {one.size for one in responses} == {8}

    monkeypatch.setattr(loadgen_sut.loadgen, "QuerySamplesComplete", complete)
    return told


def library(images=IMAGES):
    made = SampleLibrary(lambda positions: images[positions], len(images))
    made.load(range(len(images)))
    return made


def no_error(error):
    raise error


def system(runner, *, batch=4, images=None, abandon=no_error):
    return SystemUnderTest(runner, images or library(), batch, abandon)


@pytest.mark.parametrize("loads_ahead", [False, True])
def test_a_query_is_answered_in_batches_and_in_order(completed, loads_ahead):
    runner = Recorder(loads_ahead=loads_ahead)
    under_test = system(runner)
    indices = [7, 3, 19, 0, 3, 5, 6, 7, 8, 9]
    under_test.answer([100 + position for position in range(10)], indices)
    assert completed == [(100 + position, index) for position, index in enumerate(indices)]
    assert runner.sizes == [4, 4, 2]
    assert under_test.answered == 10


def test_a_batch_too_small_is_filled_up_and_answered_once(completed):
    runner = Recorder(least=3)
    system(runner).answer([1, 2], [4, 5])
    assert completed == [(1, 4), (2, 5)]
    assert runner.sizes == [3]


def test_a_logit_that_is_no_number_is_no_class(completed):
    class Broken(Recorder):
        def fetch(self):
            answers = self.answers.copy()
            answers[1, 3] = np.nan
            return answers

    system(Broken()).answer([1, 2, 3], [4, 5, 6])
    assert completed == [(1, 4), (2, -1), (3, 6)]


def test_the_server_takes_together_what_waits(completed):
    runner = Recorder()
    under_test = system(runner)
    for number in range(6):
        under_test.accept([number], [number])
    under_test.stop()
    under_test.serve()
    assert completed == [(number, number) for number in range(6)]
    assert runner.sizes == [4, 2]


def test_the_server_does_not_wait_for_a_full_batch(completed):
    runner = Recorder()
    under_test = system(runner)
    server = threading.Thread(target=under_test.serve)
    server.start()
    for number in range(3):
        under_test.accept([number], [number])
        while len(completed) <= number:  # pytest's time limit ends it
            time.sleep(0.001)
    under_test.stop()
    server.join()
    assert runner.sizes == [1, 1, 1]


@pytest.mark.parametrize("serving", [False, True])
def test_an_error_is_handed_over_at_once(completed, serving):
    class Failing(Recorder):
        def enqueue(self):
            raise ZeroDivisionError

    heard = []
    under_test = system(Failing(), abandon=heard.append)
    if serving:
        under_test.accept([1], [1])
        under_test.serve()
    else:
        under_test.answer([1], [1])
    assert [type(error) for error in heard] == [ZeroDivisionError]
    assert completed == []


def test_an_error_of_the_images_is_handed_over():
    def read(positions):
        raise KeyError(*positions)

    heard = []
    system(Recorder(), images=SampleLibrary(read, 20), abandon=heard.append).load([3])
    assert [error.args for error in heard] == [(3,)]


def test_images_side_by_side_are_not_copied():
    images = library()
    assert np.shares_memory(images.gather([3, 4, 5]), images.gather(range(20)))
    assert not np.shares_memory(images.gather([3, 5]), images.gather(range(20)))
    assert images.gather([5, 4, 5]).ravel().tolist() == [5, 4, 5]


def test_images_that_are_listed_twice_are_read_once():
    read = []

    def note(positions):
        read.extend(positions)
        return IMAGES[positions]

    images = SampleLibrary(note, 20)
    images.load([4, 2, 9, 4, 2])
    assert read == [4, 2, 9]
    assert images.gather([9, 4, 2]).ravel().tolist() == [9, 4, 2]


def test_no_more_images_than_mlperfs_are_kept_in_memory():
    assert SampleLibrary(None, 50_000).performance == 1024
    assert SampleLibrary(None, 360).performance == 360


@pytest.mark.parametrize(
    ("scenario", "images"), [("singlestream", 1), ("multistream", 8), ("offline", 5), ("server", 5)]
)
def test_what_is_answered_together(scenario, images):
    assert images_of(LoadgenPlan(scenario=scenario, batch=5)) == images


def test_warming_up_calls_what_will_be_called(monkeypatch):
    monkeypatch.setattr(loadgen_sut, "_WARMUP_SECONDS", 0.0)
    runner = Recorder()
    assert warm_up(runner, IMAGES[:8], most=4, all_sizes=False) > 0
    assert set(runner.sizes) == {4}
    runner = Recorder()
    warm_up(runner, IMAGES[:4], most=4, all_sizes=True)
    assert set(runner.sizes) == {1, 2, 4}
