"""The engine as an application holds it, on bundles that the pipeline built for ONNX Runtime."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import resnet_deploy
from resnet_deploy.backends import find_backend
from resnet_deploy.bundle import open_bundle
from resnet_deploy.engine import Engine, load
from resnet_deploy.errors import (
    DataError,
    FeedError,
    FileError,
    SpecError,
)
from resnet_deploy.images import batch_from_images


@pytest.fixture(scope="module", params=find_backend("onnxruntime").precisions)
def engine(request, deployment):
    """Each of the three engines, opened once."""
    with load(deployment.engines[request.param]) as opened:
        yield opened


@pytest.fixture(scope="module")
def fp32(deployment):
    """The FP32 engine, opened once."""
    with load(deployment.engines["fp32"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(deployment):
    """Paths of all images, and the batch they are."""
    paths = sorted(deployment.data.rglob("*.png"))
    assert len(paths) == 40
    return paths, batch_from_images(paths, deployment.card.preprocess)


def assert_close(logits, expected, *, share):
    """Hold logits to ``share`` of the largest of them."""
    np.testing.assert_allclose(logits, expected, rtol=0, atol=share * np.abs(expected).max())


def test_paths_and_arrays_give_the_same_logits(engine, pictures):
    paths, images = pictures
    logits = engine(images)
    assert logits.shape == (40, 10)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    # The same arrays reach the same session in the same batches: not one bit may differ.
    np.testing.assert_array_equal(engine(paths), logits)
    np.testing.assert_array_equal(engine([str(path) for path in paths]), logits)


def test_images_are_told_apart(engine, pictures):
    """A twin for every comparison here: other images have other logits."""
    logits = engine(pictures[1])
    assert len(np.unique(logits, axis=0)) == 40


@pytest.mark.parametrize("count", [0, 1, 7, 64, 65, 130])
def test_any_number_of_images(engine, pictures, count):
    images = np.resize(pictures[1], (count, *pictures[1].shape[1:]))
    logits = engine(images)
    assert logits.shape == (count, 10)
    if count:
        # Kernels add in another order at another batch size: FP32 to 1e-6 of the largest logit. An INT8 activation on
        # the edge may then fall to the other side, which is one step of 255 in one of many terms.
        share = 1e-2 if engine.manifest.spec.precision == "int8" else 1e-4
        assert_close(logits, np.resize(engine(pictures[1]), logits.shape), share=share)
        with pytest.raises(AssertionError):
            assert_close(
                logits + 0.05 * np.abs(logits).max(), np.resize(engine(pictures[1]), logits.shape), share=share
            )


def test_small_batches_are_filled_up(copy_engine, pictures):
    """An engine built for 4 to 8 images takes 1, 3 and 9 all the same."""

    def change(manifest):
        manifest["spec"]["batch"] = {"min": 4, "opt": 4, "max": 8}

    with load(copy_engine("fp32", change=change)) as engine:
        for count in (1, 3, 9):
            assert engine(pictures[1][:count]).shape == (count, 10)


# --- golden answers


def replayed(engine, golden):
    """Run the inputs that the bundle keeps; hold the answers to the ones it expects."""
    # The same file, inputs and batch on the same machine; another number of threads divides FP32 sums differently.
    assert_close(engine(golden["images"]), golden["logits"], share=1e-5)


def test_golden_answers_come_again(engine):
    with np.load(engine.bundle.golden_path) as golden:
        assert golden["images"].shape == (8, 32, 32, 3)
        replayed(engine, golden)


def test_other_golden_answers_do_not_pass(engine):
    with np.load(engine.bundle.golden_path) as golden:
        perturbed = dict(golden)
    perturbed["logits"][3, 2] += 1e-3 * np.abs(perturbed["logits"]).max()
    with pytest.raises(AssertionError):
        replayed(engine, perturbed)


def test_engines_agree_with_the_fp32_one(engine, fp32, pictures):
    expected = fp32(pictures[1])
    noise = ((engine(pictures[1]) - expected) ** 2).sum()
    sqnr_db = 10 * np.log10((expected**2).sum() / max(noise, 1e-30))
    # FP16 keeps 11 bits of every term, each worth 6 dB; INT8's bound tells a quantized network from a broken one.
    assert sqnr_db > {"fp32": 250, "fp16": 50, "int8": 12}[engine.manifest.spec.precision]


# --- labels


def test_classes_are_named_best_first(engine, pictures, deployment):
    paths, images = pictures
    logits = engine(images)
    named = engine.classify(paths, top=3)
    assert len(named) == 40
    for best, row in zip(named, logits.astype(np.float64), strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        order = np.argsort(-row, kind="stable")[:3]
        assert [one.index for one in best] == list(order)
        assert [one.label for one in best] == [deployment.card.labels[index] for index in order]
        # Two ways to write a softmax in double precision.
        assert [one.probability for one in best] == pytest.approx(list(probabilities[order]), rel=1e-12)
        assert sum(one.probability for one in best) <= 1


def test_logits_of_submit_are_ranked_as_they_come(fp32, pictures):
    torch = pytest.importorskip("torch")
    images = pictures[1]
    one, two = fp32.submit(images[0]).result(), fp32.submit(images[:2]).result()
    expected = fp32.rank(two, top=3)
    assert fp32.rank(torch.from_numpy(two), top=3) == expected
    assert [best.index for best in fp32.rank(one[None], top=3)[0]] == [best.index for best in expected[0]]
    with pytest.raises(FeedError, match=r"expected are floats \(N, 10\)") as caught:
        fp32.rank(one)
    assert "logits[None]" in caught.value.hint
    with pytest.raises(FeedError, match="row 1 of the logits is not finite"):
        fp32.rank(np.vstack([one, np.full(10, np.nan, np.float32)]))


def test_probabilities_of_all_classes_sum_to_one(engine, pictures):
    for best in engine.classify(pictures[1][:5], top=99):
        assert len(best) == 10
        assert sum(one.probability for one in best) == pytest.approx(1, abs=1e-12)
        assert all(a.probability >= b.probability for a, b in itertools.pairwise(best))


def test_nothing_to_classify(fp32):
    assert fp32.classify([]) == []
    assert fp32([]).shape == (0, 10)


def test_large_logits_do_not_overflow_the_softmax(deployment):
    class Shouting:
        input, output = load_specs(deployment)
        batch = deployment.int8_spec.batch

        def load(self, feed):
            self.count = len(feed)

        def enqueue(self):
            pass

        synchronize = close = enqueue

        def fetch(self):
            return np.tile(np.float32([1e4, 9e3, *[-1e4] * 8]), (self.count, 1))

    engine = Engine(open_bundle(deployment.engines["fp32"]), Shouting())
    ((best, second),) = engine.classify(np.zeros((1, 32, 32, 3), np.uint8), top=2)
    assert (best.index, best.probability) == (0, 1.0)
    assert (second.index, second.probability) == (1, 0.0)


def load_specs(deployment):
    from resnet_deploy.runners import tensor_specs

    return tensor_specs(deployment.card)


# --- use and misuse


def test_public_name_loads(deployment, pictures):
    with resnet_deploy.load(str(deployment.engines["fp32"]), threads=1) as engine:
        assert isinstance(engine, resnet_deploy.Engine)
        assert engine(pictures[1][:1]).shape == (1, 10)


def test_answers_belong_to_the_caller(fp32, pictures):
    first = fp32(pictures[1][:2])
    kept = first.copy()
    fp32(pictures[1][2:4])
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    np.testing.assert_array_equal(fp32(pictures[1][:2]), kept)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_wrong_dtype(fp32, dtype):
    with pytest.raises(FeedError, match=f"images has dtype {dtype}, the engine takes uint8"):
        fp32(np.zeros((1, 32, 32, 3), dtype))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (32, 32, 3), (1, 33, 32, 3)])
def test_wrong_shape(fp32, shape):
    with pytest.raises(FeedError, match=r"the engine takes \(N, 32, 32, 3\)"):
        fp32(np.zeros(shape, np.uint8))


def test_one_path_is_no_list_of_paths(fp32, pictures):
    for path in (pictures[0][0], str(pictures[0][0])):
        with pytest.raises(FeedError, match="one path") as caught:
            fp32(path)
        assert "engine([path])" in caught.value.hint


def test_pillow_images_give_the_logits_of_their_files(engine, pictures):
    opened = [Image.open(path).convert("RGB") for path in pictures[0][:3]]
    expected = engine(pictures[0][:3])
    np.testing.assert_array_equal(engine(opened), expected)
    np.testing.assert_array_equal(engine([str(pictures[0][0]), *opened[1:]]), expected)


WRONG = {
    "list of arrays": (lambda images, path: list(images), "image 0 is of type numpy.ndarray"),
    "bytes": (lambda images, path: path.read_bytes(), "image 0 is of type int"),
    "path and nothing": (lambda images, path: [path, None], "image 1 is of type NoneType"),
    "number": (lambda images, path: 3, "int where images are expected"),
    "memory": (lambda images, path: memoryview(images), "memoryview where images are expected"),
    "one image": (lambda images, path: Image.new("RGB", (40, 36)), "one image where a sequence is expected"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_image_is_refused_with_what_is_taken(fp32, pictures, make, message):
    paths, images = pictures
    for call in (fp32, fp32.prepare, fp32.classify):
        with pytest.raises(FeedError, match=message) as caught:
            call(make(images[:2], paths[0]))
        assert "engine([image])" in caught.value.hint or "Pillow images" in caught.value.hint


def test_files_are_decoded_a_batch_at_a_time(copy_engine, pictures, monkeypatch):
    """However many there are, those of one batch are in memory at once, and the answers keep their order."""

    def change(manifest):
        manifest["spec"]["batch"] = {"min": 1, "opt": 4, "max": 4}

    sizes = []

    def note(images, contract):
        sizes.append(len(images))
        return batch_from_images(images, contract)

    monkeypatch.setattr("resnet_deploy.images.batch_from_images", note)
    with load(copy_engine("fp32", change=change)) as engine:
        np.testing.assert_array_equal(engine(pictures[0][:10]), engine(pictures[1][:10]))
        assert sizes == [4, 4, 2]


def test_missing_and_damaged_images_are_named(fp32, pictures, tmp_path):
    (tmp_path / "damaged.png").write_bytes(pictures[0][0].read_bytes()[:100])
    with pytest.raises(FileError, match=r"gone\.png"):
        fp32([pictures[0][0], tmp_path / "gone.png"])
    with pytest.raises(DataError, match=r"damaged\.png"):
        fp32([pictures[0][0], tmp_path / "damaged.png"])


def test_numbers_out_of_range(fp32, deployment):
    with pytest.raises(SpecError, match="top 0 is not positive"):
        fp32.classify([], top=0)
    with pytest.raises(SpecError, match="-1 threads"):
        load(deployment.engines["fp32"], threads=-1)
    with pytest.raises(SpecError, match="number of threads 1025 is too large"):
        load(deployment.engines["fp32"], threads=1025)


def test_closed_engine_says_so(deployment, pictures):
    engine = load(deployment.engines["fp32"])
    engine.close()
    engine.close()
    with pytest.raises(FeedError, match="the engine is closed"):
        engine(pictures[1])
    with load(deployment.engines["fp32"]) as engine:
        pass
    with pytest.raises(FeedError, match="the engine is closed"):
        engine.classify(pictures[0])


def test_threads_share_an_engine(engine, pictures):
    """Eight threads with images of their own: a mixed-up feed or answer would be another thread's."""
    images = pictures[1]
    expected = [engine(images[index : index + 1 + index % 3]) for index in range(32)]
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        return [(index, engine(images[index : index + 1 + index % 3])) for index in range(number, 32, 8)]

    with ThreadPoolExecutor(8) as pool:
        answers = dict(pair for part in pool.map(work, range(8)) for pair in part)
    assert len(answers) == 32
    for index, logits in answers.items():
        np.testing.assert_array_equal(logits, expected[index])
