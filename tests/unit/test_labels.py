"""labels.py, by way of find_dataset: every layout and file format, and what is refused because it could mislead."""

from dataclasses import dataclass

import pytest
from PIL import Image

from resnet_deploy.datasets import LABEL_FILES, find_dataset
from resnet_deploy.errors import DataError, FileError
from resnet_deploy.imagenet import imagenet_classes
from resnet_deploy.specs import ModelCard, Preprocess

SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
LABELS = ("tench", "goldfish", "great white shark", "tiger shark", "crane", "crane")


def card_with(num_classes, labels=(), folders=()):
    return ModelCard(
        architecture="resnet18",
        num_classes=num_classes,
        weights="none",
        weights_sha256="0" * 64,
        labels=labels,
        folders=folders,
        preprocess=Preprocess(),
    )


NAMED = card_with(6, LABELS, SYNSETS)
NAMELESS = card_with(6)


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return root


def by_name(dataset):
    return {
        path.relative_to(dataset.root).as_posix(): label
        for path, label in zip(dataset.paths, dataset.labels, strict=True)
    }


# A folder per class


def test_subset_of_synsets_maps_by_synset_not_by_position(tmp_path):
    make(tmp_path, "n01491361/a.jpg", "n01494475/a.jpg", "n01443537/a.jpg")
    dataset = find_dataset(tmp_path, NAMED)
    assert by_name(dataset) == {"n01443537/a.jpg": 1, "n01491361/a.jpg": 3, "n01494475/a.jpg": 4}
    assert dataset.labels != (0, 1, 2)  # the order of the folders that are there


def test_folders_named_by_label_and_by_synset_may_be_mixed(tmp_path):
    make(tmp_path, "great white shark/a.jpg", "tench/a.jpg", "n01496331/a.jpg")
    assert by_name(find_dataset(tmp_path, NAMED)) == {
        "great white shark/a.jpg": 2,
        "tench/a.jpg": 0,
        "n01496331/a.jpg": 5,
    }


def test_unknown_folders_are_refused_by_name(tmp_path):
    make(tmp_path, "tench/a.jpg", *(f"z{index}/a.jpg" for index in range(5)))
    with pytest.raises(DataError, match=r"5 of 6 folders .*: z0, z1, z2, \.\.\.$") as caught:
        find_dataset(tmp_path, NAMED)
    assert "n01440764" in caught.value.hint


def test_label_of_two_classes_names_neither(tmp_path):
    make(tmp_path, "crane/a.jpg", "tench/a.jpg")
    with pytest.raises(DataError, match="1 of 2 folders do not name exactly one class of the model: crane"):
        find_dataset(tmp_path, NAMED)


def test_empty_unknown_folder_is_harmless_where_names_decide(tmp_path):
    make(tmp_path, "tench/a.jpg")
    (tmp_path / "thumbnails").mkdir()
    assert find_dataset(tmp_path, NAMED).labels == (0,)


def test_numeric_folders_sort_as_numbers(tmp_path):
    make(tmp_path, *(f"{index}/a.jpg" for index in range(11)))
    labels = by_name(find_dataset(tmp_path, card_with(11)))
    assert labels == {f"{index}/a.jpg": index for index in range(11)}
    as_text = {name: place for place, name in enumerate(sorted(labels))}
    assert labels != as_text


@pytest.mark.parametrize("folders", [[f"{index:02}" for index in range(11)], [f"{index:02}" for index in range(1, 12)]])
def test_padded_numbers_sort_alike_both_ways(tmp_path, folders):
    make(tmp_path, *(f"{folder}/a.jpg" for folder in folders))
    assert find_dataset(tmp_path, card_with(11)).labels == tuple(range(11))


def test_numbers_from_one_whose_order_is_in_doubt_are_refused(tmp_path):
    make(tmp_path, *(f"{index}/a.jpg" for index in range(1, 12)))
    with pytest.raises(DataError, match="not 0 to 10, so their order is in doubt"):
        find_dataset(tmp_path, card_with(11))
    make(tmp_path / "few", *(f"{index}/a.jpg" for index in range(1, 7)))
    assert find_dataset(tmp_path / "few", NAMELESS).labels == tuple(range(6))


