"""Does it matter which gates an image gets? The model with its gates swapped for others."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaternet.analysis.sampling import draw_keys, some_rows
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import opening_rates
from gaternet.data.batches import Batch
from gaternet.evaluation_mode import in_evaluation_mode
from gaternet.model import GatedModel
from gaternet.paired import paired_difference
from gaternet.training.processes import ALONE, Processes

OWN = "its own"
SAME_CLASS = "another image's, same class"
OTHER_CLASS = "an image's of another class"
MAJORITY = "open for most images"
MEAN = "mean of all images"

SWAPPED = 5_000
"""Images that are run under other gates at most, drawn at random: each is run five times."""


@dataclass(frozen=True)
class Swap:
    """How well the model does when each image gets other gates.

    gates: which
    images: those for which there are such gates
    accuracy: share of them that is classified rightly
    change: accuracy less that of the same images with their own gates
    interval: half the width of the change's 95 % interval
    followed: share that is given the class of the image whose gates it got; None: nobody's gates
    """

    gates: str
    images: int
    accuracy: float
    change: float
    interval: float
    followed: float | None = None


@dataclass(frozen=True)
class Donors:
    """Whose gates each image gets in place of its own: rows, (N,); −1 where there is none."""

    same_class: NDArray[np.int64]
    other_class: NDArray[np.int64]


def choose_donors(labels: NDArray[np.int64]) -> Donors:
    """Draw another image of the same class for each image, and one of another class."""
    count = len(labels)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    start, size = starts[labels], sizes[labels]

    def drawn(among: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
        return draw_keys(count, salt) * among >> 32

    # In the order of classes, the others are those behind, going round.
    same = start + (place - start + 1 + drawn(size - 1, 1)) % size
    other = (start + size + drawn(count - size, 2)) % count
    return Donors(np.where(size > 1, order[same], -1), np.where(size < count, order[other], -1))


@torch.inference_mode()
@in_evaluation_mode
def swap_gates(
    model: GatedModel,
    batches: Iterable[Batch],
    record: SplitRecord,
    processes: Processes = ALONE,
) -> list[Swap]:
    """Measure the model with each image's gates swapped for others' (a row each, `OWN` first).

    Takes the record's images, normalised, in any order; of more than 5,000 so many are run. Gates
    are taken as open or closed, but the mean ones, which are between. Of several processes each
    sees its own batches, and all return the whole. The model is put into evaluation mode and left
    as it was found.

    Raises ValueError where the record lacks an image or has another label for it.
    """
    device = next(model.parameters()).device
    donors = choose_donors(record.labels)
    rates = opening_rates(record.gates)
    chosen = np.isin(np.arange(len(record)), some_rows(len(record), SWAPPED))
    fixed = {
        MAJORITY: torch.from_numpy(rates > 0.5).to(device),
        MEAN: torch.from_numpy(rates).to(device),
    }
    sums = {name: torch.zeros(5, dtype=torch.float64, device=device) for name in (*_OTHERS, *fixed)}
    for batch in batches:
        index, images, labels = (part.to(device) for part in batch)
        rows = record.rows(index.cpu().numpy())
        if not np.array_equal(record.labels[rows], labels.cpu().numpy()):
            raise ValueError("the record has other labels for these images")
        drawn = torch.from_numpy(np.flatnonzero(chosen[rows])).to(device)
        rows, images, labels = rows[chosen[rows]], images[drawn], labels[drawn]
        if not len(rows):
            continue
        own = _classify(model, images, _gates(record, rows, device)) == labels
        sums[OWN] += _count(own, own, own)
        for name, donor in ((SAME_CLASS, donors.same_class), (OTHER_CLASS, donors.other_class)):
            kept = torch.from_numpy(np.flatnonzero(donor[rows] >= 0)).to(device)
            if len(kept):
                givers = donor[rows][kept.cpu().numpy()]
                found = _classify(model, images[kept], _gates(record, givers, device))
                theirs = torch.from_numpy(record.labels[givers]).to(device)
                sums[name] += _count(found == labels[kept], own[kept], found == theirs)
        for name, gates in fixed.items():
            right = _classify(model, images, gates.float()) == labels
            sums[name] += _count(right, own, torch.zeros_like(right))
    totals = {name: processes.total(tensor).tolist() for name, tensor in sums.items()}
    return [_swap(name, *total) for name, total in totals.items() if total[0]]


_OTHERS = (OWN, SAME_CLASS, OTHER_CLASS)


def _gates(record: SplitRecord, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(record.gates.take(rows).gates()).to(device).float()


def _classify(model: GatedModel, images: Tensor, gates: Tensor) -> Tensor:
    """Return the class that each image is given under `gates`, (N,) int64."""
    return model(images, gates=gates).logits.argmax(dim=1)


def _count(right: Tensor, own: Tensor, followed: Tensor) -> Tensor:
    """Return images, right ones, those that became right, that became wrong, that followed.

    right, own, followed: (N,) bool
    """
    counts = (torch.ones_like(right), right, right & ~own, own & ~right, followed)
    return torch.stack([count.sum(dtype=torch.float64) for count in counts])


def _swap(
    name: str, images: float, right: float, gained: float, lost: float, followed: float
) -> Swap:
    change = paired_difference(gained, lost, images)
    share = followed / images if name in _OTHERS else None
    return Swap(name, int(images), right / images, change.value, change.half_width, share)
