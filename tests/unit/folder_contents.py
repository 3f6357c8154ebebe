"""Folders written whole, and what is in them."""

from resnet_deploy import artifact


def write_folder(path, **files):
    """Write files of the given text into a folder that appears as a whole."""
    with artifact.atomic_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def content(folder):
    """Every file below ``folder``, hidden ones too, with its text."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def names(folder):
    """Everything directly in ``folder``, hidden or not."""
    return sorted(path.name for path in folder.iterdir())
