"""Every image's gates, stored as bits, and what follows from them layer by layer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaternet.evaluation_mode import in_evaluation_mode
from gaternet.model import GatedModel
from gaternet.randomness import Purpose, sample_keys

UNPACKED = 2**24
"""Gates that are unpacked at once: 64 MB as float32."""


@dataclass(frozen=True)
class LayerUse:
    """Gates of one gate point: how many never close, never open, or depend on the input."""

    name: str
    total: int
    always_on: int
    always_off: int

    @property
    def input_dependent(self) -> int:
        return self.total - self.always_on - self.always_off


@dataclass(frozen=True)
class GateRecord:
    """The gates of N images: one bit a gate, so 50,000 images × 47,872 gates take 300 MB.

    A bit is set where the gate lets anything through: a soft gate is off where it is exactly 0.
    """

    bits: NDArray[np.uint8]
    """(N, ⌈G / 8⌉), each row packed as by `numpy.packbits`."""
    slices: dict[str, slice]
    """Columns of each gate point."""

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def gate_count(self) -> int:
        """G; 0 of a plain network."""
        return max((columns.stop for columns in self.slices.values()), default=0)

    def gates(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return rows `start` to `stop` unpacked, (n, G) uint8, 0 or 1."""
        return np.unpackbits(self.bits[start:stop], axis=1, count=self.gate_count)

    def parts(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all rows unpacked, (n, G) uint8 each, as many at once as memory allows."""
        rows = max(1, UNPACKED // max(1, self.gate_count))
        for start in range(0, len(self), rows):
            yield self.gates(start, start + rows)

    def layer(self, name: str) -> NDArray[np.uint8]:
        """Return the gates of one gate point, (N, n) uint8."""
        columns = self.slices[name]
        first = columns.start // 8
        offset, width = columns.start - 8 * first, columns.stop - columns.start
        part = self.bits[:, first : -(-columns.stop // 8)]
        return np.unpackbits(part, axis=1, count=offset + width)[:, offset:]

    def take(self, rows: NDArray[np.int64]) -> "GateRecord":
        """Return the record of the images in those rows, in that order."""
        return GateRecord(self.bits[rows], self.slices)

    def open_counts(self) -> NDArray[np.int64]:
        """Return for how many images each gate is open, (G,)."""
        return self._open_counts.copy()

    @cached_property
    def _open_counts(self) -> NDArray[np.int64]:
        counts = np.zeros(self.gate_count, dtype=np.int64)
        for part in self.parts():
            counts += part.sum(axis=0, dtype=np.int64)
        return counts

    def open_per_image(self) -> NDArray[np.int64]:
        """Return how many gates each image opens, (N,)."""
        # Bits behind the last gate are 0: numpy.packbits fills up with zeros.
        return np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)

    def dependent(self) -> NDArray[np.int64]:
        """Return the columns of the input-dependent gates, (D,)."""
        counts = self._open_counts
        return np.flatnonzero((counts > 0) & (counts < len(self)))

    def layers(self) -> tuple[LayerUse, ...]:
        """Return the use of each gate point's gates, in the order of execution (Figures 2, 6)."""
        counts = self.open_counts()
        return tuple(
            LayerUse(
                name,
                columns.stop - columns.start,
                int((counts[columns] == len(self)).sum()),
                int((counts[columns] == 0).sum()),
            )
            for name, columns in self.slices.items()
        )


@torch.inference_mode()
@in_evaluation_mode
def collect(model: GatedModel, batches: Iterable[Tensor]) -> GateRecord:
    """Record evaluation's gates of normalised images (N, C, H, W), batch by batch.

    Of a GaterNet only the gater runs. Random gates are those that `training.evaluation.evaluate`
    draws for the same images in the same order. The model is put into evaluation mode and left as
    it was found.

    Raises ValueError where there is no image, TypeError for batches that are more than images.
    """
    device = next(model.parameters()).device
    rows: list[NDArray[np.uint8]] = []
    seen = 0
    for images in batches:
        if not isinstance(images, Tensor):
            raise TypeError(
                "batches are images alone, (N, C, H, W), not "
                f"{type(images).__name__}s: (images for images, _ in loader)"
            )
        index = torch.arange(seen, seen + len(images), device=device)
        keys = sample_keys(0, Purpose.NETWORK, 0, index)
        opened = model.decide(images.to(device), keys=keys).gates > 0
        rows.append(np.packbits(opened.cpu().numpy(), axis=1))
        seen += len(images)
    if not seen:
        raise ValueError("there are no images to record the gates of")
    return GateRecord(np.concatenate(rows), model.slices)
