"""Arrays of any library in and out of an engine on the host, and many threads at one engine."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import Bundle, open_bundle
from resnet_deploy.engine import Engine, load
from resnet_deploy.errors import FeedError
from resnet_deploy.protocols import WritesInto
from resnet_deploy.runners.null import NullRunner
from resnet_deploy.runners.openvino import OpenVinoRunner
from resnet_deploy.runners.ort import OrtRunner
from resnet_deploy.specs import BatchRange


@pytest.fixture(scope="module", params=find_backend("onnxruntime").precisions)
def engine(request, deployment):
    with load(deployment.engines[request.param], threads=1) as opened:
        yield opened


class Witness(NullRunner):
    """Answers the mean of an image in every class, and notes where its feeds and answers lay."""

    def __init__(self, bundle, *, most=4, least=1):
        super().__init__(bundle.manifest.card, BatchRange(least, most, most))
        self.feeds, self.outs, self.closed = [], [], False

    def load(self, feed):
        super().load(feed)
        self.feed = feed
        self.feeds.append(feed.ctypes.data)

    def fetch(self):
        means = self.feed.reshape(len(self.feed), -1).mean(axis=1, dtype=np.float32)
        return np.repeat(means[:, np.newaxis], *self.output.shape, axis=1)

    def close(self):
        self.closed = True


class Writer(Witness):
    """A witness that writes where it is told."""

    out = None

    def load(self, feed):
        super().load(feed)
        self.out = None

    def write_into(self, out):
        self.out = out
        self.outs.append(out.ctypes.data)

    def fetch(self):
        if self.out is None:
            return super().fetch()
        self.out[...] = super().fetch()
        return self.out


@pytest.fixture
def small_batches(deployment):
    """A bundle of which batches have up to four images."""
    bundle = open_bundle(deployment.engines["fp32"])
    spec = msgspec.structs.replace(bundle.manifest.spec, batch=BatchRange(1, 4, 4))
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, spec=spec))


def tensor_of(array):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(array)


# --- without a copy


def test_a_tensor_reaches_the_runner_where_it_is(small_batches, images):
    runner = Witness(small_batches)
    with Engine(small_batches, runner) as engine:
        tensor = tensor_of(images[:9].copy())
        logits = engine(tensor)
        row = images[0].nbytes
        assert runner.feeds == [tensor.data_ptr() + start * row for start in (0, 4, 8)]
        assert isinstance(logits, np.ndarray)
        np.testing.assert_array_equal(logits, engine(images[:9]))
        runner.feeds.clear()
        np.testing.assert_array_equal(engine(tensor[:8:2]), logits[:8:2])  # of every other image, a copy is made
        assert not set(runner.feeds) & set(range(tensor.data_ptr(), tensor.data_ptr() + 9 * row))


@pytest.mark.parametrize("runners", [1, 2])
@pytest.mark.parametrize("kind", [Witness, Writer])
def test_logits_are_written_where_they_are_wanted(small_batches, images, kind, runners):
    opened = [kind(small_batches) for _ in range(runners)]
    with Engine(small_batches, *opened) as engine:
        expected, out = engine(images[:9]), np.full((9, 10), np.nan, np.float32)
        for runner in opened:
            runner.outs.clear()
        assert engine(images[:9], out=out) is out
        np.testing.assert_array_equal(out, expected)
    wanted = [out.ctypes.data + start * 40 for start in (0, 4, 8)]
    assert sorted(where for runner in opened for where in runner.outs) == (wanted if kind is Writer else [])


def test_answers_of_copies_that_fill_up_a_batch_are_not_written(small_batches, images):
    runner = Writer(small_batches, least=4)
    memory = np.full((9, 10), np.nan, np.float32)
    with Engine(small_batches, runner) as engine:
        engine(images[:6], out=memory[:6])
        np.testing.assert_array_equal(memory[:6], engine(images[:6]))
    assert np.isnan(memory[6:]).all()
    assert len(runner.outs) == 2  # of two calls, the first batch each; the second is filled up


def test_onnx_runtime_writes_into_out(deployment, images, monkeypatch):
    """The address that ONNX Runtime itself says its result has."""
    runner = OrtRunner.open(open_bundle(deployment.engines["fp32"]), 1)
    assert isinstance(runner, WritesInto)
    out = np.full((5, 10), np.nan, np.float32)
    session, bindings = runner._session, []
    monkeypatch.setattr(
        session,
        "run_with_iobinding",
        lambda bound: bindings.append(bound) or type(session).run_with_iobinding(session, bound),
    )
    runner.load(images[:5])
    runner.write_into(out)
    runner.enqueue()
    assert runner.fetch() is out
    assert bindings[0].get_outputs()[0].data_ptr() == out.ctypes.data
    assert np.isfinite(out).all()
    kept = out.copy()
    runner.load(images[5:8])
    runner.enqueue()
    assert runner.fetch().shape == (3, 10)
    np.testing.assert_array_equal(out, kept)  # a batch later, it is nobody's but the caller's
    runner.close()


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_with_out_and_without_the_same_bits(engine, images, paths, count):
    expected = engine(images[:count])
    out = np.full((count, 10), np.nan, np.float32)
    assert engine(images[:count], out=out) is out
    np.testing.assert_array_equal(out, expected)
    out[...] = np.nan
    assert engine(paths[:count], out=out) is out
    np.testing.assert_array_equal(out, expected)
    tensor = tensor_of(np.full((count, 10), np.nan, np.float32))
    assert engine(tensor_of(images[:count]), out=tensor) is tensor
    np.testing.assert_array_equal(tensor.numpy(), expected)
    if count:
        out[0, 0] = np.nextafter(out[0, 0], np.float32(np.inf))
        assert not np.array_equal(out, expected)


def test_openvino_with_out_and_without_the_same_bits(deployment, images):
    pytest.importorskip("openvino")
    spec = BatchRange(1, 4, 4)
    runner = OpenVinoRunner(deployment.model, deployment.card, spec, threads=1)
    bundle = open_bundle(deployment.engines["fp32"])
    with Engine(bundle, *runner.and_others(1)) as engine:
        for count in (9, 4, 1, 7):
            expected, out = engine(images[:count]), np.full((count, 10), np.nan, np.float32)
            assert engine(images[:count], out=out) is out
            np.testing.assert_array_equal(out, expected)
            assert np.isfinite(out).all()


@pytest.fixture(params=["onnxruntime", "openvino", "openvino, two at once"])
def opened(request, deployment):
    """An engine whose batches have up to four images."""
    bundle, batch = open_bundle(deployment.engines["fp32"]), BatchRange(1, 4, 4)
    if request.param == "onnxruntime":
        runners = (OrtRunner(deployment.model, deployment.card, batch, threads=1),)
    else:
        pytest.importorskip("openvino")
        first = OpenVinoRunner(deployment.model, deployment.card, batch, threads=1)
        runners = first.and_others(1 if "two" in request.param else 0)
    with Engine(bundle, *runners) as engine:
        yield engine


def test_images_that_cannot_be_written_to(opened, images, tmp_path):
    """Memory that is mapped to be read ends the process where it is written to."""
    images[:6].tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=images[:6].shape)
    expected = opened(images[:6])
    for feed in (np.frombuffer(images[:6].tobytes(), np.uint8).reshape(mapped.shape), mapped):
        assert not feed.flags.writeable
        np.testing.assert_array_equal(opened(feed), expected)
        np.testing.assert_array_equal(feed, images[:6])
    np.testing.assert_array_equal(opened.submit(mapped[0]).result(), opened(images[:1])[0])


def test_nothing_of_the_callers_is_kept(opened, images):
    for with_out in (False, True):
        feed = images[:6].copy()
        out = np.empty((6, 10), np.float32) if with_out else None
        logits = opened(feed, out=out)
        kept = [weakref.ref(feed), weakref.ref(logits)]
        del feed, logits, out
        gc.collect()
        assert [ref() for ref in kept] == [None, None]


def test_an_interrupted_call_leaves_the_engine_idle(opened, images):
    """Between starting a batch and waiting for it, which a runner that is struck there does the first time."""
    expected = opened(images[:6])
    runner = opened._runners[0]
    wait = runner.synchronize

    def strike():
        runner.synchronize = wait
        raise KeyboardInterrupt

    runner.synchronize = strike
    with pytest.raises(KeyboardInterrupt):
        opened(images[:6])
    np.testing.assert_array_equal(opened(images[:6]), expected)


def test_out_that_does_not_fit_is_refused_before_anything_runs(small_batches, images):
    runner = Witness(small_batches)
    memory = np.zeros(images[:2].nbytes, np.uint8)
    shared = memory.reshape(images[:2].shape), memory[:80].view(np.float32).reshape(2, 10)
    with Engine(small_batches, runner) as engine:
        for feed, out, message in (
            (images[:2], np.empty((3, 10), np.float32), "the logits are float32"),
            (images[:2], np.empty((2, 10)), "out is float64"),
            (images[:2], "somewhere", "out is builtins.str"),
            (*shared, "out overlaps with the images"),
        ):
            with pytest.raises(FeedError, match=message):
                engine(feed, out=out)
        with pytest.raises(FeedError, match="a stream is for arrays on the GPU"):
            engine(images[:2], stream=0)
        with pytest.raises(FeedError, match=r"has shape \(\), the engine takes"):
            engine(np.array(3, np.uint8))
    assert runner.feeds == []


def test_tensors_are_classified(engine, images):
    assert engine.classify(tensor_of(images[:3])) == engine.classify(images[:3])


# --- threads


def test_eight_threads_with_arrays_of_their_own(engine, images):
    """Each writes into memory of its own, again and again: an answer in another's would be seen."""
    expected = [engine(images[index : index + 1 + index % 3]) for index in range(32)]
    start = threading.Barrier(8)

    def work(number):
        out = np.empty((3, 10), np.float32)
        start.wait()
        for index in range(number, 32, 8):
            part = out[: 1 + index % 3]
            np.testing.assert_array_equal(engine(images[index : index + 1 + index % 3], out=part), expected[index])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8


