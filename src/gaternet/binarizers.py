"""Gate logits to gates: what a binarizer is, and Improved SemHash (paper, section 3.2.2).

`gaternet.rivals` has those that it is compared with.
"""

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from gaternet import draws
from gaternet.draws import Salt, wide


class GateForm(StrEnum):
    """How gates are formed in evaluation; all but HARD serve to see what training saw."""

    HARD = "hard"  # no noise, 0 or 1: the paper's evaluation
    SOFT = "soft"  # no noise, saturating sigmoid
    NOISY = "noisy"  # the noise of training, N(0, 1) for Improved SemHash; 0 or 1


def saturating_sigmoid(x: Tensor) -> Tensor:
    """Return clamp(1.2·σ(x) − 0.1, 0, 1), same shape: reaches 0 and 1 at x = ∓ln 11 ≈ ∓2.4."""
    return (1.2 * torch.sigmoid(x) - 0.1).clamp(0.0, 1.0)


def hard_gates(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """Return 1.0 where logits ≥ threshold and 0.0 elsewhere, (N, G) float32.

    A logit that is exactly the threshold is ON, as in the authors' code; the paper's 1(x > 0) has
    it OFF. Biases start at 0, so a logit of exactly 0 does occur.
    """
    return (logits >= threshold).to(wide(logits))


def with_gradient_of(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the values of `hard` with the gradient of `soft`, both (N, G): straight through."""
    # What is added is exactly 0, so a gate stays exactly 0.0 or 1.0.
    return hard.detach() + (soft - soft.detach())


def improved_semhash(logits: Tensor, noise: Tensor, take_hard: Tensor) -> Tensor:
    """Return the gates of a training step, (N, G) float32 in [0, 1].

    With x = logits + noise, both (N, G): a sample whose `take_hard`, (N, 1) bool, is set gets
    exactly 0.0 or 1.0, 1(x ≥ 0), the others clamp(1.2·σ(x) − 0.1, 0, 1). The gradient of both is
    the soft value's: 1.2·σ(x)·(1 − σ(x)) where the clamp is open, else 0.
    """
    x = logits.to(wide(logits)) + noise
    soft = saturating_sigmoid(x)
    return torch.where(take_hard, with_gradient_of(hard_gates(x), soft), soft)


class Binarizer(nn.Module, ABC):
    """Gate logits (N, G) → gates (N, G) float32: `sample`'s in training, `evaluate`'s otherwise.

    `threshold` is where an evaluated gate opens and may be moved at any time: lower opens more
    filters, higher fewer. Training always has it at 0.

    `form` is the form that its gates have in evaluation unless another is asked for, and `forms`
    are those that it has at all.

    `set_stage` narrows the gap between training and evaluation towards the end of a run. Its two
    values are not part of the state dict; a binarizer without noise, or without a hard branch,
    has no use for the one or the other.
    """

    form: ClassVar[GateForm] = GateForm.HARD
    forms: ClassVar[tuple[GateForm, ...]] = tuple(GateForm)
    noise_scale: Tensor
    hard_share: Tensor

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold
        # Tensors, because a compiled step would be compiled again for each new float.
        self.register_buffer("noise_scale", torch.tensor(1.0), persistent=False)
        self.register_buffer("hard_share", torch.tensor(0.5), persistent=False)

    def set_stage(self, noise_scale: float, hard_share: float) -> None:
        """Set the noise's scale, 1 being its own, and the probability of the hard branch.

        The paper's are 1 and 0.5 throughout. Raises ValueError for a negative or infinite scale
        or a share outside [0, 1].
        """
        if not 0.0 <= noise_scale < float("inf"):
            raise ValueError(f"noise_scale is {noise_scale}; it is a standard deviation, ≥ 0")
        if not 0.0 <= hard_share <= 1.0:
            raise ValueError(f"hard_share is {hard_share}; it is a probability, 0 to 1")
        self.noise_scale.fill_(noise_scale)
        self.hard_share.fill_(hard_share)

    def forward(self, logits: Tensor, keys: Tensor | None = None, start: int = 0) -> Tensor:
        """Return gates; `keys`, (N,) int64, make the draws each sample's own and repeatable.

        start: which of the model's gates comes first here, where they are decided in parts
        """
        if self.training:
            return self.sample(logits, keys, start)
        return self.evaluate(logits, None, keys, start)

    @abstractmethod
    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        """Return the gates of a training step, (N, G) float32."""

    @abstractmethod
    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        """Return the noise that training adds to the logits, at scale 1, (N, G)."""

    def evaluate(
        self,
        logits: Tensor,
        form: GateForm | None = None,
        keys: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Return evaluation's gates in the given form, by default its own, (N, G) float32.

        NOISY adds the noise at scale 1 whatever the stage, and is HARD where there is none. SOFT
        is 0.5 where the logit equals the threshold. Raises ValueError for a form that does not
        exist.
        """
        match self.form if form is None else GateForm(form):
            case GateForm.HARD:
                return hard_gates(logits, self.threshold)
            case GateForm.SOFT:
                return saturating_sigmoid(logits.to(wide(logits)) - self.threshold)
            case GateForm.NOISY:
                return hard_gates(logits + self.noise(logits, keys, start), self.threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}"


class ImprovedSemHash(Binarizer):
    """Improved SemHash: noisy and mixed of hard and soft in training, hard in evaluation.

    The noise is N(0, 1). A sample takes the hard or the soft branch with all its gates.
    """

    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        noise = self.noise_scale * self.noise(logits, keys, start)
        # The same draw whatever the start: the branch is the sample's, not the layer's.
        take_hard = draws.uniform(logits[:, :1], keys, Salt.BRANCH) < self.hard_share
        return improved_semhash(logits, noise, take_hard)

    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return draws.normal(logits, keys, start)
