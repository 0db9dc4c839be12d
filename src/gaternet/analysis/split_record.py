"""One pass over a split: every image's gates, what it shows, and what the model took it for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from gaternet.analysis.record import GateRecord
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Batch, Images, Loading, evaluation_batches
from gaternet.data.settings import DataConfig
from gaternet.evaluation_mode import in_evaluation_mode
from gaternet.model import GatedModel
from gaternet.randomness import Purpose, sample_keys
from gaternet.training.processes import ALONE, Processes

EXTREMES = 8
"""Images that are kept for each gate, at either end."""


@dataclass(frozen=True)
class Extremes:
    """The images that open each gate with most certainty, and those that close it so.

    By the logit that the gate was made of: the gates are 0 or 1, and many images tie. Gates that
    are drawn at random do not follow from their logits.
    """

    opening: NDArray[np.int64]
    """(E, G): places in the split, the highest logit first; E is 8, or all images."""
    opening_logits: NDArray[np.float32]
    """(E, G)."""
    closing: NDArray[np.int64]
    """(E, G): places in the split, the lowest logit first."""
    closing_logits: NDArray[np.float32]
    """(E, G)."""


@dataclass(frozen=True)
class SplitRecord:
    """What is known of the N images of a split after one pass."""

    gates: GateRecord
    index: NDArray[np.int64]
    """(N,), each image's place in the split, ascending."""
    labels: NDArray[np.int64]
    """(N,)."""
    predictions: NDArray[np.int64]
    """(N,), the class that the model gave."""
    classes: tuple[str, ...]
    extremes: Extremes

    def __len__(self) -> int:
        return len(self.index)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image was classified rightly, (N,)."""
        return self.predictions == self.labels

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Images of each class, (K,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @cached_property
    def class_counts(self) -> NDArray[np.int32]:
        """For how many images of each class each gate is open, (K, G)."""
        counts = np.zeros((len(self.classes), self.gates.gate_count), dtype=np.int32)
        for label in np.unique(self.labels):
            rows = np.flatnonzero(self.labels == label)
            counts[label] = self.gates.take(rows).open_counts()
        return counts

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the images at those places; raise ValueError where one is missing."""
        rows = np.searchsorted(self.index, index)
        if not np.array_equal(self.index[np.minimum(rows, len(self) - 1)], index):
            raise ValueError("the record lacks some of these images")
        return rows


def labelled_batches(
    images: Images, data: DataConfig, loading: Loading, batch_size: int = 250
) -> Iterator[Batch]:
    """Yield every image exactly once over all ranks, as networks take them, with its label."""
    for index, pixels, labels in evaluation_batches(images, data, batch_size, loading):
        yield Batch(index, normalise(pixels, data.mean, data.std), labels)


@torch.inference_mode()
@in_evaluation_mode
def observe(
    model: GatedModel,
    batches: Iterable[Batch],
    classes: Sequence[str],
    processes: Processes = ALONE,
) -> SplitRecord:
    """Run the model on normalised images with their labels, each once, and record its gates.

    Gates and predictions are those of `training.evaluation.evaluate`. Of several processes each
    sees its own batches, and all return the whole. The model is put into evaluation mode and left
    as it was found.
    """
    device = next(model.parameters()).device
    rows: list[tuple[Tensor, ...]] = []
    highest = _Highest(model.gate_count, device)
    lowest = _Highest(model.gate_count, device)
    for batch in batches:
        index, images, labels = (part.to(device) for part in batch)
        keys = sample_keys(0, Purpose.NETWORK, 0, index)
        logits, decision = model.evaluate(images, None, keys)
        bits = torch.from_numpy(np.packbits((decision.gates > 0).cpu().numpy(), axis=1))
        rows.append((bits, index.cpu(), labels.cpu(), logits.argmax(dim=1).cpu()))
        highest.add(index, decision.logits)
        lowest.add(index, -decision.logits)
    width = -(-model.gate_count // 8)
    nothing = torch.empty(0, dtype=torch.int64)
    rows.append((torch.empty(0, width, dtype=torch.uint8), nothing, nothing, nothing))
    bits, index, labels, predictions = (
        _gathered(torch.cat(parts), processes) for parts in zip(*rows, strict=True)
    )
    order = torch.argsort(index)
    opening, opening_logits = highest.found(processes)
    closing, closing_logits = lowest.found(processes)
    return SplitRecord(
        GateRecord(bits[order].numpy(), model.slices),
        index[order].numpy(),
        labels[order].numpy(),
        predictions[order].numpy(),
        tuple(classes),
        Extremes(opening, opening_logits, closing, -closing_logits),
    )


class _Highest:
    """The images with each gate's highest values, over batches and then over processes."""

    def __init__(self, gates: int, device: torch.device) -> None:
        self.index = torch.empty(0, gates, dtype=torch.int64, device=device)
        self.values = torch.empty(0, gates, dtype=torch.float32, device=device)

    def add(self, index: Tensor, values: Tensor) -> None:
        """Take a batch's places (N,) and values (N, G)."""
        self._keep(index[:, None].expand(-1, values.shape[1]), values.float())

    def _keep(self, index: Tensor, values: Tensor) -> None:
        values = torch.cat((self.values, values))
        index = torch.cat((self.index, index))
        self.values, chosen = values.topk(min(EXTREMES, len(values)), dim=0)
        self.index = index.gather(0, chosen)

    def found(self, processes: Processes) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return places and values, (E, G) each, of all processes."""
        index = _gathered(self.index.cpu(), processes)
        values = _gathered(self.values.cpu(), processes)
        self.index, self.values = index[:0], values[:0]
        self._keep(index, values)
        return self.index.numpy(), self.values.numpy()


def _gathered(tensor: Tensor, processes: Processes) -> Tensor:
    """Return the rows of every process's `tensor`, on the CPU, in each of them."""
    if processes.count == 1:
        return tensor
    counts = torch.zeros(processes.count, dtype=torch.int64)
    counts[processes.rank] = len(tensor)
    dist.all_reduce(counts, group=processes.patient)
    parts = [
        tensor.contiguous() if rank == processes.rank else tensor.new_empty(n, *tensor.shape[1:])
        for rank, n in enumerate(counts.tolist())
    ]
    for rank, part in enumerate(parts):
        if len(part):
            dist.broadcast(part, src=rank, group=processes.patient)
    return torch.cat(parts)
