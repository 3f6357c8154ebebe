"""An engine bundle into a Triton model repository, whole or not at all.

Triton may read the repository at any time, and takes every folder in it for a model, hidden ones too. So a model is
made beside the repository and renamed into it; a new version of a model that is there already is added to a copy (of
links) of its folder, which is then exchanged for the old one in one step.
"""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from resnet_deploy import artifact
from resnet_deploy.bundle import GOLDEN, MANIFEST, Bundle, open_bundle
from resnet_deploy.errors import BundleError, FileError, SpecError
from resnet_deploy.integrations.triton.config import LABELS, WARMUP, Contents
from resnet_deploy.integrations.triton.folders import CONFIG, INTERFACE, ModelFolder, model_folders, origin
from resnet_deploy.integrations.triton.hosts import Serving, notes
from resnet_deploy.json_files import decode_json
from resnet_deploy.pipeline.replaying import read_golden

State = Literal["new", "new version", "rewritten", "unchanged"]
_OTHER_NAME: Final = "choose another --name, or remove the folder first"
_LOCK: Final = ".resnet-deploy.lock"  # a file, which Triton passes over
_LAST_VERSION: Final = 2**63 - 1  # Triton holds them in an int64


@dataclass(frozen=True)
class PackagedModel:
    """A model of the repository: its name, the version that was asked for, and what became of it."""

    name: str
    version: int
    state: State


@dataclass(frozen=True)
class Packaged:
    """What a repository holds of an engine.

    Attributes:
        repository: The repository.
        bundle: Name of the engine's bundle.
        models: The engine's own, and those that were made around it, in the order in which they were written.
        notes: What a server must be or have, one line each.
    """

    repository: str
    bundle: str
    models: tuple[PackagedModel, ...]
    notes: tuple[str, ...]


def package_for_triton(engine: Path, repository: Path, serving: Serving, version: int | None = None) -> Packaged:
    """Add an engine to a model repository, or make one.

    The engine becomes version 1 of a new model, or the next of one that is there; a bundle that is the newest version
    already is left as it is, or gets its configuration written anew. Models of others are not touched, nor
    configurations that were edited.

    Args:
        engine: The bundle.
        repository: The folder that Triton reads.
        serving: How it is to be served.
        version: Number of the version; by default the next.

    Raises:
        BackendError: If Triton cannot run the engine, or ONNX is missing to write the normalisation with.
        BundleError: If the bundle is damaged, or holds no golden inputs, or none that fit it.
        FileError: If a model of that name is there and is not ours, was edited, or takes other inputs; or if the
            folder cannot be written.
        SpecError: If something was asked for that the engine, or Triton, cannot do, or the version is no new one.
    """
    bundle = open_bundle(engine)
    bundle.verify_files()
    folders = model_folders(_contents(bundle), serving)
    # Others would choose the same number meanwhile.
    with artifact.writable_folder(repository), artifact.locked(repository / _LOCK):
        versions = []
        for folder in folders:  # every refusal comes before anything is written
            existing = _versions_of_ours(repository / folder.name, folder)
            is_engine = folder.name == serving.name
            versions.append(_choose(repository / folder.name, folder, existing, version) if is_engine else 1)
        models = tuple(_place(repository, folder, number) for folder, number in zip(folders, versions, strict=True))
    return Packaged(str(repository), bundle.manifest.name, models, notes(bundle.manifest))


def _contents(bundle: Bundle) -> Contents:
    if GOLDEN not in bundle.manifest.files:
        hint = "build the engine again with `resnet-deploy build`"
        raise BundleError(f"{bundle.path} holds no golden inputs to warm a server up with", hint=hint)
    images, _ = read_golden(bundle)
    return Contents(bundle.manifest, artifact.read_bytes(bundle.manifest_path), bundle.engine_path, images)


def _versions_of_ours(target: Path, folder: ModelFolder) -> list[int]:
    """List the versions of the model at ``target``, in order; none where there is nothing.

    Raises:
        FileError: If what is there is not ours, was edited, or has another interface than ``folder``.
    """
    if not artifact.exists(target):
        return []
    config = target / CONFIG
    found = origin(artifact.read_bytes(config)) if artifact.is_file(config) else "foreign"
    if found == "foreign":
        raise FileError(f"{target} is there, and was not made by `resnet-deploy package`", hint=_OTHER_NAME)
    if found == "edited":
        hint = f"give what was edited as options, and remove {config.parent} first; or choose another --name"
        raise FileError(f"{config} was edited since it was made", hint=hint)
    # As Triton reads them: numbers that do not begin with 0.
    names = [path.name for path in artifact.list_folder(target) if artifact.is_folder(path)]
    versions = sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))
    if versions:
        _require_same_interface(target / str(versions[-1]) / INTERFACE, folder)
    return versions


