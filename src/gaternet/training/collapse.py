"""Gates that all close, or all open, in training: what is said of it, once a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gaternet.training.config import Recipe

MANY_STEPS = 100
"""Steps in a row that count as a collapse, in whole epochs."""

MARGIN = 0.001
"""Share of gates that may be open where all are closed, and closed where all are open: training
draws noise."""

WARNING = "warning"
"""What the line of metrics has it under."""


def collapse_warning(
    recipe: Recipe, steps_per_epoch: int, metrics: Sequence[Mapping[str, Any]]
) -> str | None:
    """Return what to warn of after the epochs that `metrics` are of, the last one's line included.

    None where gates do their work, learn nothing, or an earlier line has the warning already.
    """
    gating = recipe.gating
    if gating is None or gating.binarizer == "random":
        return None
    epochs = math.ceil(MANY_STEPS / steps_per_epoch)
    last = metrics[-epochs:]
    if len(last) < epochs or any(WARNING in line for line in metrics):
        return None
    shares = [line["open_share"] for line in last]
    rate = f"--optimizer.lr (now {recipe.optimizer.lr:g})"
    bias = f"--gating.opening-bias (now {gating.opening_bias:g})"
    sparsity = f"--gating.sparsity (now {gating.sparsity:g})"
    if max(shares) < MARGIN:
        state, advice = "closed", f"lower {sparsity}, raise {bias}, or lower {rate}"
    elif min(shares) > 1 - MARGIN:
        state, advice = "open", f"raise {sparsity}, lower {bias}, or lower {rate}"
    else:
        return None
    steps = epochs * steps_per_epoch
    return f"warning: practically all gates have been {state} for {steps} steps: {advice}"
