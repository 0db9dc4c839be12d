"""Records of gates that were not decided by any network, with known answers."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaternet.analysis import GateRecord
from gaternet.analysis.split_record import Extremes, SplitRecord


def gates_of(rows: ArrayLike, widths: tuple[int, ...] = ()) -> GateRecord:
    """Return a record of gates (N, G), 0 or 1, in layers of those widths; none: one layer."""
    gates = np.asarray(rows, dtype=np.uint8)
    slices, start = {}, 0
    for number, width in enumerate(widths or (gates.shape[1],)):
        slices[f"layer{number}"] = slice(start, start + width)
        start += width
    assert start == gates.shape[1]
    return GateRecord(np.packbits(gates, axis=1), slices)


def record_of(
    rows: ArrayLike,
    labels: ArrayLike,
    predictions: ArrayLike | None = None,
    widths: tuple[int, ...] = (),
    classes: int | None = None,
) -> SplitRecord:
    """Return a split's record; without predictions every image is classified rightly."""
    gates = gates_of(rows, widths)
    given = np.asarray(labels, dtype=np.int64)
    said = given if predictions is None else np.asarray(predictions, dtype=np.int64)
    nothing = np.empty((0, gates.gate_count))
    places, logits = nothing.astype(np.int64), nothing.astype(np.float32)
    names = tuple(f"class {number}" for number in range(classes or int(given.max()) + 1))
    extremes = Extremes(places, logits, places, logits)
    return SplitRecord(gates, np.arange(len(given)), given, said, names, extremes)


def random_gates(images: int, gates: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return gates that open at rates of their own, (N, G): the first never, the last always."""
    generator = np.random.default_rng(seed)
    rates = np.linspace(0, 1, gates)
    return (generator.random((images, gates)) < rates).astype(np.uint8)
