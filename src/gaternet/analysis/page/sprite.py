"""All images of a page in one picture, tile beside tile."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST_TILE = 224
PIXELS = 24_000_000
"""Of the whole picture: decoded, a browser holds 4 bytes for each."""
QUALITY = 80
"""Of WebP; CIFAR's 10,000 test images take 2.9 MB."""


@dataclass(frozen=True)
class Sprite:
    """A WebP file and where the images are in it: row by row, `columns` tiles in each."""

    data: bytes
    columns: int
    width: int
    height: int


def make_sprite(images: NDArray[np.uint8]) -> Sprite:
    """Return images (N, H, W, 3) in one picture, made smaller where it would be too large."""
    count, height, width, _ = images.shape
    height, width = tile_size(height, width, count)
    columns = max(1, round((count * height / width) ** 0.5))
    sheet = np.full((-(-count // columns) * height, columns * width, 3), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        if image.shape[:2] != (height, width):
            small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
            image = np.asarray(small)
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = image
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", quality=QUALITY)
    return Sprite(file.getvalue(), columns, width, height)


def tile_size(height: int, width: int, count: int) -> tuple[int, int]:
    """Return height and width of the largest tile of an image's proportions that fits."""
    scale = min(1.0, LARGEST_TILE / max(height, width), (PIXELS / (count * height * width)) ** 0.5)
    return max(1, int(height * scale)), max(1, int(width * scale))
