"""How far two shares of the same images differ, with the interval of that."""

from dataclasses import dataclass
from math import sqrt

from scipy.stats import binomtest

CONFIDENCE = 0.95
"""Of every interval; a difference is significant below 1 less this."""
NORMAL = 1.96
"""Standard errors on either side of such an interval, where there are many images."""


@dataclass(frozen=True)
class PairedDifference:
    """One share less another, and half the width of its 95 % interval."""

    value: float
    half_width: float


def paired_difference(first: float, second: float, images: float) -> PairedDifference:
    """Return the difference of two shares of the same images.

    first, second: images that are counted in the first share alone, and in the second alone

    The variance of an image's +1, 0 or −1 is (first + second) / images less the squared mean.
    """
    value = (first - second) / images
    variance = max((first + second) / images - value**2, 0.0)
    return PairedDifference(value, NORMAL * sqrt(variance / images))


def p_value(first: int, second: int) -> float:
    """Return how likely chance alone sets two networks' errors on the same images so far apart.

    first, second: images that one network alone classifies rightly, and the other alone

    McNemar's exact test, two-sided: of the images that only one of two equally good networks
    classifies rightly, each has half.
    """
    only_one = first + second
    return float(binomtest(first, only_one).pvalue) if only_one else 1.0
