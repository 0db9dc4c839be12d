"""From rows of undecoded images to one tensor."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gaternet.data.cache import Decoded
from gaternet.data.decoding import decode, resize, to_channels
from gaternet.data.readers import Reader, Row, check_label
from gaternet.errors import UserError

OnBadImage = Literal["stop", "skip"]
"""What training does with an image that cannot be decoded, or that has no label: stop with an
error that names it, or leave it out and count it."""

_MAX_BYTES = 4 * 2**30  # while they are stacked, images take twice this


@dataclass(frozen=True)
class Wanted:
    """Which images, and in what form; None: as the data has it."""

    split: str
    classes: int | None
    channels: int | None
    image_size: int | None
    shorter_side: int | None
    on_bad_image: OnBadImage


def stack(reader: Reader, wanted: Wanted) -> Decoded:
    """Decode every row into images (N, C, H, W) uint8 and labels (N,) int64.

    With `channels` None, C is 1 where every image is grey and 3 otherwise; with an `image_size`
    each image is scaled and cut to it. Raises UserError, naming the row, where an image differs in
    size from the first, or, unless such images are to be skipped, where one is corrupt or has no
    label; and where memory would not do.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    skipped: list[str] = []
    size = 0
    for row in reader.rows:
        try:
            image, label = _decode(row, wanted), check_label(row.label, reader.classes)
        except ValueError as error:
            if wanted.on_bad_image == "stop":
                hint = ", or train with --on-bad-image skip" if wanted.split == "train" else ""
                raise UserError(f"{row.origin} {error}{hint} (split {wanted.split})") from None
            skipped.append(row.origin)
            continue
        if images and image.shape[1:] != images[0].shape[1:]:
            here, there = (f"{x.shape[1]}×{x.shape[2]}" for x in (image, images[0]))
            raise UserError(
                f"{row.origin} has {here} pixels, and images before it have {there}: held in "
                "memory they must have one size; give an image_size to scale them to"
            )
        images.append(image)
        labels.append(label)
        size += image.shape[1] * image.shape[2] * (wanted.channels or 3)
        if size > _MAX_BYTES:
            raise UserError(
                f"{row.source}: its images take more than {_MAX_BYTES >> 30} GiB of memory; give "
                "fewer images or, in Python, a smaller image_size"
            )
    if not images:
        left_out = f" but {len(skipped)} bad ones" if skipped else ""
        raise UserError(f"{reader.source} holds no images in this split{left_out}: give other data")
    channels = wanted.channels or max(len(image) for image in images)
    stacked = torch.stack([to_channels(image, channels) for image in images])
    return Decoded(stacked, torch.tensor(labels), reader.classes, tuple(skipped))


def _decode(row: Row, wanted: Wanted) -> Tensor:
    image = decode(row.undecoded())
    if wanted.image_size:
        image = resize(image, wanted.image_size, wanted.shorter_side)
    return to_channels(image, 1) if wanted.channels == 1 else image
