"""What changes in the course of a run: learning rate, noise of the gates, gate dropout, budget."""

import math

from gaternet.training.config import Gating, Schedule


def learning_rate(schedule: Schedule, peak: float, progress: float) -> float:
    """Return the learning rate when a share `progress`, in [0, 1), of the steps is done."""
    if progress < schedule.warmup:
        return peak * progress / schedule.warmup
    if schedule.kind == "step":
        return float(peak * 0.1 ** sum(progress >= milestone for milestone in schedule.milestones))
    if schedule.kind == "exponential":
        return float(peak * 0.94 ** math.floor(progress * schedule.decays))
    descent = (progress - schedule.warmup) / (1 - schedule.warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * descent))


def gate_dropout_rate(gating: Gating, progress: float) -> float:
    """Return the rate of gate dropout: from 0 up to `dropout`, linearly (paper, appendix B)."""
    return gating.dropout * progress


def budget_share(gating: Gating, progress: float) -> float:
    """Return the share of the multiply-accumulates that the gates are held to, 1 being all.

    It falls from 1 linearly and reaches `budget` at `budget_from`.
    """
    budget = 1.0 if gating.budget is None else gating.budget
    if progress >= gating.budget_from:
        return budget
    return 1.0 - (1.0 - budget) * progress / gating.budget_from


def gate_noise(gating: Gating, progress: float) -> tuple[float, float]:
    """Return the noise's standard deviation and the share of samples on the hard branch.

    The paper's values, 1 and 0.5, hold until `anneal_from`; from `anneal_until` on they are 0 and
    1, so that training sees the very gates of evaluation; in between they move linearly.
    """
    if progress < gating.anneal_from:
        return 1.0, 0.5
    if progress >= gating.anneal_until:
        return 0.0, 1.0
    done = (progress - gating.anneal_from) / (gating.anneal_until - gating.anneal_from)
    return 1.0 - done, 0.5 + 0.5 * done
