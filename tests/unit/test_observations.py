"""Observations: kept in a file and put together again bit for bit; what does not belong together is refused."""

import hashlib
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("safetensors", reason="observations are kept as safetensors")

from safetensors.numpy import load, save_file

from resnet_deploy.datasets import digest_images
from resnet_deploy.errors import DataError, FileError, ModelError
from resnet_deploy.quantize.observations import Observations, Observed, merge_observations, read_observations
from resnet_deploy.quantize.observers import Histogram

unhurried = settings(deadline=None)  # other work may share the machine
MODEL = Observed(onnx_sha256="1" * 64, weights_sha256="2" * 64, preprocess_sha256="3" * 64, graph_sha256="4" * 64)
TENSORS = ("images.normalized", "conv1.relu")


def observe(*seeds: int, skipped: tuple[str, ...] = ()) -> Observations:
    """What a run over the images of the given seeds would see."""
    histograms = {name: Histogram() for name in TENSORS}
    for seed in seeds:
        values = np.random.default_rng(seed).standard_normal(1000, dtype=np.float32) * np.float32(2.0 ** (seed % 7))
        histograms["images.normalized"].update(values)
        histograms["conv1.relu"].update(np.maximum(values, 0))
    images = {f"{seed}.png": hashlib.sha256(str(seed).encode()).hexdigest() for seed in seeds}
    images |= dict.fromkeys(skipped, "0" * 64)
    return Observations(MODEL, "train", images, len(seeds), skipped, histograms)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "observed.safetensors"
    path.write_bytes(observe(1, 2, 3).to_bytes())
    return path


# --- the file


def test_a_file_gives_back_what_was_written(file):
    found = read_observations(file)
    assert found.to_bytes() == observe(1, 2, 3).to_bytes()
    assert {name: histogram.digest for name, histogram in found.histograms.items()} == {
        name: histogram.digest for name, histogram in observe(1, 2, 3).histograms.items()
    }
    assert list(found.histograms) == list(TENSORS)
    assert (found.model, found.dataset, found.count) == (MODEL, "train", 3)
    assert observe(1, 2, 4).to_bytes() != observe(1, 2, 3).to_bytes()


def test_bins_that_are_empty_at_either_end_are_not_kept(file):
    kept = load(file.read_bytes())
    assert kept["conv1.relu"].size < kept["images.normalized"].size < 8192
    assert kept["conv1.relu"].sum() == 3000


def test_the_digest_is_that_of_the_data_set():
    assert observe(2, 1).dataset_digest == digest_images(observe(1, 2).images)
    assert replace(observe(1), images={}).dataset_digest == ""


@unhurried
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_observations(tmp_path_factory, position, bit):
    data = bytearray(observe(1, 2).to_bytes())
    data[position % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    path.write_bytes(data)
    try:
        found = read_observations(path)
    except DataError:
        return
    # In the header are names and digests that nothing here can check; the counts are.
    assert {histogram.digest for histogram in found.histograms.values()} == {
        histogram.digest for histogram in observe(1, 2).histograms.values()
    }


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match="damaged"):
        read_observations(file)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        read_observations(tmp_path / "missing.safetensors")
    save_file({"conv1.weight": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="holds no observations"):
        read_observations(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("counts", [[], [1 << 62] * 4], ids=["none", "a sum that is none in 64 bits"])
def test_counts_that_no_images_give_are_refused_though_their_digest_is_right(file, counts):
    made = observe(1)
    made.histograms["conv1.relu"].counts[:] = 0
    made.histograms["conv1.relu"].counts[5000 : 5000 + len(counts)] = counts
    file.write_bytes(made.to_bytes())
    with pytest.raises(DataError, match="a histogram that no values give"):
        read_observations(file)


def rewritten(path, change):
    """The file with another header."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as opened:
        header = msgspec.json.decode(opened.metadata()["resnet_deploy.observations"])
    change(header)
    tensors = load(path.read_bytes())
    save_file(tensors, path, {"resnet_deploy.observations": msgspec.json.encode(header).decode()})
    return path


def shift_first(header):
    header["histograms"]["conv1.relu"]["first"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda header: header.update(schema_version=99), "schema_version is 99", id="later"),
        pytest.param(lambda header: header.pop("count"), "damaged", id="a field less"),
        pytest.param(
            lambda header: header["histograms"].update(x=header["histograms"]["conv1.relu"]), "damaged", id="no counts"
        ),
        pytest.param(shift_first, "differs from its digest", id="other bins"),
        pytest.param(
            lambda header: header["histograms"]["conv1.relu"].update(exponent=4000), "that no values give", id="huge"
        ),
        pytest.param(
            lambda header: header["histograms"]["conv1.relu"].update(first=9000), "another shape", id="beyond"
        ),
    ],
)
def test_headers_that_do_not_fit_are_refused(file, change, message):
    with pytest.raises(DataError, match=message):
        read_observations(rewritten(file, change))


# --- merging


@unhurried
@given(seeds=st.lists(st.integers(0, 50), min_size=2, max_size=6, unique=True), data=st.data())
def test_shards_in_any_order_merge_into_the_whole(seeds, data):
    parts = data.draw(st.integers(1, len(seeds)))
    shards = [observe(*seeds[start::parts]) for start in range(parts)]
    before = [shard.to_bytes() for shard in shards]
    merged = merge_observations(data.draw(st.permutations(shards)))
    assert merged.to_bytes() == observe(*seeds).to_bytes()
    assert [shard.to_bytes() for shard in shards] == before
    assert merge_observations(shards[:-1] or shards).to_bytes() != observe(*seeds, 99).to_bytes()


def test_skipped_images_are_put_together():
    merged = merge_observations([observe(1, skipped=("b.png",)), observe(2, skipped=("a.png",))])
    assert merged.to_bytes() == observe(1, 2, skipped=("a.png", "b.png")).to_bytes()
    assert (merged.count, len(merged.images)) == (2, 4)


@pytest.mark.parametrize("field", Observed.__struct_fields__)
def test_other_models_are_refused(field):
    other = replace(observe(2), model=msgspec.structs.replace(MODEL, **{field: "f" * 64}))
    with pytest.raises(ModelError, match=f"different models: {field} differs"):
        merge_observations([observe(1), other])


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(DataError, match=r"2\.png was observed twice"):
        merge_observations([observe(1, 2), observe(2, 3)])
    with pytest.raises(DataError, match="different folders: train and val"):
        merge_observations([observe(1), replace(observe(2), dataset="val")])
    with pytest.raises(DataError, match="made on cpu and on cuda"):
        merge_observations([observe(1), replace(observe(2), device="cuda")])
    noise = replace(observe(1), images={})
    with pytest.raises(DataError, match="noise was observed twice"):
        merge_observations([noise, noise])
    with pytest.raises(DataError, match="nothing to merge"):
        merge_observations([])