def test_nameless_model_takes_sorted_folders_only_if_all_are_there(tmp_path):
    make(tmp_path, *(f"{letter}/x.jpg" for letter in "fbdac"))
    with pytest.raises(DataError, match="5 folders for 6 classes"):
        find_dataset(tmp_path, NAMELESS)
    (tmp_path / "e").mkdir()  # a class without images still holds its place
    assert by_name(find_dataset(tmp_path, NAMELESS)) == {
        "a/x.jpg": 0,
        "b/x.jpg": 1,
        "c/x.jpg": 2,
        "d/x.jpg": 3,
        "f/x.jpg": 5,
    }


# A flat folder and a file


@dataclass(frozen=True)
class Format:
    """A labels file for a.jpg = 2, b.png = 0, and what it is called."""

    id: str
    file: str
    text: str


FORMATS = [
    Format("index", "val_map.txt", "a.jpg 2\nb.png 0\n"),
    Format("no final newline, other order", "val.txt", "b.png 0\na.jpg 2"),
    Format("crlf", "labels.txt", "a.jpg 2\r\nb.png 0\r\n"),
    Format("byte-order mark", "labels.txt", "\ufeffa.jpg 2\nb.png 0\n"),
    Format("blank lines and spaces", "labels.txt", "\n  a.jpg    2  \n\nb.png\t0\n\n"),
    Format("comma", "labels.txt", "a.jpg,2\nb.png, 0\n"),
    Format("header", "labels.txt", "image label\na.jpg 2\nb.png 0\n"),
    Format("csv header", "labels.csv", "filename,class\na.jpg,2\nb.png,0\n"),
    Format("csv quoted", "labels.csv", '"a.jpg","great white shark"\n"b.png", "tench"\n'),
    Format("synset", "val.txt", "a.jpg n01484850\nb.png n01440764\n"),
    Format("label with spaces", "val.txt", "a.jpg great white shark\nb.png tench\n"),
    Format("label after a tab", "val.txt", "a.jpg\tgreat white shark\nb.png\ttench\n"),
    Format("without suffix", "val.txt", "a 2\nb 0\n"),
    Format("dot slash", "val.txt", "./a.jpg 2\n./b.png 0\n"),
    Format("twice the same", "val.txt", "a.jpg 2\na 2\nb.png 0\n"),
    Format(
        "kaggle", "LOC_val_solution.csv", "ImageId,PredictionString\na,n01484850 85 1 499 272 \nb,n01440764 1 2 3 4\n"
    ),
    Format(
        "kaggle with boxes",
        "LOC_val_solution.csv",
        "ImageId,PredictionString\nb,n01440764 1 2 3 4 n01440764 5 6 7 8\na,n01484850 1 2 3 4\n",
    ),
]


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.id)
def test_labels_file_formats(tmp_path, case):
    make(tmp_path, "a.jpg", "b.png")
    (tmp_path / case.file).write_bytes(case.text.encode())
    assert by_name(find_dataset(tmp_path, NAMED)) == {"a.jpg": 2, "b.png": 0}


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.id)
def test_labels_file_given_from_elsewhere(tmp_path, case):
    make(tmp_path / "images", "a.jpg", "b.png")
    (tmp_path / "images" / "val_map.txt").write_text("what is given comes before what is found")
    file = tmp_path / f"given-{case.file}"
    file.write_bytes(case.text.encode())
    assert by_name(find_dataset(tmp_path / "images", NAMED, labels_file=file)) == {"a.jpg": 2, "b.png": 0}


def test_given_file_labels_nested_images_by_relative_name(tmp_path):
    make(tmp_path, "0/x.jpg", "1/x.jpg")
    (tmp_path / "list.txt").write_text("0/x.jpg 4\n1/x 5\n")
    dataset = find_dataset(tmp_path, NAMED, labels_file=tmp_path / "list.txt")
    assert by_name(dataset) == {"0/x.jpg": 4, "1/x.jpg": 5}


