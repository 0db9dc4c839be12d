"""Random-resized crops: where they lie, as a function of counted draws, and how they are cut.

The distribution is that of Szegedy et al. (2015) as torchvision's RandomResizedCrop has it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ASPECTS = (3 / 4, 4 / 3)
"""Smallest and largest width / height of a crop."""

_TRIES = 10
BOX_DRAWS = 2 + 2 * _TRIES
"""Draws in [0, 1) that a box is made of: top, left, then area and aspect of every try."""


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(draws: Sequence[float], height: int, width: int, smallest_area: float) -> Box:
    """Return the crop that `BOX_DRAWS` draws stand for in an image of height × width pixels.

    Its area is uniform in [smallest_area, 1] of the image's, its aspect log-uniform in `ASPECTS`;
    of ten tries the first that fits is taken, or else the centre, as wide or high as it can be.
    """
    top, left, *tries = draws
    low, high = map(math.log, ASPECTS)
    for share, bend in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (smallest_area + share * (1 - smallest_area))
        aspect = math.exp(low + bend * (high - low))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            rows, columns = height - box_height + 1, width - box_width + 1
            return Box(int(top * rows), int(left * columns), box_height, box_width)
    box_height = min(height, round(width / ASPECTS[0]))
    box_width = min(width, round(height * ASPECTS[1]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def cut(image: Tensor, box: Box, size: int) -> Tensor:
    """Return the part of an image (C, H, W) uint8 in `box`, scaled to (C, size, size)."""
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width]
    if (height, width) == (size, size):
        return part[0]
    return scale(part, size)[0]


def scale(images: Tensor, size: int) -> Tensor:
    """Return images (N, C, H, W) uint8 scaled to (N, C, size, size)."""
    if images.device.type == "cpu":
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    # GPUs do not scale integers.
    scaled = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def random_resized_crops(images: Tensor, draws: Tensor, smallest_area: float) -> Tensor:
    """Return a crop of every image, scaled to the old size, (N, C, S, S) uint8.

    `draws` (N, `BOX_DRAWS`) float32 lie in [0, 1).
    """
    height, width = images.shape[2:]
    boxes = [random_box(row, height, width, smallest_area) for row in draws.tolist()]
    return torch.stack([cut(image, box, width) for image, box in zip(images, boxes, strict=True)])
