"""What sweeps of λ are said to tell."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from gaternet.reproduction.results import Measurement, Sweep, SweepRow
from gaternet.reproduction.sweeps import standard_error, sweep_section, untold


def sweep_of(*errors: float, recipe: str = "cifar10/resnet20-gated-short") -> Sweep:
    values = (0.1, 0.0, 0.3, 1.0)
    rows = [SweepRow(v, error, 336, 9, 3, 271.3) for v, error in zip(values, errors, strict=False)]
    return Sweep("cifar10", recipe, 6, 5000, tuple(rows))


def said(sweep: Sweep) -> str:
    measured = Measurement("sparsity_sweep.json", "python x.py", "an abacus", "today", sweep)
    return list(sweep_section([measured], "../results"))[-2]


def test_standard_error_is_the_spread_of_draws() -> None:
    draws = np.random.default_rng(0).binomial(5000, 0.14, 20_000)
    assert standard_error(14, 5000) == pytest.approx((100 * draws / 5000).std(), rel=0.02)


def test_errors_within_the_interval_of_a_difference_are_not_told_from_the_lowest() -> None:
    p = 0.14
    most = 14 + 100 * 1.96 * sqrt(2 * p * (1 - p) / 5000)
    # The other's own error is a little larger, and so its standard error.
    found = untold(sweep_of(14.0, most, most + 0.1))
    assert [row.validation_error_percent for row in found] == [14.0, most]


def test_it_is_said_what_the_sweep_leaves_and_what_the_recipe_has() -> None:
    assert said(sweep_of(13.9, 13.8, 14.0, 20.0)) == (
        "λ = 0 has the lowest error; 0.1 and 0.3 are not told from it; 1 is higher. The recipe has "
        "λ = 0.1: its error is not told from the lowest, with 271 of 336 gates open."
    )
    assert said(sweep_of(20.0, 13.8)) == (
        "λ = 0 has the lowest error; 0.1 is higher. The recipe has λ = 0.1, which this speaks "
        "against."
    )
    rest = sweep_of(13.9, 13.8)
    assert "λ = 0.1, which was not swept" in said(replace(rest, rows=rest.rows[1:]))
    assert "No recipe of this name" in said(replace(rest, recipe="another/one"))


def test_of_no_sweep_nothing_is_said() -> None:
    assert not list(sweep_section([], "results"))
