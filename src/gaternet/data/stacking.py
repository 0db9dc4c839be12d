"""From rows of undecoded images to one tensor."""

import torch
from torch import Tensor

from gaternet.data.cache import Decoded
from gaternet.data.decoding import decode, resize, to_channels
from gaternet.data.readers import Reader, Row
from gaternet.errors import UserError

_MAX_BYTES = 4 * 2**30  # while they are stacked, images take twice this


def stack(reader: Reader, channels: int | None, image_size: int | None) -> Decoded:
    """Decode every row into images (N, C, H, W) uint8 and labels (N,) int64.

    With `channels` None, C is 1 where every image is grey and 3 otherwise; with an `image_size`
    each image is scaled and cut to it. Raises UserError, naming the row, where an image is corrupt
    or differs in size from the first, or a label is missing; and where memory would not do.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    size = 0
    for row in reader.rows:
        image = _decode(row, channels, image_size)
        if images and image.shape[1:] != images[0].shape[1:]:
            here, there = (f"{x.shape[1]}×{x.shape[2]}" for x in (image, images[0]))
            raise UserError(
                f"{row.origin} has {here} pixels, and images before it have {there}: held in "
                "memory they must have one size; give an image_size to scale them to"
            )
        images.append(image)
        labels.append(_label(row, reader.classes))
        size += image.shape[1] * image.shape[2] * (channels or 3)
        if size > _MAX_BYTES:
            raise UserError(
                f"{row.source}: its images take more than {_MAX_BYTES >> 30} GiB of memory; give a "
                "smaller image_size"
            )
    if not images:
        raise UserError(f"{reader.source} holds no images in this split: give other data")
    channels = channels or max(len(image) for image in images)
    stacked = torch.stack([to_channels(image, channels) for image in images])
    return stacked, torch.tensor(labels), reader.classes


def _decode(row: Row, channels: int | None, image_size: int | None) -> Tensor:
    if row.content is None:
        raise UserError(f"{row.origin} holds no image: remove it")
    try:
        image = decode(row.content)
    except ValueError as error:
        raise UserError(f"{row.origin} {error}") from None
    if image_size:
        image = resize(image, image_size)
    return to_channels(image, channels) if channels == 1 else image


def _label(row: Row, classes: tuple[str, ...]) -> int:
    if row.label is None or not 0 <= row.label < len(classes):
        raise UserError(
            f"{row.origin} has label {row.label}: labels go from 0 to {len(classes) - 1}; "
            "a split without labels cannot be used"
        )
    return row.label
