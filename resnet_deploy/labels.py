"""Class indices of images, from the folders they lie in or from a file that lists them.

Labels come from names wherever there are any: ten of ImageNet's thousand folders must not be relabelled 0..9, and
several orders are in circulation (folders sorted as text, the development kit's ILSVRC2012_ID, one-based lists). Only
where the model knows no names are all the folders, sorted, its classes, as in torchvision's ImageFolder; that is said.
What cannot be told for certain is refused with the reason.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from resnet_deploy.artifact import file_error
from resnet_deploy.errors import DataError
from resnet_deploy.imagenet import CLASSES, imagenet_classes
from resnet_deploy.regular_files import open_regular
from resnet_deploy.specs import ModelCard

_ROW_HINT: Final = "write 'NAME INDEX' or 'NAME CLASS'; names with spaces need a .csv with NAME,CLASS"
_KAGGLE_HEADER: Final = ("imageid", "predictionstring")


class _Row(NamedTuple):
    """What one line of a labels file says, and its number in the file."""

    line: int
    image: str
    value: str


def labels_from_folders(
    root: Path, names: Sequence[str], folders: Sequence[str], card: ModelCard
) -> tuple[tuple[int, ...], str]:
    """Label each image by the first folder in its name.

    ImageNet's synsets are known to every model of 1000 classes, and folders that are called 0 to N-1 are the class
    indices themselves, whatever names the model has.

    Args:
        root: Where the images are, for messages.
        names: Images relative to ``root``, each with a folder and a forward slash before it.
        folders: All folders in ``root``; for a model without class names, one without images counts as a class too.
        card: The model that the labels are for.

    Returns:
        A class index per image, and what a reader of the accuracy must know of them; empty if nothing.

    Raises:
        DataError: If a folder does not name exactly one class, or a model without class names has another number of
            classes than there are folders.
    """
    known, note = _indices_from_card(card), ""
    used = {name.partition("/")[0] for name in names}
    if known.keys().isdisjoint(used) and (not card.labels or _are_class_indices(folders, card)):
        known = _indices_by_position(root, folders, card)
        if not _are_class_indices(folders, card):
            first = ", ".join(f"{folder} = {index}" for folder, index in list(known.items())[:3])
            note = f"the model knows no class names: folders in sorted order are taken for its classes ({first}, ...)"
    unknown = sorted(used - known.keys())
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{root}: {len(unknown)} of {len(used)} folders do not name exactly one class of the model: {shown}",
            hint=f"name the folders as the model names its classes, such as {(card.folders or card.labels)[0]!r}",
        )
    return tuple(known[name.partition("/")[0]] for name in names), note


def labels_from_file(file: Path, names: Sequence[str], card: ModelCard) -> tuple[int, ...]:
    """Label each image by the line that names it.

    A line holds the image's name, with or without its suffix, and a class index, label or folder name of the model;
    white space divides them, or a comma. A header line is tolerated, and Kaggle's ``LOC_val_solution.csv`` is read too.

    Args:
        file: UTF-8 text; commas alone divide it if its suffix is ``.csv``.
        names: The images, as the file should name them.
        card: The model that the labels are for.

    Raises:
        FileError: If the file is missing or cannot be read.
        DataError: If a line makes no sense, a class is unknown or out of range, or lines and images do not match one
            to one.
    """
    known = _indices_from_card(card)
    spellings = _spellings(names)
    labels: dict[str, int] = {}
    strangers: list[str] = []
    for position, row in enumerate(_rows(file)):
        name = spellings.get(row.image.removeprefix("./"))
        index = _index_from_value(row.value, known)
        if position == 0 and name is None and index is None:
            continue  # a header
        if index is None:
            raise DataError(f"{file}, line {row.line}: {row.value!r} is no class of the model", hint=_ROW_HINT)
        if not 0 <= index < card.num_classes:
            raise DataError(
                f"{file}, line {row.line}: label {index} is out of range for {card.num_classes} classes",
                hint="class indices count from 0, in the order of the model's outputs",
            )
        if name is None:
            strangers.append(row.image)
        elif labels.setdefault(name, index) != index:
            raise DataError(f"{file}, line {row.line}: another label for {name}", hint="keep one line per image")
    _refuse_mismatch(file, strangers, [name for name in names if name not in labels])
    return tuple(labels[name] for name in names)


def _refuse_mismatch(file: Path, strangers: Sequence[str], unlabelled: Sequence[str]) -> None:
    """Raise unless lines and images matched one to one."""
    for names, complaint in ((strangers, "labels without an image"), (unlabelled, "images without a label")):
        if names:
            raise DataError(
                f"{file}: {complaint}: {len(names)}, the first is {names[0]}",
                hint="list each image by its name relative to the folder; names with spaces need a .csv",
            )


def _indices_from_card(card: ModelCard) -> dict[str, int]:
    """Class index by folder name and by label; a label that several classes share names none of them.

    A synset means one class of ImageNet and nothing else, so a model of 1000 classes need not name them.
    """
    uses = Counter(card.labels)
    by_label = {label: index for index, label in enumerate(card.labels) if uses[label] == 1}
    folders = card.folders
    synsets = [synset for synset, _ in imagenet_classes()] if card.num_classes == CLASSES and not folders else []
    known = {synset: index for index, synset in enumerate(synsets)} | by_label
    return known | {folder: index for index, folder in enumerate(folders)}


def _are_class_indices(folders: Sequence[str], card: ModelCard) -> bool:
    """Whether the folders are called 0 to N-1, leading zeros or not, as ImageNetV2's are."""
    numbers = sorted(int(folder) for folder in folders if re.fullmatch("[0-9]{1,9}", folder))
    return len(numbers) == len(folders) and numbers == list(range(card.num_classes))


