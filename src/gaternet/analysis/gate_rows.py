"""Every gate in a row of text, with the images that most open or close it."""

import numpy as np
from numpy.typing import NDArray

from gaternet.analysis.derived import Derived
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import gate_table


def gates_csv(record: SplitRecord, derived: Derived) -> str:
    """Return `gate_table` as CSV, and with each gate what it tells of the class, in bits.

    most_open, most_closed: places in the split of the 8 images with the highest and the lowest
    logits, the most certain one first
    """
    table = gate_table(record.gates)
    table.insert(0, "gate", np.arange(len(table)))
    table["information"] = derived.information
    table["most_open"] = _places(record.extremes.opening)
    table["most_closed"] = _places(record.extremes.closing)
    text: str = table.to_csv(index=False, float_format="%.6g")
    return text


def _places(index: NDArray[np.int64]) -> list[str]:
    return [" ".join(map(str, places)) for places in index.T.tolist()]
