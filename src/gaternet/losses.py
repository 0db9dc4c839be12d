"""What training minimises: cross entropy and the price of open gates (paper, section 3.2.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gate_sparsity(gates: Tensor) -> Tensor:
    """Return the mean over the batch of ‖g‖₁ / c, a scalar in [0, 1], for gates (N, c).

    Gates are never negative, so the norm is their sum. abs() would have gradient 0 at a closed
    gate, where the penalty's is 1 / (N·c) as everywhere.
    """
    return gates.mean()


def rate_loss(gates: Tensor, target: float) -> Tensor:
    """Return the mean over gates of (share of the batch for which it is open − target)², a scalar.

    Takes gates (N, c). It drives every gate, not their mean, to the target rate (Veit and Belongie,
    ECCV 2018, section 3.4). The batch is that of this process.
    """
    return (gates.mean(dim=0) - target).square().mean()


def budget_loss(shares: Tensor, target: Tensor | float) -> Tensor:
    """Return (mean of `shares` / target − 1)², a scalar: the squared relative miss of a budget.

    Takes each sample's share of the multiply-accumulates, (N,), see `MacCounter.shares`. It is the
    batch's mean that shall meet the target: an easy image may need less and a hard one more.
    """
    return (shares.mean() / target - 1).square()


def gated_cross_entropy(
    logits: Tensor,
    gates: Tensor,
    labels: Tensor,
    *,
    sparsity: float,
    label_smoothing: float = 0.0,
    target_rate: float | None = None,
) -> Tensor:
    """Return −log P(y|x) + λ·‖g‖₁/c averaged over the batch, a scalar; λ is `sparsity`.

    Takes logits (N, K), gates (N, c) as the binarizer gave them and labels (N,) int64, or (N, K)
    class probabilities. The paper prints no λ: sweep it. The penalty reaches what decides: the
    gater alone or, where layers decide, also the layers before them.

    With a target rate, `rate_loss` is added with weight 1, as ConvNet-AIG's released code has it on
    ImageNet (on CIFAR-10: 2).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    classification = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    loss = classification + sparsity * gate_sparsity(gates)
    return loss if target_rate is None else loss + rate_loss(gates, target_rate)
