"""What processes that work for this one are started with."""

import os
from pathlib import Path

import resnet_deploy


def child_environment() -> dict[str, str]:
    """Let the process find this very package, wherever it works."""
    package = str(Path(resnet_deploy.__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, path] if path else [package])}
