"""Multiply-accumulates over a set of images, layer by layer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaternet.accounting import MacCounter
from gaternet.analysis.record import GateRecord
from gaternet.analysis.split_record import SplitRecord
from gaternet.paired import NORMAL

BATCH = 256


@dataclass(frozen=True)
class LayerNeed:
    """One layer's multiply-accumulates per image: with every gate open, and the mean needed."""

    name: str
    dense: int
    mean: float


@dataclass(frozen=True)
class MacReport:
    """Multiply-accumulates per image, who decides included, over a set of images.

    backbone: of the plain backbone
    deciding: of the gater, or of the local heads; they are part of `mean`, `median` and `p95`
    layers: the backbone's in the order of execution, then those of who decides
    uncounted: operations that cost something and are in none of the figures
    """

    images: int
    backbone: int
    deciding: int
    mean: float
    median: float
    p95: float
    layers: tuple[LayerNeed, ...]
    uncounted: dict[str, int]

    @property
    def share(self) -> float:
        """The mean as a share of the plain backbone's; 1 less it is what is saved."""
        return self.mean / self.backbone


@dataclass(frozen=True)
class CostByOutcome:
    """Multiply-accumulates of images that were classified rightly, and of the others, mean each.

    difference: wrong less right; above 0, images that are hard cost more
    interval: half the width of the difference's 95 % interval (Welch)

    None where there are fewer than two images of either.
    """

    right: float | None
    wrong: float | None
    difference: float | None
    interval: float | None


def report_macs(counter: MacCounter, record: GateRecord) -> MacReport:
    """Count what the images of a record need.

    Raises ValueError where the record has another number of gates than the counter's model.
    """
    sums = torch.zeros(len(counter.layers), dtype=torch.float64)
    totals = []
    for needed in _counted(counter, record):
        sums += needed.sum(dim=0)
        totals.append(needed.sum(dim=1))
    each = torch.cat(totals).numpy()
    means = (sums / len(record)).tolist()
    return MacReport(
        images=len(record),
        backbone=counter.backbone_macs,
        deciding=counter.deciding_macs,
        mean=float(each.mean()),
        median=float(np.median(each)),
        p95=float(np.percentile(each, 95)),
        layers=tuple(
            LayerNeed(layer.name, layer.dense, mean)
            for layer, mean in zip(counter.layers, means, strict=True)
        ),
        uncounted=counter.uncounted,
    )


def needed_macs(counter: MacCounter, record: GateRecord) -> NDArray[np.float64]:
    """Return what each image needs, who decides included, (N,).

    Raises ValueError where the record has another number of gates than the counter's model.
    """
    return torch.cat([needed.sum(dim=1) for needed in _counted(counter, record)]).numpy()


def compare_costs(record: SplitRecord, macs: NDArray[np.float64]) -> CostByOutcome:
    """Compare what images need, (N,), between those classified rightly and the others."""
    right, wrong = macs[record.right], macs[~record.right]
    if min(len(right), len(wrong)) < 2:
        return CostByOutcome(None, None, None, None)
    spread = math.sqrt(right.var(ddof=1) / len(right) + wrong.var(ddof=1) / len(wrong))
    difference = float(wrong.mean() - right.mean())
    return CostByOutcome(float(right.mean()), float(wrong.mean()), difference, NORMAL * spread)


def _counted(counter: MacCounter, record: GateRecord) -> Iterator[Tensor]:
    """Yield what some images need in each layer, (n, L) float64."""
    if record.gate_count != counter.gate_count:
        raise ValueError(
            f"the record has {record.gate_count} gates, the counter's model {counter.gate_count}"
        )
    for start in range(0, len(record), BATCH):
        yield counter(torch.from_numpy(record.gates(start, start + BATCH)).double())
