"""Images from disk to the device: worker processes decode and crop, batch by batch."""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gaternet.data.augmentation import box_draws, draws_of
from gaternet.data.cropping import random_box
from gaternet.data.decoding import decode, decode_crop, first_line, resize, to_channels
from gaternet.data.image_files import ImageFiles
from gaternet.data.readers import Row, check_label
from gaternet.data.settings import Augmentation, DataConfig
from gaternet.data.workers import ending, prepare_worker, starting
from gaternet.errors import UserError
from gaternet.randomness import Purpose, sample_keys

WORKER_TIMEOUT = 300
"""Seconds that a batch may take before its worker counts as hanging."""

LOOK_EVERY = 1
"""Seconds of waiting for a batch after which it is looked whether all workers live."""


@dataclass(frozen=True)
class Loading:
    """How batches reach this process, one of `ranks` that share the work."""

    device: torch.device
    rank: int = 0
    ranks: int = 1
    workers: int = 0
    """Processes that decode images from disk; 0: this one does."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} is not one of {self.ranks}, counted from 0")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: it must not be negative")


@dataclass(frozen=True)
class Order:
    """What an epoch's training batches follow from, whatever processes make them."""

    seed: int
    epoch: int
    batch_size: int
    """Of all ranks together."""
    augmentation: Augmentation
    data: DataConfig


class Part(NamedTuple):
    """What comes out of decoding some images."""

    places: list[int]
    images: Tensor  # (N, C, H, W) uint8
    labels: list[int]
    bad: list[str]
    """Names of the images that were left out."""
    fault: str | None = None
    """Why there is no such part: an error would lose its one line on the way from a worker."""


@dataclass(frozen=True)
class Decoder:
    """Decodes and crops images of a split: at random for training, the centre for evaluation."""

    data: DataConfig
    split: str
    classes: tuple[str, ...]
    order: Order | None = None
    """None: for evaluation."""
    skip: bool = False
    """Leave bad images out."""

    def decode(self, places: Sequence[int], rows: Iterable[Row]) -> Part:
        """Return rows as one batch; `places` decide on the random crops."""
        size = self.data.image_size
        images = torch.empty(len(places), self.data.channels, size, size, dtype=torch.uint8)
        kept: list[int] = []
        labels: list[int] = []
        bad: list[str] = []
        for place, draws, row in zip(places, self._draws(places), rows, strict=True):
            try:
                label = check_label(row.label, self.classes)
                images[len(kept)] = self._pixels(row, draws)
            except ValueError as error:
                if not self.skip:
                    return Part([], images[:0], [], [], self._fault(row, error))
                bad.append(row.origin)
                continue
            except UserError as error:
                return Part([], images[:0], [], [], str(error))
            kept.append(place)
            labels.append(label)
        return Part(kept, images[: len(kept)], labels, bad)

    def _draws(self, places: Sequence[int]) -> Sequence[Sequence[float] | None]:
        if self.order is None or not self.order.augmentation.smallest_area:
            return [None] * len(places)
        index = torch.tensor(places)
        keys = sample_keys(self.order.seed, Purpose.AUGMENTATION, self.order.epoch, index)
        return box_draws(draws_of(keys)).tolist()

    def _pixels(self, row: Row, draws: Sequence[float] | None) -> Tensor:
        content, size = row.undecoded(), self.data.image_size
        if draws is None or self.order is None:
            image = resize(decode(content), size, self.data.shorter_side)
        else:
            area = self.order.augmentation.smallest_area
            image = decode_crop(content, lambda h, w: random_box(draws, h, w, area), size)
        return to_channels(image, self.data.channels)

    def _fault(self, row: Row, error: ValueError) -> str:
        hint = ", or leave such images out with --on-bad-image skip" if self.order else ""
        return f"{row.origin} {error}{hint} (split {self.split})"


class FileParts(Dataset[Part]):
    """Parts of a set on disk, each asked for by the places of its images."""

    def __init__(self, images: ImageFiles, decoder: Decoder) -> None:
        self.images, self.decoder = images, decoder

    def __getitem__(self, places: list[int]) -> Part:
        return self.decoder.decode(places, map(self.images.row, places))


def load_parts(
    parts: FileParts | IterableDataset[Part],
    loading: Loading,
    batches: Iterable[list[int]] | None = None,
) -> Iterator[Part]:
    """Yield the parts that `batches` ask for, in that order; of a stream, all that come.

    Workers are a few batches ahead, and end with the iterator. Raises UserError with what a worker
    found wrong, or where one has died or hangs.
    """
    with ending() as workers:
        found = _start(parts, loading, batches, workers)
        try:
            while (part := _next(found, WORKER_TIMEOUT)) is not None:
                if part.fault:
                    raise UserError(part.fault)
                yield part
        finally:
            # The last reference: the workers are told to end, and waited for.
            del found


def _start(
    parts: FileParts | IterableDataset[Part],
    loading: Loading,
    batches: Iterable[list[int]] | None,
    workers: list[BaseProcess],
) -> Iterator[Part]:
    with warnings.catch_warnings(), starting(workers):
        # How many workers there are is the user's choice, and that they are forked is torch's.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")
        loader = DataLoader(
            parts,
            batch_size=None,
            sampler=batches,
            num_workers=loading.workers,
            pin_memory=loading.device.type == "cuda",
            timeout=LOOK_EVERY if loading.workers else 0,
            worker_init_fn=prepare_worker,
            # The loader draws from its generator: not from that which everybody shares.
            generator=torch.Generator(),
        )
        return iter(loader)


def _next(parts: Iterator[Part], timeout: float) -> Part | None:
    """Return the next part, None at the end; of a worker that has died or hangs, the fault.

    The fault is returned, since an error would keep the iterator, and so the workers, alive.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return next(parts, None)
        except _HANDING_OVER as error:
            if str(error).startswith("Caught "):
                raise  # from within a worker, which lives
            dead = None  # as it handed a batch over, and torch does not see it dead yet
        except RuntimeError as error:
            if not str(error).startswith("DataLoader "):
                raise
            dead = None if "timed out" in str(error) else first_line(error)
        if dead or time.monotonic() > deadline:
            what = f"has died ({dead})" if dead else f"hangs: no batch for {timeout:g} seconds"
            return Part(
                [], torch.empty(0), [], [], f"a process that decodes images {what}. {_HINT}"
            )


_HANDING_OVER = (EOFError, ConnectionError, FileNotFoundError)
"""What the socket raises through which the tensors of a worker come when the worker has gone."""

_HINT = (
    "It may have run out of memory, or of shared memory (/dev/shm): give fewer --compute.workers; "
    "or its disk does not answer. A training run goes on with --resume"
)
