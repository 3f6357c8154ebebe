"""Golden vectors replayed: how far an engine's answers here are from those that its bundle keeps."""

from pathlib import Path
from typing import TYPE_CHECKING, Final
from zipfile import ZipFile

import numpy as np

from resnet_deploy.bundle import GOLDEN, Bundle
from resnet_deploy.engine import Engine
from resnet_deploy.errors import BundleError
from resnet_deploy.regular_files import open_regular
from resnet_deploy.verify import LogitDifference, compare_logits

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array

_REBUILD: Final = "build the engine again with `resnet-deploy build`"


def replay_golden(engine: Engine) -> LogitDifference:
    """Run the inputs that an engine's bundle keeps, and compare the logits with those that are kept with them.

    The C interface has the same as ``resnet_deploy_check_golden``. Differences are 0 where the engine was built and
    runs; another CPU or GPU may sum up in another order, and where it could not run there, its graph gave the answers.

    Raises:
        BundleError: If the golden vectors are missing, damaged, or do not fit the manifest.
        FeedError: If the engine is closed.
    """
    images, logits = read_golden(engine.bundle)
    return compare_logits(logits, engine(images))


def read_golden(bundle: Bundle) -> "tuple[Array, Array]":
    """Read a bundle's inputs, (N, *contract shape), and the logits expected of them, (N, classes) float32.

    Raises:
        BundleError: As ``replay_golden``.
    """
    try:
        with open_regular(bundle.golden_path) as file, np.load(file, allow_pickle=False) as arrays:
            _refuse_compressed(arrays.zip, bundle.golden_path)
            images, logits = (np.asarray(arrays[name]) for name in ("images", "logits"))
    except Exception as error:  # numpy and zipfile raise TokenError, NotImplementedError, ... on damaged bytes
        raise BundleError(f"{bundle.path}: {GOLDEN} is damaged: {error}", hint=_REBUILD) from error
    card = bundle.manifest.card
    if images.dtype != card.preprocess.dtype or images.shape[1:] != card.preprocess.shape or len(images) == 0:
        raise BundleError(f"{bundle.path}: {GOLDEN}: its images do not fit card.preprocess", hint=_REBUILD)
    if logits.dtype != np.float32 or logits.shape != (len(images), card.num_classes):
        raise BundleError(f"{bundle.path}: {GOLDEN}: its logits do not fit card.num_classes", hint=_REBUILD)
    return images, logits


def _refuse_compressed(archive: ZipFile, path: Path) -> None:
    """Raise ValueError where an archive unpacks to more than the file; ``numpy.savez`` stores arrays as they are."""
    if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
        raise ValueError("it is compressed")
