"""Batches on the device: of images that lie there as one tensor, stay on disk, or are streamed."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from gaternet.data.augmentation import augment, normalise
from gaternet.data.image_files import ImageFiles
from gaternet.data.image_set import ImageSet
from gaternet.data.loading import Decoder, FileParts, Loading, Order, Part, load_parts
from gaternet.data.settings import DataConfig
from gaternet.data.streams import HubStream, StreamParts
from gaternet.errors import UserError
from gaternet.randomness import Purpose, permutation, sample_keys

__all__ = [
    "Batch",
    "Images",
    "Loading",
    "Order",
    "evaluation_batches",
    "normalised_batches",
    "training_batches",
]

Images = ImageSet | ImageFiles | HubStream


class Batch(NamedTuple):
    """Some images of a set, all on one device."""

    indices: Tensor  # (N,) int64, each image's place in the set
    images: Tensor  # (N, C, H, W) uint8, float32 once normalised
    labels: Tensor  # (N,) int64


def training_batches(
    images: Images, order: Order, loading: Loading, first: int = 0
) -> Iterator[Batch]:
    """Yield an epoch's augmented batches from the `first` one on: this rank's part of each.

    Which images and in what order follows from (seed, epoch) alone, each one's augmentation from
    (seed, epoch, its place) alone; rank r has the r-th of `ranks` equal parts of a batch. (Of a
    stream, order and places depend on the numbers of ranks and workers too.) The ragged end is
    dropped. A batch is smaller only where bad images are left out, which are added to
    `images.skipped`. Raises ValueError where the set does not fill one batch or ranks do not divide
    it; UserError, naming the image, where one is bad.
    """
    count, size = len(images), order.batch_size
    if not 0 < size <= count:
        raise ValueError(f"batch size {size} does not fit a set of {count} images")
    if size % loading.ranks:
        raise ValueError(f"batch size {size} cannot be divided by {loading.ranks} ranks")
    augmentation = order.augmentation
    if isinstance(images, ImageSet):
        places = _places(count, order, loading, first)
        batches = _from_memory(images.to(loading.device), places, loading.device)
    else:
        batches = _from_disk(images, order, loading, first)
        augmentation = replace(augmentation, smallest_area=0.0)  # cut while decoding
    for index, pixels, labels in batches:
        keys = sample_keys(order.seed, Purpose.AUGMENTATION, order.epoch, index)
        yield Batch(index, augment(pixels, keys, augmentation, order.data.mean), labels)


def evaluation_batches(
    images: Images, data: DataConfig, batch_size: int, loading: Loading
) -> Iterator[Batch]:
    """Yield every image exactly once over all ranks; the last batch may be smaller.

    Each rank has a contiguous part of the set, in its order; of a stream, whole shards where there
    are enough. Images from disk are scaled and their centre is cut. Raises UserError, naming the
    image, where one is bad: only of a training split may bad images be left out.
    """
    if isinstance(images, ImageSet):
        share = _share(len(images), loading).split(batch_size)
        yield from _from_memory(images, share, loading.device)
        return
    decoder = Decoder(data, images.split, images.classes, skip=images.on_bad_image == "skip")
    if isinstance(images, HubStream):
        parts = load_parts(StreamParts(images, decoder, batch_size, loading), loading)
    else:
        places = _share(len(images), loading).split(batch_size)
        parts = load_parts(FileParts(images, decoder), loading, map(Tensor.tolist, places))
    for part in parts:
        images.skipped.update(part.bad)
        if part.places:
            yield _on_device(part, loading.device)


def normalised_batches(
    images: Images, config: DataConfig, device: torch.device | str, batch_size: int = 500
) -> Iterator[Tensor]:
    """Yield every image exactly once as networks take them, (N, C, H, W) float32."""
    loading = Loading(torch.device(device))
    for batch in evaluation_batches(images, config, batch_size, loading):
        yield normalise(batch.images, config.mean, config.std)


def spread(images: Images, count: int) -> Images:
    """Return at most `count` images from all over a set: in a folder, one class follows the other.

    Of a stream, which has no places, all.
    """
    if isinstance(images, HubStream) or len(images) <= count:
        return images
    return images.take(torch.linspace(0, len(images) - 1, count).long())


def first_images(batches: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Yield batches, (n, C, H, W) each, until so many images have come."""
    for batch in batches:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def _places(count: int, order: Order, loading: Loading, first: int) -> Iterator[Tensor]:
    """Yield this rank's part of the batches, as places in a set of `count` images."""
    size, share = order.batch_size, order.batch_size // loading.ranks
    places = permutation(order.seed, order.epoch, count)[: count - count % size]
    for start in range(first * size, len(places), size):
        yield places[start + loading.rank * share :][:share]


def _share(count: int, loading: Loading) -> Tensor:
    """Return this rank's contiguous part of 0 … count − 1."""
    rank, ranks = loading.rank, loading.ranks
    return torch.arange(rank * count // ranks, (rank + 1) * count // ranks)


def _from_memory(
    images: ImageSet, places: Iterable[Tensor], device: torch.device
) -> Iterator[Batch]:
    for index in places:
        # Without waiting for the step that a GPU may be taking.
        index = index.to(images.images.device, non_blocking=True)
        pixels, labels = (x.index_select(0, index) for x in (images.images, images.labels))
        yield Batch(*(x.to(device, non_blocking=True) for x in (index, pixels, labels)))


def _from_disk(
    images: ImageFiles | HubStream, order: Order, loading: Loading, first: int
) -> Iterator[Batch]:
    decoder = Decoder(
        order.data, images.split, images.classes, order, images.on_bad_image == "skip"
    )
    parts: Iterator[Part]
    if isinstance(images, HubStream):
        stream = StreamParts(images, decoder, order.batch_size // loading.ranks, loading)
        # A stream has no places to begin at: what comes first is read again.
        parts = islice(load_parts(stream, loading), first, len(images) // order.batch_size)
    else:
        places = _places(len(images), order, loading, first)
        parts = load_parts(FileParts(images, decoder), loading, map(Tensor.tolist, places))
    for part in parts:
        images.skipped.update(part.bad)
        if part.bad and len(part.places) < 2:  # BatchNorm needs two
            raise UserError(
                f"fewer than two images of a batch can be read, {part.bad[0]} cannot: replace them"
            )
        yield _on_device(part, loading.device)


def _on_device(part: Part, device: torch.device) -> Batch:
    index, labels = torch.tensor(part.places), torch.tensor(part.labels)
    return Batch(*(x.to(device, non_blocking=True) for x in (index, part.images, labels)))
