"""What numbers, figures and page are all made of, worked out once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaternet.accounting import MacCounter
from gaternet.analysis.classes import class_agreement, mutual_information
from gaternet.analysis.macs import needed_macs
from gaternet.analysis.missing import COMPARED_CLASSES
from gaternet.analysis.split_record import SplitRecord


@dataclass(frozen=True, eq=False)
class Derived:
    """Arrays that follow from a record."""

    macs: NDArray[np.float64]
    """(N,), multiply-accumulates that each image needs, who decides included."""
    information: NDArray[np.float64]
    """(G,), what each gate tells of the class, in bits."""
    agreement: NDArray[np.float64] | None
    """(K, K), how alike classes are by their gates; None for more than 2,000 classes."""


def derive(record: SplitRecord, counter: MacCounter) -> Derived:
    """Work out what follows from a record."""
    few = len(record.classes) <= COMPARED_CLASSES
    return Derived(
        needed_macs(counter, record.gates),
        mutual_information(record),
        class_agreement(record) if few else None,
    )