def _indices_by_position(root: Path, folders: Sequence[str], card: ModelCard) -> dict[str, int]:
    """Class index of each folder for a model that knows no names: its place in sorted order."""
    if len(folders) != card.num_classes:
        raise DataError(
            f"{root}: {len(folders)} folders for {card.num_classes} classes, and the model does not know their names",
            hint="export the model with its labels, or give one folder per class",
        )
    as_text = sorted(folders)
    if not all(re.fullmatch("[0-9]+", folder) for folder in folders):
        return {folder: index for index, folder in enumerate(as_text)}
    # Numbers other than 0..N-1 are a mere order, and there are two: torchvision's ImageFolder, from which the model may
    # have its classes, sorts as text and has 10 before 2.
    as_numbers = sorted(folders, key=int)
    if as_numbers != as_text and not _are_class_indices(folders, card):
        raise DataError(
            f"{root}: the folders are numbers, but not 0 to {len(folders) - 1}, so their order is in doubt",
            hint="rename each folder to its class index, or export the model with its labels",
        )
    return {folder: index for index, folder in enumerate(as_numbers)}


def _spellings(names: Sequence[str]) -> dict[str, str]:
    """Image by each way to write it: its name, and its name without the suffix where that is unique."""
    stems = {name: name.rpartition(".")[0] for name in names}
    uses = Counter(stems.values())
    return {stem: name for name, stem in stems.items() if uses[stem] == 1} | {name: name for name in names}


def _index_from_value(value: str, known: Mapping[str, int]) -> int | None:
    """Class index that a value names or is, in or out of range; names come first."""
    if value in known:
        return known[value]
    return int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else None


def _rows(file: Path) -> list[_Row]:
    """Read the lines of a labels file, without the blank ones."""
    try:
        with open_regular(file) as content, io.TextIOWrapper(content, encoding="utf-8-sig") as reader:
            text = reader.read()
    except OSError as error:
        raise file_error(file, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text", hint=_ROW_HINT) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: no labels", hint=_ROW_HINT)
    if all(re.fullmatch("[0-9]+", line) for _, line in lines):
        raise DataError(
            f"{file}: bare numbers, as in the ImageNet development kit, whose ILSVRC2012_ID order is not the model's",
            hint="use a list that names each image with its class, or a folder per class",
        )
    rows = [_row_from_line(file, number, line) for number, line in lines]
    if (rows[0].image.lower(), rows[0].value.lower()) == _KAGGLE_HEADER:
        # A prediction is a class and a box, once or several times; all boxes of an image are of one class.
        return [row._replace(value=row.value.split()[0]) for row in rows[1:]]
    return rows


def _row_from_line(file: Path, number: int, line: str) -> _Row:
    """Split one line that is not blank."""
    if file.suffix.lower() == ".csv":
        cells = _cells_from_csv(line)
    elif "\t" in line:
        cells = line.split("\t", maxsplit=1)
    else:
        match = re.fullmatch(r"([^,\s]+)\s*[,\s]\s*(\S.*)", line)
        cells = list(match.groups()) if match else []
    cells = [cell.strip() for cell in cells]
    if len(cells) != 2 or not all(cells):
        raise DataError(f"{file}, line {number}: {line[:60]!r} is not a name and a class", hint=_ROW_HINT)
    return _Row(number, *cells)


def _cells_from_csv(line: str) -> list[str]:
    try:
        return next(csv.reader([line], skipinitialspace=True))
    except csv.Error:  # a NUL, or a cell beyond the module's limit
        return []
