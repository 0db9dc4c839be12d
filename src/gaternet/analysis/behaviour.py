"""What the gates of a run do on a split, as small as a file that is kept: counts, no images.

It is what the paper says of its gates in section 4.2.1, "Gate Distribution", and what that is
judged by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, log, sqrt
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, permutation_test, t

from gaternet.analysis.classes import class_agreement
from gaternet.analysis.findings import Costs, Findings
from gaternet.analysis.probes import Probes
from gaternet.analysis.record import LayerUse
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import OpenGates
from gaternet.analysis.swaps import Swap
from gaternet.paired import CONFIDENCE

ORDERS = 9_999
"""Orders of layers that a p-value is counted from, drawn at random where there are more."""


@dataclass(frozen=True)
class Behaviour:
    """The gates of a run on the images of a split.

    accuracy: share of the images that the model classifies rightly
    layers: kinds of the gates of each
    open, entropy: of each layer, open gates of an image, and the entropy of a gate in bits; means
    opened: images by how many gates they open, from `open_gates.least` on (Figure 4)
    all_open: images that open every gate, by class; None: not counted
    agreement: (K, K), how alike classes are by their gates, see `class_agreement`; None: no pair
    costs: multiply-accumulates of an image; None: not kept
    """

    recipe: str
    seed: int
    epochs: int
    pretrain_epochs: dict[str, int | str] | None
    data: str
    split: str
    images: int
    accuracy: float
    layers: tuple[LayerUse, ...]
    open: tuple[float, ...]
    entropy: tuple[float, ...]
    open_gates: OpenGates
    opened: tuple[int, ...]
    classes: tuple[str, ...]
    agreement: tuple[tuple[float | None, ...], ...]
    probes: Probes | None
    swaps: tuple[Swap, ...]
    all_open: dict[str, int] | None = None
    costs: Costs | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for what no analysis finds."""
        layers, classes = len(self.layers), len(self.classes)
        if not layers or any(layer.total < 1 for layer in self.layers):
            raise ValueError("layers: each has gates, and there is one")
        if not len(self.open) == len(self.entropy) == layers:
            raise ValueError(f"open, entropy: of {layers} layers each has one")
        if sum(self.opened) != self.images or not self.images:
            raise ValueError(f"opened: there are {self.images} images")
        most = self.opened[-1] if self.open_gates.most == self.gates else 0
        if self.all_open is not None and sum(self.all_open.values()) != most:
            raise ValueError(f"all_open: {most} images open every gate")
        if [len(row) for row in self.agreement] != [classes] * classes:
            raise ValueError(f"agreement: there are {classes} classes")

    @property
    def gates(self) -> int:
        """How many there are."""
        return sum(layer.total for layer in self.layers)


def describe(found: Findings, record: SplitRecord, result: Mapping[str, Any]) -> Behaviour:
    """Return what is kept of an analysis; result: the run's result.json."""
    opened, gates = record.gates.open_per_image(), record.gates.gate_count
    return Behaviour(
        recipe=found.recipe,
        **{name: result[name] for name in ("seed", "epochs", "pretrain_epochs")},
        data=found.data,
        split=found.split,
        images=found.images,
        accuracy=found.accuracy,
        layers=tuple(record.gates.layers()),
        open=tuple(found.layers["open"].tolist()),
        entropy=tuple(found.layers["entropy"].tolist()),
        open_gates=found.open_gates,
        opened=tuple(np.bincount(opened - opened.min()).tolist()),
        all_open={
            record.classes[label]: count
            for label, count in enumerate(np.bincount(record.labels[opened == gates]).tolist())
            if count
        },
        classes=record.classes,
        agreement=tuple(
            tuple(None if isnan(each) else each for each in row)
            for row in class_agreement(record).tolist()
        ),
        probes=found.probes,
        swaps=found.swaps,
        costs=found.costs,
    )


@dataclass(frozen=True)
class Trend:
    """Whether shares of layers rise with depth: Kendall's τ, −1 to 1, and its two-sided p-value."""

    tau: float
    p: float

    @property
    def significant(self) -> bool:
        """At 5 %."""
        return self.p < 1 - CONFIDENCE


def depth_trend(shares: Sequence[float]) -> Trend | None:
    """Return the trend of layers' shares, in the order of execution; None where all are equal.

    p is counted over orders of the same shares, not taken from the normal approximation: of few
    layers many share one value, such as no gate that is always off.
    """
    if len(set(shares)) < 2:
        return None
    tau = kendalltau(range(len(shares)), shares).statistic
    counted = permutation_test(
        (np.asarray(shares),),
        _rises,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=ORDERS,
        batch=1_000,
        rng=0,
    )
    return Trend(float(tau), float(counted.pvalue))


def _rises(shares: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return pairs of layers whose shares rise less those whose shares fall."""
    shares = np.moveaxis(shares, axis, -1)
    earlier, later = np.triu_indices(shares.shape[-1], 1)
    return np.sign(shares[..., later] - shares[..., earlier]).sum(axis=-1)


@dataclass(frozen=True)
class Likeness:
    """Gates that two images have alike, as shares: of one class, and of two; means over classes.

    half_width: of the 95 % interval of their difference, Student's t over classes
    """

    within: float
    across: float
    half_width: float


def class_likeness(agreement: Sequence[Sequence[float | None]]) -> Likeness | None:
    """Return how alike gates are within classes and across, from (K, K).

    None where there are fewer than two classes, or one has no two images.
    """
    values = np.array(agreement, dtype=np.float64)
    if len(values) < 2 or np.isnan(values).any():
        return None
    within = np.diag(values)
    across = (values.sum(axis=1) - within) / (len(values) - 1)
    differences = (within - across).tolist()
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    half_width = quantile * stdev(differences) / sqrt(len(differences))
    return Likeness(mean(within.tolist()), mean(across.tolist()), half_width)


def chance_distance(images: int) -> float:
    """Return what 95 of 100 samples stay within of their own distribution, Kolmogorov's distance.

    √(ln(2 / 0.05) / (2·N)), for any distribution (Dvoretzky, Kiefer, Wolfowitz; Massart, 1990).
    """
    return sqrt(log(2 / (1 - CONFIDENCE)) / (2 * images))