def _require_same_interface(file: Path, folder: ModelFolder) -> None:
    wanted = folder.version_files[INTERFACE]
    assert isinstance(wanted, bytes)
    written = artifact.read_bytes(file) if artifact.is_file(file) else b"{}"
    new = decode_json(wanted, dict[str, object])
    try:
        old = decode_json(written, dict[str, object])
    except ValueError as error:
        raise FileError(f"{file} is damaged: {error}", hint=_OTHER_NAME) from error
    if not (old.get("labels") and new.get("labels")):  # a model that has none contradicts no other
        old["labels"] = new["labels"] = []
    if old == new:
        return
    differing = ", ".join(name for name in new if old.get(name) != new[name])
    raise FileError(
        f"{file.parent.parent} has another interface ({differing or 'its file was edited'}), "
        "and versions of a model share theirs",
        hint=_OTHER_NAME,
    )


def _choose(target: Path, folder: ModelFolder, existing: list[int], asked: int | None) -> int:
    """Choose the number: that of the newest version if it is this very bundle, else the next, or what was asked for."""
    newest = existing[-1] if existing else 0
    is_there = bool(existing) and _holds(target / str(newest) / MANIFEST, folder.version_files[MANIFEST])
    if is_there and asked in (None, newest):
        return newest
    version = newest + 1 if asked is None else asked
    if asked is None and version > _LAST_VERSION:
        raise SpecError(f"{target} is at version {newest}, and Triton knows no later one", hint=_OTHER_NAME)
    if not 1 <= version <= _LAST_VERSION:
        raise SpecError(f"version {version}", hint=f"give --version a number from 1 to {_LAST_VERSION}")
    if version <= newest:
        hint = f"give --version {newest + 1} or more, or leave it out"
        raise SpecError(f"{target} is at version {newest}, and Triton would not serve {version}", hint=hint)
    return version


def _place(repository: Path, folder: ModelFolder, version: int) -> PackagedModel:
    """Write a model, unless it is there as it is to be."""
    target = repository / folder.name
    wanted = _files(folder, version)
    is_new, is_next = not artifact.exists(target), not artifact.exists(target / str(version))
    # A link may lead out of the repository: what it leads to is replaced.
    final = Path(os.path.realpath(target))
    root = final.parent
    staging = _staging(root)
    if not is_new and all(_holds(target / path, content) for path, content in wanted.items()):
        artifact.remove_abandoned(staging / final.name)  # of a command that was killed when this was in its place
        return PackagedModel(folder.name, version, "unchanged")
    try:
        _make(target, wanted, version, staging)
    except FileError as error:
        # A bind mount of the same disk is known by this alone.
        is_mounted = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EXDEV
        if not is_mounted or staging == root:
            raise
        _make(target, wanted, version, root)
    return PackagedModel(folder.name, version, "new" if is_new else "new version" if is_next else "rewritten")


def _make(target: Path, wanted: dict[str, bytes | Path], version: int, staging: Path) -> None:
    """Make a model in ``staging``, with what else lies in its folder, and rename it into its place."""
    with artifact.atomic_folder(target, staging=staging) as temporary, artifact.translate_os_errors(target):
        # Before anything else: Triton loads no model from a folder that has another name than the model.
        _write(temporary / CONFIG, wanted[CONFIG])
        if artifact.exists(target):
            _link_others(target, temporary, version)
        for path, content in wanted.items():
            _write(temporary / path, content)


def _files(folder: ModelFolder, version: int) -> dict[str, bytes | Path]:
    """List what is written, by path in the model's folder."""
    inside = {f"{version}/{name}": content for name, content in folder.version_files.items()}
    return {CONFIG: folder.config, **folder.files, **inside}


def _holds(path: Path, content: bytes | Path) -> bool:
    if not artifact.is_file(path):
        return False
    digest = artifact.sha256_bytes(content) if isinstance(content, bytes) else artifact.sha256_file(content)
    return artifact.sha256_file(path) == digest


def _staging(root: Path) -> Path:
    """Say where to make a model: beside the repository, or in it where it is a file system of its own."""
    with artifact.translate_os_errors(root):
        is_mounted = root.stat().st_dev != root.parent.stat().st_dev
    return root if is_mounted or not os.access(root.parent, os.W_OK | os.X_OK) else root.parent


def _link_others(target: Path, temporary: Path, version: int) -> None:
    """Take over everything but what is written anew, without a copy where links can be had."""
    anew = {CONFIG, LABELS, WARMUP, str(version)}

    def passed_over(folder: str, names: list[str]) -> set[str]:
        return anew.intersection(names) if Path(folder) == target else set()

    shutil.copytree(
        target, temporary, symlinks=True, ignore=passed_over, copy_function=_link_or_copy, dirs_exist_ok=True
    )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _write(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
