"""What errors of a few seeds show: means, spreads, and differences with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev, variance

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from gaternet.paired import NORMAL, differ, paired_difference

CONFIDENCE = 0.95
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
    significant: bool = False
    """At 5 %."""
    freedom: int = 0
    """Degrees of freedom of the variance over seeds."""
    images: int = 0
    """Test images that two networks are compared on, where it is said of these images."""

    @property
    def verdict(self) -> str:
        """What the data support."""
        if self.half_width is None:
            return "too few seeds"
        if not self.significant:
            return "not significant"
        return "lower error" if self.difference < 0 else "higher error"


def spread(errors: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds; none of a single one."""
    return stdev(errors) if len(errors) > 1 else None


def compare(errors: Mapping[str, Sequence[float]], first: str, second: str) -> Difference:
    """Compare two networks' errors, of each its seeds', in percent.

    With two or three seeds a network's own variance says next to nothing, so that of all networks
    of the block is pooled, as in an analysis of variance: their seeds are taken to matter alike.
    The interval is Student's t, for one comparison by itself.
    """
    one, other = errors[first], errors[second]
    difference = mean(one) - mean(other)
    several = [values for values in errors.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if freedom < FEWEST:
        return Difference(difference, None)
    pooled = sum((len(values) - 1) * variance(values) for values in several) / freedom
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
    width = quantile * sqrt(pooled * (1 / len(one) + 1 / len(other)))
    return Difference(difference, width, abs(difference) > width, freedom)


def compare_on_images(
    one: Sequence[NDArray[np.bool_]], other: Sequence[NDArray[np.bool_]]
) -> Difference:
    """Compare two networks on the same images: which each seed's classifies rightly, (N,) bool.

    The interval is that of other images. Of one seed each McNemar's exact test says whether they
    differ; of several, whose shares of seeds that are right are compared, the interval does. Other
    seeds would spread the difference further.
    """
    if len(one) == len(other) == 1:
        only_other, only_one = (int((a & ~b).sum()) for a, b in ((*other, *one), (*one, *other)))
        found = paired_difference(only_other, only_one, len(one[0]))
        value, half_width = found.value, found.half_width
        significant = differ(only_one, only_other)
    else:
        wrong = np.mean(other, axis=0) - np.mean(one, axis=0)
        value, half_width = wrong.mean(), NORMAL * wrong.std() / sqrt(len(wrong))
        significant = abs(value) > half_width
    points, width = 100 * float(value), 100 * float(half_width)
    return Difference(points, width, bool(significant), images=len(one[0]))
