"""How much of the class the gates tell: classifiers that see nothing but the gates.

The images are parted at random into two halves; each is classified by what was learned on the
other, so that every image is classified once by a probe that has not seen it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaternet.analysis.embedding import principal_components
from gaternet.analysis.record import GateRecord
from gaternet.analysis.sampling import shuffled
from gaternet.analysis.split_record import SplitRecord

PROBED = 10_000
"""Images that are probed at most, drawn at random."""
NEIGHBOURS = 10
_QUERIES = 256

Labels = NDArray[np.int64]
Probe = Callable[[GateRecord, Labels, GateRecord], Labels]
"""(gates to learn from, their labels, gates to classify) → classes of the latter."""


@dataclass(frozen=True)
class Probes:
    """Shares of images that are classified rightly.

    images: how many were probed
    chance: by always giving the commonest class of the other half
    neighbours: by the 10 nearest gate vectors (Hamming distance over all gates)
    linear: by logistic regression on at most 400 principal components of the gates
    model: by the model itself
    model_where_told, model_where_untold: by the model itself, where the neighbours tell the class,
        and where they do not; None: nowhere
    """

    images: int
    chance: float
    neighbours: float
    linear: float
    model: float
    model_where_told: float | None = None
    model_where_untold: float | None = None

    @property
    def model_by_neighbours(self) -> list[tuple[str, float]]:
        """The model's accuracy where the neighbours are right, and where they are wrong."""
        pairs = (("right", self.model_where_told), ("wrong", self.model_where_untold))
        return [(where, accuracy) for where, accuracy in pairs if accuracy is not None]


def probe(record: SplitRecord) -> Probes:
    """Measure what gates alone tell of the class.

    Raises ValueError where `why_no_probes` has a reason.
    """
    reason = why_no_probes(record)
    if reason:
        raise ValueError(reason)
    chosen = shuffled(len(record))[:PROBED]
    by_gates = _classified(record, chosen, nearest_neighbours)
    right = record.right[chosen]
    return Probes(
        len(chosen),
        float(_classified(record, chosen, commonest).mean()),
        float(by_gates.mean()),
        float(_classified(record, chosen, linear).mean()),
        float(right.mean()),
        float(right[by_gates].mean()) if by_gates.any() else None,
        float(right[~by_gates].mean()) if not by_gates.all() else None,
    )


def why_no_probes(record: SplitRecord) -> str | None:
    """Return why gates cannot be probed for the class; None where they can."""
    if not len(record.gates.dependent()):
        return "no gate depends on the input"
    for half in _halves(shuffled(len(record))[:PROBED]):
        if len(np.unique(record.labels[half])) < 2:
            return "a half of the images shows fewer than two classes"
        if not len(record.gates.take(half).dependent()):
            return "no gate depends on the input in a half of the images"
    return None


def nearest_neighbours(learned: GateRecord, labels: Labels, asked: GateRecord) -> Labels:
    """Return the commonest class among the 10 nearest gate vectors, (N,).

    Of equally near ones the first count, of equally common classes the lowest number.
    """
    columns = learned.dependent()
    known = np.concatenate([part[:, columns] for part in learned.parts()]).astype(np.float32)
    sizes, places = known.sum(axis=1), np.arange(len(known))
    count = min(NEIGHBOURS, len(known))
    classes = int(labels.max()) + 1
    found = []
    for start in range(0, len(asked), _QUERIES):
        queries = asked.gates(start, start + _QUERIES)[:, columns].astype(np.float32)
        # |a − b|² = |a|² + |b|² − 2·a·b; |a|² is the same for all, and sums of bits are exact.
        far = (sizes - 2 * (queries @ known.T)).astype(np.int64)
        order = far * len(known) + places
        nearest = labels[np.argpartition(order, count - 1, axis=1)[:, :count]]
        votes = (nearest[:, :, None] == np.arange(classes)).sum(axis=1)
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)


def linear(learned: GateRecord, labels: Labels, asked: GateRecord) -> Labels:
    """Return the classes by logistic regression on principal components of the gates, (N,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    components = principal_components(learned)
    regression = LogisticRegression(max_iter=200)
    with warnings.catch_warnings():
        # Where it has not converged it is a probe nevertheless.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(components.project(learned), labels)
    return regression.predict(components.project(asked))


def commonest(learned: GateRecord, labels: Labels, asked: GateRecord) -> Labels:
    """Return the commonest class for all, (N,)."""
    return np.full(len(asked), np.bincount(labels).argmax())


def _halves(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _classified(record: SplitRecord, rows: NDArray[np.int64], classify: Probe) -> NDArray[np.bool_]:
    """Return which of `rows` are classified rightly, each half by what the other teaches."""
    first, second = _halves(rows)
    found = [
        classify(record.gates.take(learned), record.labels[learned], record.gates.take(asked))
        for learned, asked in ((second, first), (first, second))
    ]
    return np.concatenate(found) == record.labels[rows]
