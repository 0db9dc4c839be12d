"""Gate vectors in few dimensions: principal components, and t-SNE of them (Figure 5).

Gates that are the same for every image add nothing to either and are left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaternet.analysis.record import GateRecord
from gaternet.analysis.sampling import some_rows

COMPONENTS = 400
"""Dimensions that the paper reduces gate vectors to before t-SNE (section 4.3)."""
EMBEDDED = 10_000
"""Images that are embedded at most, drawn at random: t-SNE of so many takes about a minute."""
PERPLEXITY = 30.0

_SPARE = 10
_ITERATIONS = 7


@dataclass(frozen=True)
class Components:
    """Principal components of the input-dependent gates of some images."""

    columns: NDArray[np.int64]
    """(D,), the gates."""
    mean: NDArray[np.float32]
    """(D,), their opening rates."""
    axes: NDArray[np.float32]
    """(D, C), orthonormal, the one of largest variance first."""
    variances: NDArray[np.float64]
    """(C,), variance along each axis, divided by N."""
    total: float
    """Variance of all gates."""

    @property
    def explained(self) -> float:
        """Share of the variance that lies along the axes."""
        return float(self.variances.sum()) / self.total

    def project(self, record: GateRecord) -> NDArray[np.float32]:
        """Return the coordinates of each image, (N, C)."""
        parts = [(part[:, self.columns] - self.mean) @ self.axes for part in record.parts()]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Embedding:
    """Images in the plane.

    points: (M, 2) float32
    rows: (M,), the record's rows that they are of
    components: of the principal components that t-SNE started from
    explained: share of the variance of the gates that these hold
    """

    points: NDArray[np.float32]
    rows: NDArray[np.int64]
    components: int
    explained: float


def principal_components(record: GateRecord, most: int = COMPONENTS) -> Components:
    """Return `most` principal components, or as many as there are input-dependent gates or images.

    By subspace iteration (Halko et al., 2011, algorithm 4.4) over gates unpacked in parts, so that
    memory does not grow with images times gates; exact where there are no more gates than `most`.

    Raises ValueError where no gate depends on the input.
    """
    columns = record.dependent()
    if not len(columns):
        raise ValueError("no gate depends on the input: there are no components")
    rates = record.open_counts()[columns] / len(record)
    mean = rates.astype(np.float32)
    width = min(most + _SPARE, len(columns))
    generator = np.random.default_rng(0)
    basis = np.eye(len(columns), width, dtype=np.float32)
    if width < len(columns):
        basis = generator.standard_normal((len(columns), width)).astype(np.float32)
        for _ in range(_ITERATIONS):
            image = np.zeros_like(basis)
            for part in record.parts():
                centred = part[:, columns] - mean
                image += centred.T @ (centred @ basis)
            basis = np.linalg.qr(image)[0]
    covariance = np.zeros((width, width))
    for part in record.parts():
        projected = (part[:, columns] - mean) @ basis
        covariance += projected.T @ projected
    values, vectors = np.linalg.eigh(covariance / len(record))
    # Behind as many components as images the variance is 0.
    kept = np.argsort(-values)[: min(most, len(record))]
    return Components(
        columns,
        mean,
        basis @ vectors[:, kept].astype(np.float32),
        np.maximum(values[kept], 0.0),
        float((rates * (1 - rates)).sum()),
    )


def why_no_embedding(record: GateRecord) -> str | None:
    """Return why the images of a record cannot be laid out in the plane; None where they can."""
    gates = len(_drawn(record).dependent())
    if gates < 2:
        return f"{gates or 'no'} input-dependent gate{'s' if not gates else ''}: t-SNE needs two"
    if len(record) < 4:
        return f"{len(record)} images: t-SNE needs four"
    return None


def embed(record: GateRecord) -> Embedding:
    """Lay images out in the plane by their gates: PCA to 400 dimensions, t-SNE to 2 (Figure 5).

    Of more than 10,000 images so many are drawn at random. The same record gives the same picture.

    Raises ValueError where `why_no_embedding` has a reason.
    """
    from sklearn.manifold import TSNE

    reason = why_no_embedding(record)
    if reason:
        raise ValueError(reason)
    rows, chosen = some_rows(len(record), EMBEDDED), _drawn(record)
    found = principal_components(chosen)
    tsne = TSNE(
        perplexity=min(PERPLEXITY, (len(rows) - 1) / 3),
        init="pca" if found.axes.shape[1] > 1 else "random",
        random_state=0,
    )
    points = tsne.fit_transform(found.project(chosen))
    return Embedding(
        points.astype(np.float32), rows, found.axes.shape[1], min(found.explained, 1.0)
    )


def _drawn(record: GateRecord) -> GateRecord:
    """Return the record of the images that are laid out."""
    return record.take(some_rows(len(record), EMBEDDED))
