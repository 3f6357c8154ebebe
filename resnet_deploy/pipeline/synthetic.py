"""Stand-in images, for where there are none: to time engines, and to try what needs no accuracy."""

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from resnet_deploy.specs import Preprocess

if TYPE_CHECKING:
    from resnet_deploy.protocols import Array


def synthetic_images(preprocess: Preprocess, count: int, *, seed: int = 0) -> "Array":
    """Make contract tensors from smooth colour noise, (count, *preprocess.shape).

    Neighbouring pixels resemble each other as in photographs: independent ones would average out to grey in the first
    layers and leave nothing to compare. The pictures have the size of the crop, so that none is larger than what
    becomes of it, however large the resize.
    """
    from PIL import Image

    from resnet_deploy.images import preprocess_image

    generator = np.random.default_rng(seed)
    side = preprocess.image_size
    contract = msgspec.structs.replace(preprocess, resize=side)
    batch = np.empty((count, *contract.shape), contract.dtype)
    for row, pixels in zip(batch, generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), strict=True):
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        row[...] = preprocess_image(picture, contract)
    return batch
