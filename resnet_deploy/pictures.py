"""What can be decoded and preprocessed: paths and Pillow images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard

from resnet_deploy.errors import FeedError

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture: TypeAlias = str | Path | Image

_ACCEPTED: Final = "give paths or Pillow images, or one NumPy array of prepared images (numpy.stack, tensor.numpy())"


def is_picture(value: object) -> "TypeGuard[Picture]":
    """Whether ``value`` is a path or a Pillow image."""
    from PIL.Image import Image

    return isinstance(value, (str, Path, Image))


def pictures_of(images: Any) -> "list[Path | Image]":
    """Hold ``images`` against what can be decoded and preprocessed.

    Arrays in a list are refused, not guessed at: prepared ones would be resized and cropped once more, others have to
    be, and nothing tells them apart.

    Raises:
        FeedError: If one is neither a path nor a Pillow image, or ``images`` is no sequence.
    """
    from PIL.Image import Image

    if is_picture(images):
        what = "image" if isinstance(images, Image) else "path"
        raise FeedError(f"one {what} where a sequence is expected", hint=f"write engine([{what}])")
    try:
        listed = list(images)
    except (TypeError, NotImplementedError):  # the latter of a memoryview with several axes
        raise FeedError(f"{type_name(images)} where images are expected", hint=_ACCEPTED) from None
    for position, image in enumerate(listed):
        if not is_picture(image):
            raise FeedError(f"image {position} is of type {type_name(image)}", hint=_ACCEPTED)
    return [Path(image) if isinstance(image, str) else image for image in listed]


def type_name(value: object) -> str:
    """Name a value's type as Python code would."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
