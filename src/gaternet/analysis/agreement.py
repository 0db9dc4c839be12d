"""Do gates do the same on other images? One split's gates beside another's."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gaternet.analysis.record import GateRecord
from gaternet.analysis.statistics import ALWAYS_OFF, ALWAYS_ON, DEPENDENT, gate_table, opening_rates


@dataclass(frozen=True)
class Agreement:
    """How far the opening rates of gates are apart between two sets of images.

    images: of the other set
    same_kind: gates that are always on, always off or input-dependent in both
    mean_difference: mean over gates of |rate − other rate|
    by_chance: what that mean would be, about, for two random samples of these sizes
    largest_difference: over gates
    correlation: of both rates over gates; None where all gates of a set have the same
    """

    images: int
    same_kind: int
    mean_difference: float
    by_chance: float
    largest_difference: float
    correlation: float | None


def compare_rates(record: GateRecord, other: GateRecord) -> Agreement:
    """Compare what the same gates do on two sets of images.

    Raises ValueError where the records are of other gates.
    """
    _check(record, other)
    rates, others = opening_rates(record), opening_rates(other)
    difference = np.abs(rates - others)
    pooled = (record.open_counts() + other.open_counts()) / (len(record) + len(other))
    spread = np.sqrt(pooled * (1 - pooled) * (1 / len(record) + 1 / len(other)))
    varies = rates.std() > 0 and others.std() > 0
    return Agreement(
        len(other),
        int(np.trace(compare_kinds(record, other).to_numpy())),
        float(difference.mean()),
        # The mean of |z| is √(2 / π) for a normal z.
        float(spread.mean()) * math.sqrt(2 / math.pi),
        float(difference.max()),
        float(np.corrcoef(rates, others)[0, 1]) if varies else None,
    )


def compare_kinds(record: GateRecord, other: GateRecord) -> pd.DataFrame:
    """Count gates by their kind on either set: rows are of `record`, columns of `other`."""
    _check(record, other)
    kind, kind_there = (gate_table(each)["kind"] for each in (record, other))
    names = [ALWAYS_ON, DEPENDENT, ALWAYS_OFF]
    return pd.crosstab(kind, kind_there).reindex(index=names, columns=names, fill_value=0)


def _check(record: GateRecord, other: GateRecord) -> None:
    if record.slices != other.slices:
        raise ValueError("the two records are of other gates")
