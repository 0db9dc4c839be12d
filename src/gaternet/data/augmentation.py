"""Random crops, mirroring and cutout as batched tensor operations on the images' own device.

Every image's draws follow from its key alone, so they do not depend on the batch that it is in.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gaternet.data.cropping import BOX_DRAWS, random_resized_crops
from gaternet.data.settings import Augmentation
from gaternet.randomness import uniform

_CUTOUT = slice(3, 5)
_TRIES = slice(5, 3 + BOX_DRAWS)
_COLUMNS = _TRIES.stop
"""Each draw has a column of its own, so switching one off leaves the others as they are: top, left,
mirror, cutout row, cutout column, and the tries of a random-resized crop."""


def draws_of(keys: Tensor) -> Tensor:
    """Return the draws that `augment` makes of keys (N,) int64: (N, M) float32 in [0, 1)."""
    return uniform(keys, _COLUMNS)


def box_draws(draws: Tensor) -> Tensor:
    """Return those of `draws_of` that place a random-resized crop, (N, BOX_DRAWS)."""
    return torch.cat((draws[:, :2], draws[:, _TRIES]), dim=1)


def augment(
    images: Tensor,
    keys: Tensor,
    augmentation: Augmentation,
    mean: Sequence[float] | None = None,
) -> Tensor:
    """Return randomly cropped, mirrored and blanked images, (N, C, H, W) uint8, like `images`.

    `keys` (N,) int64 come from `randomness.sample_keys`. The crop pads raw pixels with 0 (black),
    as torchvision's RandomCrop does before ToTensor: not with the mean. A random-resized crop is
    scaled to the old size. Cutout fills its square
    with `mean` (one value in [0, 1] for each channel) rounded to a pixel level: zero after
    `normalise`, within 0.5 / (255 · std). Raises ValueError where it has no mean.
    """
    draws = draws_of(keys)
    if augmentation.smallest_area:
        images = random_resized_crops(images, box_draws(draws), augmentation.smallest_area)
    padding = augmentation.crop_padding
    if padding or augmentation.mirror:
        offsets = (draws[:, :2] * (2 * padding + 1)).long()
        mirrored = (draws[:, 2] < 0.5) & augmentation.mirror
        images = crop(images, offsets, mirrored, padding)
    if augmentation.cutout:
        if mean is None:
            raise ValueError("cutout fills with the channels' means: give augment a mean")
        size = torch.tensor(images.shape[2:]).to(keys.device, non_blocking=True)
        centres = (draws[:, _CUTOUT] * size).long()
        images = cut_out(images, centres, augmentation.cutout, mean)
    return images


def crop(images: Tensor, offsets: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Return crops of the old size from images padded with black, (N, C, H, W) uint8.

    `offsets` (N, 2) int64 in [0, 2 · padding] are the crop's top and left; where `mirrored` (N,)
    bool holds, the crop is flipped left and right.
    """
    if not padding:
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4).flatten(2)  # (N, C, padded pixels)
    rows = offsets[:, :1] + torch.arange(height, device=images.device)  # (N, H)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + offsets[:, 1:]  # (N, W)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]  # (N, H, W)
    index = pixels.flatten(1)[:, None, :].expand(-1, images.shape[1], -1)
    return padded.gather(2, index).view(images.shape)


def cut_out(images: Tensor, centres: Tensor, size: int, mean: Sequence[float]) -> Tensor:
    """Return images with a square of `size` pixels filled with `mean` (DeVries and Taylor, 2017).

    `centres` (N, 2) int64 lie anywhere in the image, so the border may clip the square.
    """
    start = centres - size // 2
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        position = torch.arange(length, device=images.device) - start[:, axis, None]
        inside.append((position >= 0) & (position < size))
    blank = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (N, 1, H, W)
    levels = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)
    levels = levels.to(images.device, non_blocking=True)
    return torch.where(blank, levels[None, :, None, None], images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images / 255 − mean) / std, (N, C, H, W) float32, from uint8."""
    mean_, std_ = (torch.tensor(x)[:, None, None] for x in (mean, std))
    scale, shift = (
        x.to(images.device, non_blocking=True) for x in (1 / (255 * std_), mean_ / std_)
    )
    return images * scale - shift
