"""Differences of errors against scipy's t test and an analysis of variance by hand."""

import numpy as np
import pytest
from scipy import stats

from gaternet.reproduction.comparison import compare, compare_on_images, holm, spread


def test_two_networks_are_compared_by_student_s_t_test() -> None:
    one, other = [8.1, 8.4, 8.0], [7.2, 7.6, 7.9, 7.5]
    found = compare(one, other, [one, other])
    interval = stats.ttest_ind(one, other, equal_var=True).confidence_interval(0.95)
    assert found.half_width is not None
    assert found.difference - found.half_width == pytest.approx(interval.low)
    assert found.difference + found.half_width == pytest.approx(interval.high)
    assert found.p == pytest.approx(stats.ttest_ind(one, other, equal_var=True).pvalue)


def test_spread_over_seeds_is_pooled_over_all_networks() -> None:
    errors = [[8.1, 8.5], [7.0], [6.0, 6.1, 6.8]]
    found = compare(errors[0], errors[1], errors)
    # The residuals of a least-squares fit of one mean a network.
    design = np.array([[1, 0, 0]] * 2 + [[0, 1, 0]] + [[0, 0, 1]] * 3, dtype=float)
    values = np.concatenate(errors)
    means, residual, *_ = np.linalg.lstsq(design, values, rcond=None)
    width = stats.t(3).ppf(0.975) * np.sqrt(residual[0] / 3 * (1 / 2 + 1 / 1))
    assert found.difference == pytest.approx(means[0] - means[1])
    assert found.half_width == pytest.approx(width)


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        ([9.0, 9.1, 9.1], "higher error"),
        ([7.0, 7.1, 7.1], "lower error"),
        ([8.0, 8.2, 8.2], "not significant"),
    ],
)
def test_verdict_is_what_the_interval_supports(first: list[float], verdict: str) -> None:
    second = [8.05, 8.15]
    assert compare(first, second, [first, second]).verdict == verdict


def test_one_seed_of_each_tells_nothing() -> None:
    found = compare([5.0], [9.0], [[5.0], [9.0]])
    assert found.half_width is None
    assert found.verdict == "too few seeds"
    assert spread([5.0]) is None
    assert spread([5.0, 7.0]) == pytest.approx(np.std([5.0, 7.0], ddof=1))


def test_spread_of_two_seeds_that_happen_to_be_alike_tells_nothing() -> None:
    alike = [33.63, 33.65]
    found = compare([33.4], alike, [alike, [33.4], [30.0, 30.1]])
    assert found.difference == pytest.approx(-0.24)
    assert found.half_width is None


def test_seeds_are_compared_on_the_same_images_by_a_paired_t_test_over_these() -> None:
    right = np.random.default_rng(0).random((5, 4000)) < 0.8
    right[2:, :200] = True
    one, other = right[:2], right[2:]
    found = compare_on_images(list(one), list(other))
    errors = [100 - 100 * each.mean(axis=0) for each in (one, other)]
    interval = stats.ttest_rel(*errors).confidence_interval(0.95)
    assert found.difference == pytest.approx(errors[0].mean() - errors[1].mean())
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)
    assert found.p == pytest.approx(stats.ttest_rel(*errors).pvalue, rel=0.01)
    assert found.verdict == "higher error"
    assert found.images == 4000
    assert compare_on_images(list(other), list(one)).verdict == "lower error"
    assert compare_on_images([one[0]], [one[0], one[0]]).verdict == "not significant"


def test_chance_makes_one_table_in_twenty_significant_by_holm() -> None:
    draws = np.random.default_rng(0).random((4000, 8))
    draws[:, :3] = 1e-9  # three differences are there
    found = np.array([holm(list(row)) for row in draws])
    assert found[:, :3].all()
    # Independent: 1 − (1 − 0.05 / 5)⁵ of the tables have one of the other five.
    assert found[:, 3:].any(axis=1).mean() == pytest.approx(1 - 0.99**5, abs=0.01)


def test_holm_asks_less_of_each_further_difference() -> None:
    assert holm([0.04, 0.01, 0.02]) == [True, True, True]
    assert holm([0.04, 0.01, 0.03]) == [False, True, False]
    assert holm([]) == []
