"""What is kept of an analysis, and the statistics that the paper's findings are judged by."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kendalltau, ttest_1samp

from gaternet.analysis.behaviour import chance_distance, class_likeness, depth_trend


def pairs_in_order(shares: tuple[float, ...]) -> int:
    """Return pairs that rise less those that fall."""
    return sum(
        int(np.sign(shares[j] - shares[i]))
        for i in range(len(shares))
        for j in range(i + 1, len(shares))
    )


@pytest.mark.parametrize(
    "shares", [(0.1, 0.3, 0.2, 0.5, 0.4, 0.9, 0.8), (0.1, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0)]
)
def test_trend_is_told_by_counting_all_orders(shares: tuple[float, ...]) -> None:
    found = depth_trend(shares)
    assert found is not None
    mine = pairs_in_order(shares)
    assert found.tau == pytest.approx(kendalltau(range(7), shares).statistic)
    assert np.sign(found.tau) == np.sign(mine)
    others = [abs(pairs_in_order(order)) >= abs(mine) for order in permutations(shares)]
    assert found.p == pytest.approx(np.mean(others))
    assert found.significant == (np.mean(others) < 0.05)


def test_trend_of_more_orders_than_can_be_counted_is_of_random_ones() -> None:
    """Of (1, 3, 3, 0 × 6) / 16 there are 252 orders, 14 of which are as far from level."""
    found = depth_trend([1 / 16, 3 / 16, 3 / 16, *[0.0] * 6])
    assert found is not None
    assert found.p == pytest.approx(14 / 252, abs=0.007)  # three standard errors
    assert found == depth_trend([1 / 16, 3 / 16, 3 / 16, *[0.0] * 6])


def test_equal_layers_have_no_trend() -> None:
    assert depth_trend([0.5] * 9) is None
    assert depth_trend([0.5]) is None


def test_likeness_is_a_t_test_over_classes() -> None:
    agreement = np.random.default_rng(0).random((6, 6))
    agreement = (agreement + agreement.T) / 2 + np.eye(6)
    found = class_likeness(agreement.tolist())
    assert found is not None
    differences = [
        agreement[k, k] - np.mean([agreement[k, other] for other in range(6) if other != k])
        for k in range(6)
    ]
    interval = ttest_1samp(differences, 0).confidence_interval(0.95)
    difference = found.within - found.across
    assert difference == pytest.approx(np.mean(differences))
    assert difference - found.half_width == pytest.approx(interval.low)
    assert difference + found.half_width == pytest.approx(interval.high)


def test_classes_without_pairs_are_not_compared() -> None:
    assert class_likeness([[None, 0.5], [0.5, 0.8]]) is None
    assert class_likeness([[0.9]]) is None


def test_samples_stay_within_the_chance_distance() -> None:
    draws = np.sort(np.random.default_rng(0).random((2000, 500)), axis=1)
    steps = np.arange(1, 501) / 500
    gaps = np.maximum(np.abs(steps - draws), np.abs(steps - 1 / 500 - draws)).max(axis=1)
    assert (gaps <= chance_distance(500)).mean() == pytest.approx(0.955, abs=0.015)
