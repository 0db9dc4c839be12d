"""Differences of shares of the same images, against draws."""

from math import comb

import numpy as np
import pytest

from gaternet.paired import paired_difference
from gaternet.reproduction.comparison import compare_by_counts


def test_half_width_is_that_of_draws() -> None:
    draws = np.random.default_rng(0).multinomial(5000, (0.05, 0.02, 0.93), 20_000)
    first, second, _ = draws.T
    found = paired_difference(250, 100, 5000)
    assert found.value == pytest.approx(0.03)
    assert found.half_width == pytest.approx(1.96 * ((first - second) / 5000).std(), rel=0.02)


def test_half_width_where_it_can_be_counted() -> None:
    # f + s of 5,000 images, less the squared mean.
    expected = 1.96 * ((228 / 5000 - (28 / 5000) ** 2) / 5000) ** 0.5
    assert paired_difference(128, 100, 5000).half_width == pytest.approx(expected)
    assert paired_difference(0, 0, 5000).half_width == 0
    assert paired_difference(5000, 0, 5000).half_width == 0


def test_what_a_fair_coin_does_once_in_twenty_times_is_reported() -> None:
    for gained, lost in ((0, 5), (0, 6), (100, 128), (100, 130), (0, 0)):
        # Two-sided and symmetric: both tails as far out as the smaller count.
        count, least = gained + lost, min(gained, lost)
        tail = sum(comb(count, k) for k in range(least + 1)) / 2**count
        found = compare_by_counts(gained, lost, 5000)
        assert found.significant == (2 * tail < 0.05), (gained, lost)