def test_names_with_spaces_go_into_a_csv(tmp_path):
    make(tmp_path, "my cat.jpg")
    (tmp_path / "labels.csv").write_text("my cat.jpg,3\n")
    assert find_dataset(tmp_path, NAMED).labels == (3,)
    (tmp_path / "labels.csv").rename(tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("my cat.jpg 3\n")
    with pytest.raises(DataError) as caught:
        find_dataset(tmp_path, NAMED)
    assert ".csv" in caught.value.hint


@pytest.mark.parametrize("name", ["ILSVRC2012_validation_ground_truth.txt", "labels.txt"])
def test_ground_truth_of_the_development_kit_is_refused(tmp_path, name):
    make(tmp_path, "a.jpg", "b.png")
    (tmp_path / name).write_text("490\n361\n")
    for given in (None, tmp_path / name):
        with pytest.raises(DataError, match="ILSVRC2012_ID order") as caught:
            find_dataset(tmp_path, NAMED, labels_file=given)
        assert "\n" not in caught.value.message


def test_first_of_the_known_names_is_taken(tmp_path):
    make(tmp_path, "a.jpg")
    assert LABEL_FILES[0] == "val_map.txt"
    (tmp_path / "val_map.txt").write_text("a.jpg 1\n")
    (tmp_path / "labels.txt").write_text("tench\ngoldfish\n")  # names of the classes, as often lie about
    assert find_dataset(tmp_path, NAMED).labels == (1,)


def test_labels_txt_of_class_names_does_not_get_in_the_way_of_folders(tmp_path):
    make(tmp_path, "tench/a.jpg")
    (tmp_path / "labels.txt").write_text("tench\ngoldfish\n")
    assert find_dataset(tmp_path, NAMED).labels == (0,)


@dataclass(frozen=True)
class Refusal:
    """A labels file for a.jpg, b.png and c.png that must be refused, and what the message says."""

    id: str
    text: str
    message: str


REFUSALS = [
    Refusal("image without label", "a.jpg 1\n", r"images without a label: 2, the first is b\.png"),
    Refusal(
        "label without image", "a.jpg 1\nb.png 1\nc.png 1\nd 1\ne 1\n", "labels without an image: 2, the first is d"
    ),
    Refusal("too high", "a.jpg 1\nb.png 6\nc.png 1\n", "line 2: label 6 is out of range for 6 classes"),
    Refusal("negative", "a.jpg -1\nb.png 1\nc.png 1\n", "line 1: label -1 is out of range"),
    Refusal("unknown class", "a.jpg 1\nb.png unicorn\nc.png 1\n", "line 2: 'unicorn' is no class"),
    Refusal("unknown class in the first line", "a.jpg unicorn\nb.png 1\nc.png 1\n", "line 1: 'unicorn' is no class"),
    Refusal("two headers", "name class\nname class\na.jpg 1\n", "line 2: 'class' is no class"),
    Refusal("fraction", "a.jpg 1.0\nb.png 1\nc.png 1\n", "line 1: '1.0' is no class"),
    Refusal("ambiguous class", "a.jpg crane\nb.png 1\nc.png 1\n", "line 1: 'crane' is no class"),
    Refusal("contradiction", "a.jpg 1\nb.png 1\nc.png 1\na 2\n", r"line 4: another label for a\.jpg"),
    Refusal("one column", "a.jpg\nb.png\nc.png\n", "line 1: 'a.jpg' is not a name and a class"),
    Refusal("empty", "\n\n", "no labels"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.id)
def test_labels_files_that_are_refused(tmp_path, case):
    make(tmp_path, "a.jpg", "b.png", "c.png")
    (tmp_path / "val.txt").write_text("a.jpg 1\nb.png 5\nc.png n01440764\n")
    assert find_dataset(tmp_path, NAMED).labels == (1, 5, 0)
    (tmp_path / "val.txt").write_text(case.text)
    with pytest.raises(DataError, match=case.message) as caught:
        find_dataset(tmp_path, NAMED)
    assert "val.txt" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_csv_with_more_columns_is_refused(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "labels.csv").write_text("a.jpg,1,0.9\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 1"):
        find_dataset(tmp_path, NAMED)


def test_name_without_suffix_must_be_unique(tmp_path):
    make(tmp_path, "a.jpg", "a.png")
    (tmp_path / "val.txt").write_text("a.jpg 1\na 2\n")
    with pytest.raises(DataError, match=r"labels without an image: 1, the first is a$"):
        find_dataset(tmp_path, NAMED)
    (tmp_path / "val.txt").write_text("a.jpg 1\na.png 2\n")
    assert find_dataset(tmp_path, NAMED).labels == (1, 2)


def test_labels_file_that_is_missing_or_binary(tmp_path):
    make(tmp_path, "a.jpg")
    with pytest.raises(FileError, match=r"gone\.txt"):
        find_dataset(tmp_path, NAMED, labels_file=tmp_path / "gone.txt")
    with pytest.raises(DataError, match="not UTF-8"):
        find_dataset(tmp_path, NAMED, labels_file=tmp_path / "a.jpg")


# ImageNet's synsets, with a model that does not name them

THOUSAND = {
    "no names": card_with(1000),
    "English names": card_with(1000, tuple(name for _, name in imagenet_classes())),
    "names of its own": card_with(1000, tuple(f"thing {index}" for index in range(1000))),
}


@pytest.mark.parametrize("card", THOUSAND.values(), ids=THOUSAND)
def test_synsets_are_known_to_every_model_of_a_thousand_classes(tmp_path, card):
    make(tmp_path, "n01491361/a.jpg", "n01494475/a.jpg", "n15075141/a.jpg")
    dataset = find_dataset(tmp_path, card)
    assert by_name(dataset) == {"n01491361/a.jpg": 3, "n01494475/a.jpg": 4, "n15075141/a.jpg": 999}
    assert dataset.labels_note == ""


@pytest.mark.parametrize("card", THOUSAND.values(), ids=THOUSAND)
def test_kaggles_file_has_synsets(tmp_path, card):
    make(tmp_path, "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    rows = ["ImageId,PredictionString"]
    rows += [f"ILSVRC2012_val_0000000{number},{name} 1 2 3 4" for number, name in ((1, "n15075141"), (2, "n01443537"))]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    assert find_dataset(tmp_path, card).labels == (999, 1)


def test_synsets_mean_nothing_to_a_model_of_another_number_of_classes(tmp_path):
    make(tmp_path, "n01491361/a.jpg", "n01494475/a.jpg")
    with pytest.raises(DataError, match="2 folders for 999 classes"):
        find_dataset(tmp_path, card_with(999))


def test_names_of_the_model_come_before_synsets(tmp_path):
    make(tmp_path, "n01440764/a.jpg")
    backwards = card_with(1000, tuple(synset for synset, _ in imagenet_classes())[::-1])
    assert find_dataset(tmp_path, backwards).labels == (999,)


# Folders that are class indices, and folders that are in some order


@pytest.mark.parametrize("card", [NAMED, NAMELESS, card_with(6, LABELS)], ids=["synsets", "no names", "labels"])
def test_folders_called_by_index_are_the_classes_whatever_they_are_called(tmp_path, card):
    make(tmp_path, *(f"{index}/a.jpg" for index in (5, 0, 3, 1, 2, 4)))
    dataset = find_dataset(tmp_path, card)
    assert by_name(dataset) == {f"{index}/a.jpg": index for index in range(6)}
    assert dataset.labels_note == ""


def test_some_indices_may_be_counted_from_one(tmp_path):
    make(tmp_path, "1/a.jpg", "2/a.jpg")
    with pytest.raises(DataError, match="2 of 2 folders do not name exactly one class"):
        find_dataset(tmp_path, NAMED)


def test_order_is_taken_for_the_classes_only_aloud(tmp_path):
    make(tmp_path, *(f"{name}/a.jpg" for name in ("two", "one", "three", "four", "five", "six")))
    dataset = find_dataset(tmp_path, NAMELESS)
    assert by_name(dataset)["five/a.jpg"] == 0
    said = "folders in sorted order are taken for its classes (five = 0, four = 1, one = 2, ...)"
    assert dataset.labels_note == f"the model knows no class names: {said}"
    assert dataset.subset(2).labels_note == dataset.labels_note