def test_close_waits_for_calls_that_are_under_way(small_batches, images):
    begun, go = threading.Event(), threading.Event()
    steps = []

    class Slow(Witness):
        def enqueue(self):
            begun.set()
            assert go.wait(60)
            steps.append("ran")

        def close(self):
            steps.append("closed")

    engine = Engine(small_batches, Slow(small_batches))
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(engine, images[:3])
        assert begun.wait(60)
        closing = pool.submit(engine.close)
        go.set()
        assert call.result(60).shape == (3, 10)
        closing.result(60)
    assert steps == ["ran", "closed"]
    for again in (engine, engine.classify, lambda images: engine(images, out=np.empty((3, 10), np.float32))):
        with pytest.raises(FeedError, match="the engine is closed"):
            again(images[:3])


class Patient(Witness):
    """Notes its batches by their first images, and lasts with the first one until somebody else wants the engine."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.batches, self.begun, self.go = [], threading.Event(), threading.Event()

    def enqueue(self):
        self.batches.append((len(self.feed), int(self.feed[0, 0, 0, 0])))
        self.begun.set()
        assert self.go.wait(60)


def numbered(count):
    return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, 32, 32, 3))


def await_true(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_long_call_lets_others_in_between_its_batches(small_batches):
    """Four batches; a request and a short call come while the first is run."""
    runner = Patient(small_batches)
    with Engine(small_batches, runner) as engine, ThreadPoolExecutor(2) as pool:
        long = pool.submit(engine, numbered(16))
        assert runner.begun.wait(60)
        submitted = engine.submit(numbered(100)[99])
        await_true(lambda: len(engine._runners_lock._line) == 2)
        short = pool.submit(engine, numbered(90)[88:])
        await_true(lambda: len(engine._runners_lock._line) == 3)
        runner.go.set()
        assert submitted.result(60)[0] == 99
        assert short.result(60)[:, 0].tolist() == [88, 89]
        np.testing.assert_array_equal(long.result(60)[:, 0], range(16))
    assert runner.batches == [(4, 0), (1, 99), (2, 88), (4, 4), (4, 8), (4, 12)]


def test_close_lets_a_long_call_come_to_its_end(small_batches, paths):
    """Of an array, and of files, between whose batches nobody has the engine."""
    for images in (numbered(16), paths[:9]):
        runner = Patient(small_batches)
        engine = Engine(small_batches, runner)
        with ThreadPoolExecutor(2) as pool:
            long = pool.submit(engine, images)
            assert runner.begun.wait(60)
            closing = pool.submit(engine.close)
            await_true(lambda engine=engine: engine._closed)
            with pytest.raises(FeedError, match="the engine is closed"):
                engine(numbered(1))
            runner.go.set()
            assert len(long.result(60)) == len(images)
            closing.result(60)
        assert runner.closed
