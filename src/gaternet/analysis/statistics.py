"""What the gates do over a set of images: kinds, rates, open gates an image, entropy.

Entropies are in bits, of what was observed: p is the share of the images for which a gate is open.
"""

import math
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gaternet.analysis.record import GateRecord

ALWAYS_ON, DEPENDENT, ALWAYS_OFF = "always on", "input-dependent", "always off"


@dataclass(frozen=True)
class KindCounts:
    """How many gates never close, never open, or depend on the input.

    often: input-dependent gates that are open for 1 to 99 % of the images
    """

    total: int
    always_on: int
    always_off: int
    input_dependent: int
    often: int


@dataclass(frozen=True)
class OpenGates:
    """Open gates of an image, over all images (Figure 4), and how near to normal they are.

    deviation: standard deviation
    distance: Kolmogorov's: the largest gap between the distribution of the counts and the normal
        one with the same mean and deviation, rounded to whole numbers, 0 to 1; None where the
        deviation is 0
    """

    least: int
    mean: float
    most: int
    deviation: float
    distance: float | None


def opening_rates(record: GateRecord) -> NDArray[np.float64]:
    """Return for what share of the images each gate is open, (G,)."""
    return record.open_counts() / len(record)


def count_kinds(record: GateRecord) -> KindCounts:
    """Count the kinds of gates."""
    counts, images = record.open_counts(), len(record)
    dependent = (counts > 0) & (counts < images)
    often = (100 * counts >= images) & (100 * counts <= 99 * images)
    return KindCounts(
        total=len(counts),
        always_on=int((counts == images).sum()),
        always_off=int((counts == 0).sum()),
        input_dependent=int(dependent.sum()),
        often=int((dependent & often).sum()),
    )


def summarise_open_gates(record: GateRecord) -> OpenGates:
    """Summarise how many gates an image opens."""
    opened = record.open_per_image()
    mean, deviation = float(opened.mean()), float(opened.std())
    return OpenGates(int(opened.min()), mean, int(opened.max()), deviation, normal_distance(opened))


def normal_distance(values: NDArray[np.int64]) -> float | None:
    """Return the Kolmogorov distance of whole numbers (N,) from the normal distribution.

    max over k of |share of values ≤ k − Φ((k + ½ − mean) / deviation)|; None where all are equal.
    """
    deviation = float(values.std())
    if not deviation:
        return None
    found = np.cumsum(np.bincount(values - values.min())) / len(values)
    z = (np.arange(len(found)) + values.min() + 0.5 - values.mean()) / deviation
    normal = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in z])
    # Below the smallest value the share is 0.
    below = (1 + math.erf((z[0] - 1 / deviation) / math.sqrt(2))) / 2
    return max(float(np.abs(found - normal).max()), below)


def binary_entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return −p·log₂ p − (1 − p)·log₂(1 − p), same shape, in bits; 0 at 0 and at 1."""
    parts = (x * np.log2(x, where=x > 0, out=np.zeros_like(x)) for x in (p, 1 - p))
    return np.abs(sum(parts, np.zeros_like(p)))


def distinct_vectors(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each distinct row of packed bits (N, B) occurs, (V,), the commonest first.

    Rows are told apart by a digest of 128 bits.
    """
    counts = Counter(blake2b(row.tobytes(), digest_size=16).digest() for row in packed)
    return np.array(sorted(counts.values(), reverse=True), dtype=np.int64)


def gate_table(record: GateRecord) -> pd.DataFrame:
    """Return a row for each gate, in the order of columns.

    layer, number (in the layer), opened (images), rate, kind, entropy (bits).
    """
    counts = record.open_counts()
    rates = counts / len(record)
    kinds = np.select(
        [counts == len(record), counts == 0], [ALWAYS_ON, ALWAYS_OFF], default=DEPENDENT
    )
    widths = [columns.stop - columns.start for columns in record.slices.values()]
    return pd.DataFrame(
        {
            "layer": np.repeat(list(record.slices), widths),
            "number": np.concatenate([np.arange(width) for width in widths]),
            "opened": counts,
            "rate": rates,
            "kind": kinds,
            "entropy": binary_entropy(rates),
        }
    )


def layer_table(record: GateRecord) -> pd.DataFrame:
    """Return a row for each gate point, in the order of execution (Figures 2 and 6).

    layer, gates, always_on, always_off, input_dependent
    open: open gates of an image, mean
    entropy: mean of the gates' entropies, in bits
    distinct: different gate vectors of this layer that occur
    vector_entropy: entropy of those vectors in bits; at most log₂ of the number of images
    """
    rates = opening_rates(record)
    entropies = binary_entropy(rates)
    rows = []
    for use in record.layers():
        columns = record.slices[use.name]
        times = distinct_vectors(np.packbits(record.layer(use.name), axis=1))
        rows.append(
            {
                "layer": use.name,
                "gates": use.total,
                "always_on": use.always_on,
                "always_off": use.always_off,
                "input_dependent": use.input_dependent,
                "open": float(rates[columns].sum()),
                "entropy": float(entropies[columns].mean()),
                "distinct": len(times),
                "vector_entropy": _entropy(times / len(record)),
            }
        )
    return pd.DataFrame(rows)


def _entropy(shares: NDArray[np.float64]) -> float:
    return abs(float((shares * np.log2(shares)).sum()))
