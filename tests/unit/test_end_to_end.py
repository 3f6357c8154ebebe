"""From the bytes of image files to classes, on a runner whose answers are known."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from resnet_deploy.bench import end_to_end
from resnet_deploy.bench.calls import Feeds, call_for
from resnet_deploy.bench.end_to_end import EncodedImages, classify
from resnet_deploy.bench.loops import WARMUP_CALLS
from resnet_deploy.bench.measure import measure_in_turns
from resnet_deploy.bench.records import Way
from resnet_deploy.bench.ways import Entrant
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.images import tensor_from_source
from resnet_deploy.protocols import Silent, TensorSpec
from resnet_deploy.specs import BatchRange, Preprocess

CONTRACT = Preprocess(image_size=4, resize=4)


def file_of(red, green, blue, *, kind="JPEG"):
    """An image file of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (12, 9), (red, green, blue)).save(data, kind)
    return data.getvalue()


RED, GREEN, BLUE = file_of(250, 5, 5), file_of(5, 250, 5), file_of(5, 5, 250)


class Colours:
    """Answers how much of each colour an image has."""

    input, output = TensorSpec("images", "uint8", (4, 4, 3)), TensorSpec("logits", "float32", (3,))
    batch, device = BatchRange(1, 1, 8), "none"

    def __init__(self):
        self.feeds = []

    def load(self, feed):
        self.feeds.append(feed)

    def enqueue(self):
        pass

    synchronize = close = enqueue

    def fetch(self):
        return self.feeds[-1].astype(np.float32).mean(axis=(1, 2))


@pytest.mark.parametrize("threads", [1, 3])
def test_classes_are_those_of_the_files_in_their_order(threads):
    with EncodedImages((RED, GREEN, BLUE), CONTRACT, threads) as encoded:
        for files, best in (((BLUE, RED, GREEN, BLUE), [2, 0, 1, 2]), ((GREEN,), [1]), ((RED, RED), [0, 0])):
            assert classify(Colours(), encoded, files).tolist() == best


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_decode_as_their_file_does(tmp_path, kind):
    data = file_of(200, 100, 50, kind=kind)
    (tmp_path / "image").write_bytes(data)
    with EncodedImages((data,), CONTRACT, 1) as encoded:
        np.testing.assert_array_equal(encoded.tensors((data,))[0], tensor_from_source(tmp_path / "image", CONTRACT))


def test_groups_go_round_until_the_last_is_complete():
    encoded = EncodedImages((b"a", b"b", b"c"), CONTRACT, 1)
    assert encoded.groups(1) == [(b"a",), (b"b",), (b"c",)]
    assert encoded.groups(2) == [(b"a", b"b"), (b"c", b"a")]
    assert encoded.groups(3) == [(b"a", b"b", b"c")]
    assert encoded.groups(5) == [(b"a", b"b", b"c", b"a", b"b")]


def test_each_call_takes_the_next_files():
    runner = Colours()
    with EncodedImages((RED, GREEN, BLUE), CONTRACT, 1) as encoded:
        call = call_for(runner, Way(2, "end_to_end"), Feeds(np.zeros(0), encoded))
        for _ in range(3):
            assert call() > 0
    seen = [feed.mean(axis=(1, 2)).argmax(axis=1).tolist() for feed in runner.feeds]
    assert seen == [[0, 1], [2, 0], [0, 1]]


def test_decoding_lies_inside_the_timer(monkeypatch):
    """And does not in the scope ``host``, which starts from tensors."""
    now = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: now[0])

    def slow(source, spec):
        now[0] += 5_000
        return tensor_from_source(source, spec)

    monkeypatch.setattr(end_to_end, "tensor_from_source", slow)
    with EncodedImages((RED, GREEN), CONTRACT, 1) as encoded:
        feeds = Feeds(encoded.tensors((RED, GREEN)), encoded)
        assert call_for(Colours(), Way(2, "end_to_end"), feeds)() == pytest.approx(10e-6)
        assert call_for(Colours(), Way(2, "host"), feeds)() == 0


def test_a_batch_is_decoded_by_threads_and_one_image_by_its_caller(monkeypatch):
    names = []

    def noting(source, spec):
        names.append(threading.current_thread().name)
        return tensor_from_source(source, spec)

    monkeypatch.setattr(end_to_end, "tensor_from_source", noting)
    with EncodedImages((RED, GREEN), CONTRACT, 2) as encoded:
        encoded.tensors((RED,))
        encoded.tensors((RED, GREEN))
    with EncodedImages((RED, GREEN), CONTRACT, 1) as encoded:
        encoded.tensors((RED, GREEN))
    here = threading.current_thread().name
    assert [name == here for name in names] == [True, False, False, True, True]
    assert not [one for one in threading.enumerate() if one.name.startswith("decode")]


class Slow(Colours):
    """One whose call takes as long as it is told, on a clock that nobody else moves; notes the files of each call."""

    def __init__(self, now, took_ns):
        super().__init__()
        self.now, self.took_ns = now, took_ns

    def enqueue(self):
        self.now[0] += self.took_ns

    def files(self):
        """Number of the file of each call, which is written in its colour."""
        return [round(float(feed[..., 0].mean()) / 10) for feed in self.feeds]


def test_a_fast_engine_and_a_slow_one_see_the_same_files(monkeypatch):
    """Each round begins where the round alone says, and all rounds together see all files about as often."""
    now = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: now[0])
    files = [file_of(10 * number, 0, 0, kind="PNG") for number in range(20)]
    fast, slow = Slow(now, 1_000_000), Slow(now, 2_000_000)
    rounds = 10
    spec = BenchSpec(batches=(1,), seconds=0.08, rounds=rounds, scopes=("end_to_end",))
    with EncodedImages(files, CONTRACT, 1) as encoded:
        feeds = Feeds(np.zeros(0), encoded)
        measure_in_turns([Entrant("fast", fast), Entrant("slow", slow)], feeds, spec, Silent())
    for engine, calls in ((fast, 8), (slow, 4)):
        turns = np.reshape(engine.files(), (rounds, WARMUP_CALLS + calls))
        assert turns[:, 0].tolist() == list(range(0, 20, 2))
        timed = turns[:, WARMUP_CALLS:]
        assert np.bincount(timed.ravel(), minlength=20).tolist() == [rounds * calls // 20] * 20


def test_rounds_begin_at_the_same_share_of_groups_of_any_size():
    files = [file_of(10 * number, 0, 0, kind="PNG") for number in range(6)]
    with EncodedImages(files, CONTRACT, 1) as encoded:
        for batch, begins in ((1, [0, 1, 3, 4]), (2, [0, 0, 2, 4])):
            for number, first in enumerate(begins):
                runner = Slow([0], 0)
                call_for(runner, Way(batch, "end_to_end"), Feeds(np.zeros(0), encoded, start=number / 4))()
                assert round(float(runner.feeds[0][0, ..., 0].mean()) / 10) == first
