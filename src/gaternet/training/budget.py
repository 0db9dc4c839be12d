"""The budget of a run: the multiply-accumulates that its gates shall leave, and what holds them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gaternet.accounting import MacCounter, count_macs
from gaternet.errors import UsageError
from gaternet.losses import budget_loss
from gaternet.model import GatedModel
from gaternet.training.config import Recipe
from gaternet.training.processes import ALONE, Processes
from gaternet.training.schedules import budget_share

WEIGHT = 30.0
"""Of the budget's term. Cross entropy pulls the share off its target, relative to it by
target · slope / (2 · weight); slope is what a share of 1 more would take off it."""

FARTHEST = math.log(11)
BISECTIONS = 20


class Budget(nn.Module):
    """Gates (N, G) of a training step → the budget's term of its loss, a scalar.

    target: the share of the plain backbone's multiply-accumulates that is held at present
    final: the one that the run shall end with
    """

    target: Tensor

    def __init__(self, counter: MacCounter, final: float) -> None:
        super().__init__()
        self.counter = counter
        self.final = final
        # A tensor, because a compiled step would be compiled again for each new float.
        self.register_buffer("target", torch.tensor(1.0), persistent=False)

    def forward(self, gates: Tensor) -> Tensor:
        return WEIGHT * budget_loss(self.counter.shares(gates), self.target)


def make_budget(model: nn.Module, recipe: Recipe) -> Budget | None:
    """Return the budget of a recipe, None where it has none.

    Raises UsageError where the target is less than what is left with every gate closed.
    """
    if recipe.gating is None or recipe.gating.budget is None:
        return None
    assert isinstance(model, GatedModel)
    counter = count_macs(model, recipe.data.input_size)
    closed = torch.zeros(1, counter.gate_count, dtype=torch.float64)
    least = float(counter.shares(closed))
    if recipe.gating.budget <= least:
        raise UsageError(
            f"--gating.budget {recipe.gating.budget:g} cannot be reached: with every gate closed "
            f"{least:.3f} of the backbone's multiply-accumulates are left, the gater's among them; "
            "gate more layers (--gating.points both), take a smaller gater or a higher budget"
        )
    return Budget(counter, recipe.gating.budget)


def threshold_for(
    counter: MacCounter, logits: Tensor, target: float, processes: Processes = ALONE
) -> float:
    """Return the threshold of gate logits (N, G) at which samples need `target` on average.

    The target is a share of the plain backbone's multiply-accumulates. It is sought within ±2.4,
    where training's soft gates end. Where no threshold meets it, as where all samples have the same
    logits, the nearest share is taken, and of the thresholds that give it the one in the middle: on
    a logit itself, rounding would decide. Of several processes each has samples of its own, as many
    as the others, and all return the same.
    """

    def share_at(threshold: float) -> float:
        share = counter.shares((logits >= threshold).double()).mean()
        return float(processes.total(share)) / processes.count

    shares = [share_at(end) for end in _bisect(lambda threshold: share_at(threshold) > target)]
    nearest = min(shares, key=lambda share: abs(share - target))
    _, first = _bisect(lambda threshold: share_at(threshold) > nearest)
    last, _ = _bisect(lambda threshold: share_at(threshold) >= nearest)
    return (first + last) / 2


def _bisect(is_below: Callable[[float], bool]) -> tuple[float, float]:
    """Return two thresholds side by side, of which the first is below what is sought."""
    low, high = -FARTHEST, FARTHEST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low, high


def set_budget(budget: Budget, recipe: Recipe, progress: float) -> None:
    """Set the target of a moment of the schedule, `progress` in [0, 1)."""
    assert recipe.gating is not None
    budget.target.fill_(budget_share(recipe.gating, progress))
