"""Files of records, whose names have the time, so that no second command comes to write the same."""

import pytest

from resnet_deploy import artifact
from resnet_deploy.bench import record_files

LEFT = (".net-20261126T120000Z.json.abcdefgh.tmp", ".net-20251126T120000Z.html.abcdefgh.tmp")
OTHERS = (
    ".net-evaluation-20261126T120000Z.json.abcdefgh.tmp",
    ".net-20261126T120000Z.csv.abcdefgh.tmp",
    ".net-20261126T12.json.abcdefgh.tmp",
    ".a-net-20261126T120000Z.json.abcdefgh.tmp",
)


@pytest.fixture
def leftovers(tmp_path):
    """What killed commands left, and what they did not."""
    for name in (*LEFT, *OTHERS):
        (tmp_path / name).write_text("half of the n")
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_command_left_of_another_time_is_removed(leftovers):
    record_files.write({"kind": "bench"}, leftovers / "net-20261126T130000Z.json")
    assert names(leftovers) == sorted((*OTHERS, "net-20261126T130000Z.json"))


def test_not_while_it_is_being_written(tmp_path):
    with artifact.atomic_file(tmp_path / "net-20261126T120000Z.html") as temporary:
        record_files.write({"kind": "bench"}, tmp_path / "net-20261126T130000Z.json")
        assert temporary.exists()


def test_a_name_without_a_time_takes_nobody_elses(leftovers):
    record_files.write({"kind": "bench"}, leftovers / "net.json")
    assert names(leftovers) == sorted((*LEFT, *OTHERS, "net.json"))
