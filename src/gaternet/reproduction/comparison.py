"""What errors of a few seeds show: means, spreads, and differences with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev, variance

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from gaternet.paired import CONFIDENCE, NORMAL, p_value, paired_difference

FEWEST = 3
"""Degrees of freedom that a variance over seeds is taken from. With one, two seeds that happen to
be alike would make every difference significant, and two that are far apart none: Student's t is
12.7."""


@dataclass(frozen=True)
class Difference:
    """One network's mean error less another's, in percentage points."""

    difference: float
    half_width: float | None
    """Of its 95 % interval; none where nothing says how wide that is."""
    p: float | None = None
    """How likely chance alone makes it as large, two-sided; none where that is not known."""
    freedom: int = 0
    """Degrees of freedom of the variance over seeds."""
    images: int = 0
    """Test images that two networks are compared on, where it is said of these images."""

    @property
    def significant(self) -> bool:
        """At 5 %, by itself: among many such questions some are so by chance (`holm`)."""
        return self.p is not None and self.p < 1 - CONFIDENCE

    @property
    def verdict(self) -> str:
        """What the data support."""
        if self.p is None:
            return "too few seeds"
        if not self.significant:
            return "not significant"
        return "lower error" if self.difference < 0 else "higher error"


def spread(errors: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds; none of a single one."""
    return stdev(errors) if len(errors) > 1 else None


def compare(
    one: Sequence[float], other: Sequence[float], pool: Sequence[Sequence[float]]
) -> Difference:
    """Compare two networks' errors, of each its seeds', in percent.

    pool: the errors of all networks whose seeds' variance is taken for theirs too

    With two or three seeds a network's own variance says next to nothing, so that of several is
    pooled, as in an analysis of variance: their seeds are taken to matter alike. The interval is
    Student's t, for one comparison by itself.
    """
    difference = mean(one) - mean(other)
    several = [values for values in pool if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if freedom < FEWEST:
        return Difference(difference, None)
    pooled = sum((len(values) - 1) * variance(values) for values in several) / freedom
    deviation = sqrt(pooled * (1 / len(one) + 1 / len(other)))
    width = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * deviation
    p = _two_sided(difference, deviation, t(freedom).sf)
    return Difference(difference, width, p, freedom)


def compare_on_images(
    one: Sequence[NDArray[np.bool_]], other: Sequence[NDArray[np.bool_]]
) -> Difference:
    """Compare two networks on the same images: which each seed's classifies rightly, (N,) bool.

    The interval is that of other images. Of one seed each McNemar's exact test says whether they
    differ; of several, whose shares of seeds that are right are compared, the normal distribution
    does. Other seeds would spread the difference further.
    """
    images = len(one[0])
    if len(one) == len(other) == 1:
        only_other, only_one = (int((a & ~b).sum()) for a, b in ((*other, *one), (*one, *other)))
        return compare_by_counts(only_one, only_other, images)
    wrong = np.mean(other, axis=0) - np.mean(one, axis=0)
    value, deviation = float(wrong.mean()), float(wrong.std()) / sqrt(images)
    p = _two_sided(value, deviation, norm.sf)
    return Difference(100 * value, 100 * NORMAL * deviation, p, images=images)


def compare_by_counts(only_one: int, only_other: int, images: int) -> Difference:
    """Compare two networks on the same images by McNemar's exact test.

    only_one, only_other: images that the first alone classifies rightly, and the second alone
    """
    found = paired_difference(only_other, only_one, images)
    p = p_value(only_one, only_other)
    return Difference(100 * found.value, 100 * found.half_width, p, images=images)


def _two_sided(value: float, deviation: float, tail: Callable[[float], float]) -> float:
    """Return how likely a value is to be as far from 0 either way; tail: of a deviation of 1."""
    return 2 * float(tail(abs(value) / deviation)) if deviation else float(not value)


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which of several differences are significant when all are asked about at once.

    Holm's procedure: chance makes any of them so in at most one of twenty such tables.
    """
    significant = [False] * len(p_values)
    smallest_first = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for passed, index in enumerate(smallest_first):
        if p_values[index] >= (1 - CONFIDENCE) / (len(p_values) - passed):
            break
        significant[index] = True
    return significant
