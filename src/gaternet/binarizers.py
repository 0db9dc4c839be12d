"""Gate logits to gates: Improved SemHash (paper, section 3.2.2)."""

from enum import StrEnum

import torch
from torch import Tensor, nn

from gaternet import randomness

# Separates the keys of the branch draws from those of the noise draws; any odd word would do.
_BRANCH = 0x68E31DA5


class GateForm(StrEnum):
    """How gates are formed in evaluation; all but HARD serve to see what training saw."""

    HARD = "hard"  # no noise, 0 or 1: the paper's evaluation
    SOFT = "soft"  # no noise, saturating sigmoid
    NOISY = "noisy"  # N(0, 1) noise, 0 or 1


def saturating_sigmoid(x: Tensor) -> Tensor:
    """Return clamp(1.2·σ(x) − 0.1, 0, 1), same shape: reaches 0 and 1 at x = ∓ln 11 ≈ ∓2.4."""
    return (1.2 * torch.sigmoid(x) - 0.1).clamp(0.0, 1.0)


def hard_gates(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """Return 1.0 where logits ≥ threshold and 0.0 elsewhere, (N, G) float32.

    A logit that is exactly the threshold is ON, as in the authors' code; the paper's 1(x > 0) has
    it OFF. Biases start at 0, so a logit of exactly 0 does occur.
    """
    return (logits >= threshold).to(_wide(logits))


def improved_semhash(logits: Tensor, noise: Tensor, take_hard: Tensor) -> Tensor:
    """Return the gates of a training step, (N, G) float32 in [0, 1].

    With x = logits + noise, both (N, G): a sample whose `take_hard`, (N, 1) bool, is set gets
    exactly 0.0 or 1.0, 1(x ≥ 0), the others clamp(1.2·σ(x) − 0.1, 0, 1). The gradient of both is
    the soft value's: 1.2·σ(x)·(1 − σ(x)) where the clamp is open, else 0.
    """
    x = logits.to(_wide(logits)) + noise
    soft = saturating_sigmoid(x)
    # Straight through: what is added is exactly 0, so the gate stays exactly 0.0 or 1.0.
    hard = hard_gates(x.detach()) + (soft - soft.detach())
    return torch.where(take_hard, hard, soft)


class ImprovedSemHash(nn.Module):
    """Gate logits (N, G) → gates (N, G) float32: noisy and mixed in training, hard in evaluation.

    `threshold` is where an evaluated gate opens and may be moved at any time: lower opens more
    filters, higher fewer. Training always has it at 0.

    `set_stage` narrows the gap between training and evaluation towards the end of a run. Its two
    values are not part of the state dict.
    """

    noise_scale: Tensor
    hard_share: Tensor

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold
        # Tensors, because a compiled step would be compiled again for each new float.
        self.register_buffer("noise_scale", torch.tensor(1.0), persistent=False)
        self.register_buffer("hard_share", torch.tensor(0.5), persistent=False)

    def set_stage(self, noise_scale: float, hard_share: float) -> None:
        """Set the noise's standard deviation and the probability of the hard branch.

        The paper's are 1 and 0.5 throughout. Raises ValueError for a negative or infinite scale
        or a share outside [0, 1].
        """
        if not 0.0 <= noise_scale < float("inf"):
            raise ValueError(f"noise_scale is {noise_scale}; it is a standard deviation, ≥ 0")
        if not 0.0 <= hard_share <= 1.0:
            raise ValueError(f"hard_share is {hard_share}; it is a probability, 0 to 1")
        self.noise_scale.fill_(noise_scale)
        self.hard_share.fill_(hard_share)

    def forward(self, logits: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return gates; `keys`, (N,) int64, make the draws each sample's own and repeatable."""
        if not self.training:
            return hard_gates(logits, self.threshold)
        noise = self.noise_scale * _draw_noise(logits, keys)
        return improved_semhash(logits, noise, _draw_uniform(logits, keys) < self.hard_share)

    def evaluate(
        self, logits: Tensor, form: GateForm = GateForm.HARD, keys: Tensor | None = None
    ) -> Tensor:
        """Return evaluation's gates in the given form, (N, G) float32.

        NOISY adds the paper's N(0, 1) noise whatever the stage. SOFT is 0.5 where the logit equals
        the threshold. Raises ValueError for a form that does not exist.
        """
        match GateForm(form):
            case GateForm.HARD:
                return hard_gates(logits, self.threshold)
            case GateForm.SOFT:
                return saturating_sigmoid(logits.to(_wide(logits)) - self.threshold)
            case GateForm.NOISY:
                return hard_gates(logits + _draw_noise(logits, keys), self.threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}"


def _wide(x: Tensor) -> torch.dtype:
    """float32, or float64 where `x` is: in bfloat16 noise and threshold would be rounded away."""
    return torch.promote_types(x.dtype, torch.float32)


def _draw_noise(logits: Tensor, keys: Tensor | None) -> Tensor:
    """Return N(0, 1) noise, (N, G)."""
    if keys is None:
        return torch.randn_like(logits, dtype=_wide(logits))
    return randomness.normal(keys, logits.shape[1])


def _draw_uniform(logits: Tensor, keys: Tensor | None) -> Tensor:
    """Return one draw a sample, uniform in [0, 1), (N, 1), independent of its noise."""
    if keys is None:
        return torch.rand(logits.shape[0], 1, device=logits.device)
    return randomness.uniform(keys ^ _BRANCH, 1)
