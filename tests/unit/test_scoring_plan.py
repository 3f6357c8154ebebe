"""How images are cut into shards, and machines into workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_deploy.errors import SpecError
from resnet_deploy.pipeline.scoring_plan import Machines, ScoringRequest, ScoringSpec, Shards, list_digest


@given(st.integers(1, 50), st.integers(1, 12))
def test_shards_have_every_name_once_in_order(count, size):
    names = [f"{number:03}" for number in range(count)]
    shards = Shards(names, size, range(-(-count // size)))
    assert [name for shard in shards for name in shard.names] == names
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert {len(shard.names) for shard in shards[: len(shards) - 1]} <= {size}


def test_shards_that_are_missing():
    shards = Shards("abcdefg", 3, [2, 0])
    assert [(shard.number, shard.names, shard.file) for shard in shards] == [
        (2, ("g",), "part-00002.parquet"),
        (0, ("a", "b", "c"), "part-00000.parquet"),
    ]


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [
        ((2,), 0, 0, (2, 1)),
        ((4,), 0, 0, (4, 1)),
        ((8,), 0, 0, (4, 2)),
        ((64,), 0, 0, (16, 4)),
        ((16,), 0, 0, (4, 4)),
        ((16,), 0, 2, (8, 2)),
        ((16,), 3, 0, (3, 5)),
        ((16,), 3, 7, (3, 7)),
        ((2,), 5, 0, (5, 1)),
        ((6, 6, 6), 3, 0, (3, 6)),
        ((6, 6, 6), 4, 0, (4, 3)),  # not of four threads, of which one would fit nowhere
        ((8, 2), 0, 0, (6, 1)),
    ],
)
def test_machines_are_parted(cores, workers, threads, expected):
    assert Machines(cores).part(ScoringSpec(workers=workers, threads=threads), 99, on_gpu=False) == expected


def test_a_worker_for_each_gpu():
    assert Machines((32,), gpus=2).part(ScoringSpec(), 99, on_gpu=True) == (2, 16)
    assert Machines((32,), gpus=0).part(ScoringSpec(), 99, on_gpu=True) == (1, 32)
    assert Machines((32,), gpus=2).part(ScoringSpec(workers=1), 99, on_gpu=True) == (1, 32)


def test_no_more_workers_than_shards():
    assert Machines((16,)).part(ScoringSpec(workers=1000), 1, on_gpu=False) == (1, 16)
    assert Machines((16,)).part(ScoringSpec(), 2, on_gpu=False) == (2, 8)
    assert Machines((32,), gpus=4).part(ScoringSpec(), 3, on_gpu=True) == (3, 10)
    assert Machines((16,)).part(ScoringSpec(workers=1000), 0, on_gpu=False)[0] == 0


def test_numbers_out_of_range():
    for wrong in ({"shard_size": 0}, {"top": 0}, {"workers": -1}, {"threads": -1}, {"workers": 10**6}):
        with pytest.raises(SpecError):
            ScoringSpec(**wrong)


def test_a_shard_of_one_image_and_one_class_are_enough():
    spec = ScoringSpec(shard_size=1, top=1)
    assert (spec.shard_size, spec.top) == (1, 1)


def test_the_digest_of_a_list_tells_lists_apart():
    lists = (["a", "b"], ["ab"], ["a", "b", ""], ["b", "a"], ["a", "b\udcff"])
    assert len({list_digest(names) for names in lists}) == len(lists)


def test_requests_say_what_differs():
    request = ScoringRequest(
        engine="a", engine_sha256="0", source="/x", images=1, list_sha256="1", shard_size=2, top=5, logits=False
    )
    other = ScoringRequest(
        engine="a", engine_sha256="0", source="/x", images=1, list_sha256="1", shard_size=2, top=3, logits=True
    )
    assert request.difference_from(request) == ""
    assert other.difference_from(request) == "top was 5, is 3; logits was False, is True"
    assert request.digest != other.digest
