"""Multiply-accumulates over a set of images, layer by layer."""

from dataclasses import dataclass

import numpy as np
import torch

from gaternet.accounting import MacCounter
from gaternet.analysis.record import GateRecord

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


def report_macs(counter: MacCounter, record: GateRecord) -> MacReport:
    """Count what the images of a record need.

    Raises ValueError where the record has another number of gates than the counter's model.
    """
    if record.gate_count != counter.gate_count:
        raise ValueError(
            f"the record has {record.gate_count} gates, the counter's model {counter.gate_count}"
        )
    sums = torch.zeros(len(counter.layers), dtype=torch.float64)
    totals = []
    for start in range(0, len(record), BATCH):
        gates = torch.from_numpy(record.gates(start, start + BATCH)).double()
        needed = counter(gates)
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
