"""The engines of one run: bundles that are of one model, each with a name of its own."""

import glob
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from resnet_deploy.bundle import Bundle, find_bundles, open_bundle
from resnet_deploy.errors import FileError, SpecError
from resnet_deploy.specs import ModelCard


def find_engines(folder: Path) -> tuple[Path, ...]:
    """List the bundles in ``folder``.

    Raises:
        FileError: If there is none.
    """
    found = tuple(find_bundles(folder))
    if not found:
        raise FileError(
            f"no engines in {folder}/", hint="build one with `resnet-deploy build --fp16`, or name a bundle"
        )
    return found


def open_bundles(paths: Sequence[Path], command: str, reserved: Sequence[str]) -> tuple[list[Bundle], ModelCard]:
    """Open bundles and hold them against each other.

    Args:
        paths: At least one bundle.
        command: Who asks; the hint to an error writes it down for the engines of each model.
        reserved: Names that the record gives to others.

    Returns:
        The bundles, and the card that all of them share.

    Raises:
        UserError: If one is no bundle, two have one name, or they are of several models.
    """
    # A relative path such as `.` has no name to appear under.
    bundles = [open_bundle(path if path.name not in ("", "..") else path.resolve()) for path in paths]
    _require_distinct_names([*reserved, *(bundle.path.name for bundle in bundles)])
    return bundles, _common_card(bundles, command)


def _require_distinct_names(names: Sequence[str]) -> None:
    """Refuse engines that the record could not tell apart from each other, the reference or the harness."""
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"more than one engine would appear as {name!r}", hint="name each once, or rename a folder")


def _common_card(bundles: Sequence[Bundle], command: str) -> ModelCard:
    """Return the card that all bundles share; engines of different models have nothing to compare."""
    first = bundles[0]
    for other in bundles[1:]:
        for field, mine, theirs in (
            ("weights_sha256", first.manifest.card.weights_sha256, other.manifest.card.weights_sha256),
            ("preprocess", first.manifest.card.preprocess.digest, other.manifest.card.preprocess.digest),
            ("labels", first.manifest.card.labels, other.manifest.card.labels),
            ("folders", first.manifest.card.folders, other.manifest.card.folders),
        ):
            if mine != theirs:
                raise SpecError(
                    f"{first.path} and {other.path} are of different models: {field} differs",
                    hint=f"name the engines of one model: {' or '.join(_commands_by_model(bundles, command))}",
                )
    return first.manifest.card


def _commands_by_model(bundles: Sequence[Bundle], command: str) -> list[str]:
    """Write the command that takes the engines of each model, for a few models."""
    models: dict[tuple[str, str], list[Path]] = {}
    for bundle in bundles:
        card = bundle.manifest.card
        models.setdefault((card.weights_sha256, card.preprocess.digest), []).append(bundle.path)
    return [f"`resnet-deploy {command} {_in_shell(paths)}`" for paths in list(models.values())[:3]]


def _in_shell(paths: Sequence[Path]) -> str:
    """Name ``paths`` as in a shell: by what their names begin with, where nothing else begins like that."""
    parts = zip(*(path.name.split("-") for path in paths), strict=False)
    start = "-".join(part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))
    folder = paths[0].parent
    if len(paths) > 1 and start and set(folder.glob(f"{glob.escape(start)}-*")) == set(paths):
        return f"{shlex.quote(str(folder / start))}-*"
    return shlex.join(map(str, paths))
