"""Images that are streamed from a hub while they are used, and never all on this machine."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING

import fsspec.asyn  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from gaternet.data.decoding import first_line
from gaternet.data.hub import open_stream, quiet
from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.data.loading import Decoder, Loading, Order, Part
from gaternet.data.readers import Columns, Row, choose_columns, make_row
from gaternet.data.settings import DataConfig
from gaternet.data.stacking import OnBadImage
from gaternet.errors import UserError
from gaternet.randomness import Purpose, permutation, sample_keys, uniform

if TYPE_CHECKING:
    import datasets

SHUFFLE_BUFFER = 1024
"""Undecoded images among which a worker draws the next one."""

_ROWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class HubStream:
    """A split on a hub, in shards that are read from beginning to end."""

    source: "datasets.IterableDataset"
    columns: Columns
    count: int
    name: str
    split: str
    fingerprint: str
    """First 16 hexadecimal digits of the SHA-256 of name, commit and split."""
    on_bad_image: OnBadImage = "stop"
    skipped: set[str] = field(default_factory=set)
    """Names of the images that training has left out so far."""

    def __len__(self) -> int:
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        return self.columns.classes

    @property
    def shards(self) -> int:
        return self.source.num_shards

    def take(self, index: Tensor) -> "HubStream":
        """Raise UserError: the images of a stream have no places."""
        raise UserError(
            f"{self.name} is streamed, so {len(index)} of its images cannot be held out: give "
            "--validation 0, or a folder that holds it"
        )

    def sample(self, size: int, data: DataConfig) -> ImageSet:
        """Return the first `size` images, cropped as for evaluation, as a set in memory."""
        rows = list(islice(self.rows(range(self.shards)), size))
        decoder = Decoder(data, self.split, self.classes, skip=self.on_bad_image == "skip")
        part = decoder.decode(range(len(rows)), rows)
        if part.fault:
            raise UserError(part.fault)
        self.skipped.update(part.bad)
        return make_image_set(part.images, torch.tensor(part.labels), self.classes, self.name)

    def rows(self, shards: Iterable[int]) -> Iterator[Row]:
        """Yield the images of some shards. Raises UserError where the hub does not give them."""
        for shard in shards:
            numbers = count()
            source = f"{self.name} (shard {shard})"
            batches = self.source.shard(self.shards, shard).iter(_ROWS_AT_ONCE)
            for batch in _checked(batches, source):
                images, labels = batch[self.columns.image], batch[self.columns.label]
                for image, label in zip(images, labels, strict=True):
                    yield make_row(image, label, source, next(numbers))


def open_hub(
    name: str, revision: str | None, split: str, classes: int | None, on_bad_image: OnBadImage
) -> HubStream:
    """Open a split of a data set on the hub; of several columns of labels that with `classes`.

    Raises UserError where it cannot be opened, or does not say what it holds.
    """
    import datasets

    source, size = open_stream(name, revision, split)
    columns = choose_columns(source.features or {}, name, classes)
    source = source.select_columns([columns.image, columns.label])
    source = source.cast_column(columns.image, datasets.Image(decode=False))
    digest = hashlib.sha256(f"{name}@{revision} {split}".encode()).hexdigest()
    short = name.rsplit("/", 1)[-1]
    return HubStream(source, columns, size, short, split, digest[:16], on_bad_image)


class StreamParts(IterableDataset[Part]):
    """A rank's parts of a stream, `size` images each; every worker reads shards of its own.

    For training (`decoder.order`) they are shuffled and go on for ever: where shards are unequal,
    one rank may be through before the others.
    """

    def __init__(self, images: HubStream, decoder: Decoder, size: int, loading: Loading) -> None:
        self.images, self.decoder, self.size = images, decoder, size
        self.rank, self.ranks = loading.rank, loading.ranks

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            fsspec.asyn.reset_lock()  # a forked process must not wait for its parent's threads
        # Ranks first: no rank is without shards while another has two.
        unit, units = number * self.ranks + self.rank, workers * self.ranks
        rows = enumerate(self._rows(number, workers))
        try:
            with quiet():
                while some := list(islice(rows, self.size)):
                    places = [at * units + unit for at, _ in some]
                    yield self.decoder.decode(places, [row for _, row in some])
        except UserError as error:
            yield Part([], torch.empty(0), [], [], str(error))

    def _rows(self, worker: int, workers: int) -> Iterator[Row]:
        images, order = self.images, self.decoder.order
        # With fewer shards than ranks, all ranks read them and each keeps its share of the images.
        apart = images.shards >= self.ranks
        first, step = worker, workers
        if apart:
            first, step = worker * self.ranks + self.rank, workers * self.ranks
        if order:
            mine = permutation(order.seed, order.epoch, images.shards)[first::step].tolist()
            rows = _endless(images, mine, order, first) if mine else iter(())
        else:
            rows = images.rows(range(images.shards)[first::step])
        return rows if apart else islice(rows, self.rank, None, self.ranks)


def _endless(images: HubStream, shards: Sequence[int], order: Order, unit: int) -> Iterator[Row]:
    """Yield the images of some shards again and again, in a new order each time.

    It follows from (seed, epoch, unit). Raises UserError where the shards are empty.
    """
    for number in count():
        place = torch.tensor([(number << 16) + unit])
        seed = int(sample_keys(order.seed, Purpose.ORDER, order.epoch, place))
        rows = _shuffled(images.rows(shards), seed)
        first = next(rows, None)
        if first is None:
            raise UserError(f"{images.name}: its shards {shards} hold no images")
        yield first
        yield from rows


def _shuffled(rows: Iterable[Row], seed: int) -> Iterator[Row]:
    """Yield rows in an order that follows from the seed: the next one is drawn from a buffer."""
    draws = _draws(seed)
    waiting: list[Row] = []
    for row in rows:
        if len(waiting) < SHUFFLE_BUFFER:
            waiting.append(row)
            continue
        chosen = int(next(draws) * SHUFFLE_BUFFER)
        yield waiting[chosen]
        waiting[chosen] = row
    while waiting:
        chosen = int(next(draws) * len(waiting))
        waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
        yield waiting.pop()


def _draws(seed: int) -> Iterator[float]:
    for start in count(step=SHUFFLE_BUFFER):
        keys = sample_keys(seed, Purpose.ORDER, 0, start + torch.arange(SHUFFLE_BUFFER))
        yield from uniform(keys, 1)[:, 0].tolist()


def _checked(batches: Iterable[dict], source: str) -> Iterator[dict]:
    found = iter(batches)
    while True:
        try:
            batch = next(found)
        except StopIteration:
            return
        except Exception as error:  # the network, or a broken file
            raise UserError(f"{source} cannot be read from the hub ({first_line(error)})") from None
        yield batch
