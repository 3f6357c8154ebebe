"""datasets.py: which files are found, even subsets, digests, and batches read in threads."""

import errno
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_deploy import datasets
from resnet_deploy.datasets import BatchReader, ImageDataset, find_dataset
from resnet_deploy.errors import DataError, FileError, SpecError
from resnet_deploy.images import batch_from_images
from resnet_deploy.specs import ModelCard, Preprocess

SPEC = Preprocess(image_size=8, resize=8)
CARD = ModelCard(architecture="resnet18", num_classes=3, weights="none", weights_sha256="0" * 64, preprocess=SPEC)


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names_of(dataset):
    return [path.relative_to(dataset.root).as_posix() for path in dataset.paths]


@pytest.fixture
def flat(tmp_path):
    """Ten different images, unlabelled."""
    for index in range(10):
        write_image(tmp_path / "flat" / f"{index}.png", seed=index)
    return find_dataset(tmp_path / "flat", CARD)


def damage(path):
    """Cut the file in half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


# Finding images


def test_flat_folder_is_sorted_by_name_and_unlabelled(tmp_path):
    for name in ("b.PNG", "a.jpg", "10.png", "9.png", "c.JPEG", "d.tiff", "e.webp", "f.bmp", "g.ppm", "h.tif"):
        write_image(tmp_path / name)
    (tmp_path / "notes.md").write_text("not an image")
    (tmp_path / "._a.jpg").write_bytes(b"what another file system leaves behind")
    write_image(tmp_path / ".cache" / "z.png")
    dataset = find_dataset(tmp_path, CARD)
    expected = ["10.png", "9.png", "a.jpg", "b.PNG", "c.JPEG", "d.tiff", "e.webp", "f.bmp", "g.ppm", "h.tif"]
    assert names_of(dataset) == expected
    assert len(dataset) == 10
    assert dataset.labels is None


def test_single_file_is_an_unlabelled_set_of_one(tmp_path):
    path = write_image(tmp_path / "cat.png")
    write_image(tmp_path / "dog.png")
    assert find_dataset(path, CARD) == ImageDataset(tmp_path, (path,), None)
    with pytest.raises(DataError, match="not an image"):
        find_dataset(Path(__file__), CARD)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileError, match="gone: no such file") as missing:
        find_dataset(tmp_path / "gone", CARD)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="empty: no images") as empty:
        find_dataset(tmp_path / "empty", CARD)
    assert missing.value.hint
    assert ".jpeg" in empty.value.hint


def test_nested_folders_belong_to_their_class(tmp_path):
    for name in ("a/x.png", "b/deep/er/y.png", "b/x.png", "c/x.png"):
        write_image(tmp_path / name)
    dataset = find_dataset(tmp_path, CARD)
    assert names_of(dataset) == ["a/x.png", "b/deep/er/y.png", "b/x.png", "c/x.png"]
    assert dataset.labels == (0, 1, 1, 2)


def test_hidden_folders_are_no_classes_linked_or_not(tmp_path):
    for name in ("set/a/x.png", "set/b/x.png", "set/.git/x.png", "set/a/.thumbs/x.png", "store/x.png"):
        write_image(tmp_path / name)
    (tmp_path / "set" / ".linked").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "store")
    dataset = find_dataset(tmp_path / "set", CARD)  # nameless, so that the folders must be its three classes
    assert names_of(dataset) == ["a/x.png", "b/x.png", "c/x.png"]
    assert dataset.labels == (0, 1, 2)


def test_links_to_files_and_class_folders_are_followed_but_not_in_circles(tmp_path):
    store = write_image(tmp_path / "store" / "x.png").parent
    root = tmp_path / "root"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "linked.png").symlink_to(store / "x.png")
        (root / name / "loop").symlink_to(root)
    (root / "c").symlink_to(store)
    for name, target in {"itself": ".", "above": ".."}.items():
        (root / name).symlink_to(target)
    dataset = find_dataset(root, CARD)
    assert names_of(dataset) == ["a/linked.png", "b/linked.png", "c/x.png"]
    assert dataset.labels == (0, 1, 2)
    assert len(list(BatchReader(dataset, SPEC, 2))) == 2


def test_loose_images_beside_folders_are_refused(tmp_path):
    for name in ("a/x.png", "b/x.png", "c/x.png", "loose.png"):
        write_image(tmp_path / name)
    with pytest.raises(DataError, match=r"the folder itself \(1\) and in folders below it \(3\)"):
        find_dataset(tmp_path, CARD)


def test_unreadable_folder_is_an_error_not_an_empty_class(tmp_path, monkeypatch):
    for name in ("a/x.png", "b/x.png", "c/x.png"):
        write_image(tmp_path / name)
    real = os.scandir

    def guarded(path):  # permissions would not stop root, as whom containers run tests
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(FileError, match="b: permission denied"):
        find_dataset(tmp_path, CARD)


def test_relative_root(tmp_path, monkeypatch):
    for name in ("a/x.png", "b/x.png", "c/x.png"):
        write_image(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    dataset = find_dataset(Path(), CARD)
    assert names_of(dataset) == ["a/x.png", "b/x.png", "c/x.png"]
    assert dataset.digest == find_dataset(tmp_path, CARD).digest


# Subsets


def set_of(size):
    return ImageDataset(Path("r"), tuple(Path(f"r/{index:06}.png") for index in range(size)), tuple(range(size)))


@given(size=st.integers(1, 3000), count=st.integers(1, 3000))
def test_subset_is_even_ordered_and_keeps_labels_with_their_images(size, count):
    whole = set_of(size)
    part = whole.subset(count)
    assert len(part) == min(size, count)
    assert part.paths == tuple(whole.paths[label] for label in part.labels)
    gaps = np.diff([*part.labels, size])
    assert part.labels[0] == 0
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert part == whole.subset(count)


@given(size=st.integers(1, 500), count=st.integers(1, 50), factor=st.integers(1, 10))
def test_subsets_are_nested_for_divisors(size, count, factor):
    whole = set_of(size)
    assert set(whole.subset(count).paths) <= set(whole.subset(count * factor).paths)


def test_subset_of_a_set_sorted_by_class_meets_all_classes():
    labels = tuple(index // 50 for index in range(1000))  # 20 classes of 50
    whole = ImageDataset(Path("r"), set_of(1000).paths, labels)
    assert sorted(set(whole.subset(20).labels)) == list(range(20))
    assert set(whole.labels[:20]) == {0}  # what the first twenty would be
    with pytest.raises(SpecError):
        whole.subset(0)


def test_labels_must_be_as_many_as_images():
    with pytest.raises(DataError, match="1 labels for 2 images"):
        ImageDataset(Path("r"), (Path("r/a"), Path("r/b")), (0,))


# Digests


def test_digest_is_stable_across_releases(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    dataset = find_dataset(tmp_path, CARD)
    # printf 'a.png\0' > x; printf abc | openssl sha256 -binary >> x; sha256sum x
    assert dataset.digest == "3d12dcaba342a9e0b7dd27f20f71ba8a8d17362a93b79bf65b480f259bbf9849"


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)))
def test_digest_does_not_depend_on_the_order_of_creation(tmp_path_factory, order):
    reference, other = (tmp_path_factory.mktemp("digest") for _ in range(2))
    for root, indices in ((reference, range(6)), (other, order)):
        for index in indices:
            (root / f"{index}.png").write_bytes(bytes([index]) * 10)
    found = find_dataset(other, CARD)
    assert find_dataset(reference, CARD).digest == found.digest
    shuffled = ImageDataset(other, tuple(other / f"{index}.png" for index in order))
    assert shuffled.digest == found.digest


def test_digest_sees_content_names_and_membership(tmp_path):
    def digest_with(**files):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        for name, content in files.items():
            (root / f"{name}.png").write_bytes(content)
        return find_dataset(root, CARD).digest

    digests = [
        digest_with(a=b"1", b=b"2"),
        digest_with(a=b"2", b=b"1"),
        digest_with(a=b"1", b=b"3"),
        digest_with(a=b"1", c=b"2"),
        digest_with(a=b"1"),
        digest_with(a=b"1", b=b""),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_with(a=b"1", b=b"2") == digests[0]


def test_digest_reads_beyond_one_chunk_and_names_what_it_cannot_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"0123456789")
    whole = find_dataset(tmp_path, CARD).digest
    monkeypatch.setattr(datasets, "_CHUNK_BYTES", 3)
    assert find_dataset(tmp_path, CARD).digest == whole
    dataset = find_dataset(tmp_path, CARD)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileError, match=r"a\.png"):
        _ = dataset.digest


# Batches


def decoder_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (1, [1] * 10), (64, [10])])
def test_partial_last_batch_is_kept(flat, batch_size, sizes):
    reader = BatchReader(flat, SPEC, batch_size)
    batches = list(reader)
    assert [len(batch.images) for batch in batches] == sizes
    assert len(reader) == len(sizes)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(10))
    assert all(batch.indices.dtype == np.int64 for batch in batches)
    assert all(batch.labels is None for batch in batches)
    assert reader.skipped == []


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_and_values_do_not_depend_on_the_threads(flat, workers, monkeypatch):
    real = datasets.tensor_from_source

    def slow_at_first(path, spec, data):
        time.sleep(0.02 if path.name in ("0.png", "4.png") else 0)
        return real(path, spec)

    monkeypatch.setattr(datasets, "tensor_from_source", slow_at_first)
    batches = list(BatchReader(flat, SPEC, 4, workers=workers))
    together = np.concatenate([batch.images for batch in batches])
    expected = batch_from_images(flat.paths, SPEC)
    np.testing.assert_array_equal(together, expected)
    assert together.dtype == np.uint8
    assert not np.array_equal(expected, expected[[1, 0, *range(2, 10)]])  # a swap would show
    assert decoder_threads() == []


def test_labels_follow_their_images(tmp_path):
    for name in ("a/x.png", "a/y.png", "b/x.png", "c/x.png"):
        write_image(tmp_path / name)
    batches = list(BatchReader(find_dataset(tmp_path, CARD), SPEC, 3))
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 1], [2]]
    assert batches[0].labels.dtype == np.int64


def test_float32_batches(flat):
    spec = Preprocess(image_size=8, resize=8, dtype="float32", layout="NCHW")
    batch = next(iter(BatchReader(flat, spec, 3)))
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, 8, 8), np.float32)


def test_corrupt_image_is_named_after_the_sound_batches_before_it(flat):
    damage(flat.paths[5])
    damage(flat.paths[7])
    delivered = []
    with pytest.raises(DataError, match=r"5\.png: damaged"):
        delivered.extend(batch.indices.tolist() for batch in BatchReader(flat, SPEC, 2, workers=3))
    assert delivered == [[0, 1], [2, 3]]
    assert decoder_threads() == []


def test_skipped_images_are_counted_and_named_and_batches_filled_up(tmp_path):
    for index, folder in enumerate("aaabbbccc"):
        write_image(tmp_path / folder / f"{index}.png", seed=index)
    dataset = find_dataset(tmp_path, CARD)
    damage(dataset.paths[1])
    damage(dataset.paths[8])
    reader = BatchReader(dataset, SPEC, 4, skip_corrupt=True)
    for _ in range(2):  # a second pass counts anew
        batches = list(reader)
        assert [batch.indices.tolist() for batch in batches] == [[0, 2, 3, 4], [5, 6, 7]]
        assert [batch.labels.tolist() for batch in batches] == [[0, 0, 1, 1], [1, 2, 2]]
        assert reader.skipped == [dataset.paths[1], dataset.paths[8]]
    np.testing.assert_array_equal(batches[1].images[0], batch_from_images([dataset.paths[5]], SPEC)[0])


def test_all_images_corrupt(flat):
    for path in flat.paths:
        damage(path)
    reader = BatchReader(flat, SPEC, 4, skip_corrupt=True)
    assert list(reader) == []
    assert reader.skipped == list(flat.paths)


def test_missing_file_is_not_skipped(flat):
    flat.paths[3].unlink()
    with pytest.raises(FileError, match=r"3\.png"):
        list(BatchReader(flat, SPEC, 4, skip_corrupt=True))


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (16, 16), (128, 16)])
def test_a_thread_for_each_core_up_to_a_limit(flat, cores, threads, monkeypatch):
    monkeypatch.setattr(datasets, "compute_threads", lambda: cores)
    assert BatchReader(flat, SPEC, 2).threads == threads
    assert BatchReader(flat, SPEC, 2, workers=3).threads == 3


def test_leaving_early_ends_the_threads(flat):
    for _ in BatchReader(flat, SPEC, 2, workers=3):
        assert decoder_threads()
        break
    assert decoder_threads() == []
    iterator = iter(BatchReader(flat, SPEC, 2, workers=3))
    next(iterator)
    assert decoder_threads()
    iterator.close()
    assert decoder_threads() == []


def test_error_in_the_consumer_ends_the_threads(flat):
    def consume():
        for _ in BatchReader(flat, SPEC, 2, workers=3):
            raise KeyError

    with pytest.raises(KeyError) as caught:
        consume()
    del caught
    gc.collect()
    assert decoder_threads() == []


def test_prefetch_is_bounded(tmp_path, monkeypatch):
    paths = tuple(tmp_path / f"{index}.png" for index in range(1000))
    started = []
    monkeypatch.setattr(
        datasets, "tensor_from_source", lambda path, spec, data: started.append(path) or np.zeros(spec.shape)
    )
    iterator = iter(BatchReader(ImageDataset(tmp_path, paths), SPEC, 4, workers=2))
    next(iterator)
    time.sleep(0.05)  # time for the threads to run ahead, if anything let them
    assert 4 <= len(started) <= 4 + (4 + 2 * 2)
    next(iterator)
    iterator.close()
    assert len(started) < 24


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (-1, 0), (1, -1)])
def test_senseless_settings_are_refused(flat, batch_size, workers):
    with pytest.raises(SpecError):
        BatchReader(flat, SPEC, batch_size, workers=workers)
