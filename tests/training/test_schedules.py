"""Learning rates and gate noise against their closed forms."""

import math

import pytest

from gaternet.training.config import Gating, Schedule
from gaternet.training.schedules import gate_noise, learning_rate


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001)]
)
def test_step_divides_by_ten_exactly_at_the_milestones(step: int, rate: float) -> None:
    schedule = Schedule(kind="step", milestones=(0.5, 0.75))
    assert learning_rate(schedule, 0.1, step / 64_000) == pytest.approx(rate, rel=1e-12)


def test_steps_counted_in_epochs_meet_the_milestones() -> None:
    schedule, steps, epochs = Schedule(kind="step", milestones=(0.5, 0.75)), 390, 164
    rates = [
        learning_rate(schedule, 1.0, (epoch + step / steps) / epochs)
        for epoch in range(epochs)
        for step in range(steps)
    ]
    total = len(rates)
    assert [round(rate, 9) for rate in rates] == [1.0] * (total // 2) + [0.1] * (total // 4) + [
        0.01
    ] * (total // 4)


def test_cosine() -> None:
    schedule = Schedule(kind="cosine")
    rates = [learning_rate(schedule, 0.2, progress) for progress in (0, 1 / 3, 0.5, 2 / 3, 1)]
    assert rates == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0], abs=1e-12)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warmup_rises_linearly_from_zero(kind: str) -> None:
    schedule = Schedule(kind="cosine" if kind == "cosine" else "step", warmup=0.2)
    rates = [learning_rate(schedule, 0.4, progress) for progress in (0, 0.05, 0.1, 0.15, 0.2)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_cosine_after_warmup_spans_what_is_left() -> None:
    schedule = Schedule(kind="cosine", warmup=0.2)
    for progress in (0.2, 0.4, 0.73, 0.99):
        expected = (1 + math.cos(math.pi * (progress - 0.2) / 0.8)) / 2
        assert learning_rate(schedule, 1.0, progress) == pytest.approx(expected)


def test_paper_s_gates_are_noisy_and_mixed_to_the_end() -> None:
    assert {gate_noise(Gating(), progress / 100) for progress in range(100)} == {(1.0, 0.5)}


@pytest.mark.parametrize(
    ("progress", "noise", "hard"),
    [(0.0, 1.0, 0.5), (0.4, 1.0, 0.5), (0.5, 0.75, 0.625), (0.6, 0.5, 0.75), (0.8, 0.0, 1.0)],
)
def test_noise_fades_linearly(progress: float, noise: float, hard: float) -> None:
    gating = Gating(anneal_from=0.4, anneal_until=0.8)
    assert gate_noise(gating, progress) == pytest.approx((noise, hard))
    assert gate_noise(gating, 0.999) == (0.0, 1.0)


def test_noise_may_end_at_once() -> None:
    gating = Gating(anneal_from=0.5, anneal_until=0.5)
    assert [gate_noise(gating, p) for p in (0.49, 0.5)] == [(1.0, 0.5), (0.0, 1.0)]
