"""The binarizers that Improved SemHash is compared with, and all of them by name.

    straight-through   1(x ≥ 0), gradient of σ             Bengio, Léonard and Courville, 2013
    gumbel-sigmoid     1(x + logistic noise ≥ 0),          Maddison, Mnih and Teh, 2017;
                       gradient of σ(· / τ)                Jang, Gu and Poole, 2017
    hard-concrete      clamp(1.2·σ((x + noise) / β) − 0.1) Louizos, Welling and Kingma, 2018
    soft               clamp(1.2·σ(x) − 0.1), never binary
    random             1 with a given probability, whatever the logit

All but soft ones are evaluated as 0 or 1. Each differs from Improved SemHash in one thing only: how
a logit becomes a gate.
"""

import difflib
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from gaternet import draws
from gaternet.binarizers import (
    Binarizer,
    GateForm,
    ImprovedSemHash,
    hard_gates,
    saturating_sigmoid,
    with_gradient_of,
)
from gaternet.draws import wide
from gaternet.errors import UsageError

HARD_CONCRETE_TEMPERATURE = 2 / 3
"""β, as in the original's experiments."""


def straight_through(logits: Tensor) -> Tensor:
    """Return 1(x ≥ 0) with the gradient of σ(x), σ(x)·(1 − σ(x)), for logits x, (N, G).

    The estimator of Bengio et al. (2013, section 4) in its variant with the sigmoid's derivative,
    which is 0 nowhere: without noise a gate in a flat part of the saturating sigmoid would stay
    as it is for ever. (That other rule is `improved_semhash` without noise, hard only.)
    """
    x = logits.to(wide(logits))
    return with_gradient_of(hard_gates(x), torch.sigmoid(x))


def gumbel_sigmoid(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Return 1(x ≥ 0), x = logits + logistic noise, with the gradient of σ(x / τ), (N, G).

    The binary concrete distribution, straight through (Jang et al., 2017, section 2.2): a gate is
    open with probability σ(logit). It is the two-class Gumbel softmax of ConvNet-AIG, whose logit
    is the difference of the classes'.
    """
    x = logits.to(wide(logits)) + noise
    return with_gradient_of(hard_gates(x), torch.sigmoid(x / temperature))


def hard_concrete(logits: Tensor, noise: Tensor) -> Tensor:
    """Return clamp((ζ − γ)·σ((logits + logistic noise) / β) + γ, 0, 1), (N, G).

    With β = 2/3, γ = −0.1 and ζ = 1.1 (Louizos et al., 2018, equations 10 and 11): the stretched,
    clamped sigmoid is the paper's saturating sigmoid. Gates are exactly 0, exactly 1, or between.
    """
    x = logits.to(wide(logits)) + noise
    return saturating_sigmoid(x / HARD_CONCRETE_TEMPERATURE)


def random_gates(uniform: Tensor, rate: float) -> Tensor:
    """Return 1.0 where a draw from [0, 1), (N, G), is below `rate`, else 0.0."""
    return (uniform < rate).to(uniform.dtype)


class StraightThrough(Binarizer):
    """Hard gates without noise, the same in training as in evaluation."""

    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return straight_through(logits)

    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return torch.zeros_like(logits)


class GumbelSigmoid(Binarizer):
    """Hard gates under logistic noise in training, without it in evaluation.

    temperature: τ; the gradient is that of σ(x / τ). 1 as ConvNet-AIG has it

    Raises ValueError for a temperature that is not above 0.
    """

    def __init__(self, threshold: float = 0.0, temperature: float = 1.0) -> None:
        super().__init__(threshold)
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.temperature = temperature

    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        noise = self.noise_scale * self.noise(logits, keys, start)
        return gumbel_sigmoid(logits, noise, self.temperature)

    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return draws.logistic(logits, keys, start)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature:g}"


class HardConcrete(Binarizer):
    """Hard-concrete gates in training; hard ones in evaluation.

    The original evaluates clamp(1.2·σ(logit) − 0.1, 0, 1), which is the form SOFT exactly. Here it
    serves as a binarizer, so its own form is HARD, which closes what that leaves below 0.5.
    """

    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return hard_concrete(logits, self.noise_scale * self.noise(logits, keys, start))

    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return draws.logistic(logits, keys, start)


class SoftGates(Binarizer):
    """No binarization: the saturating sigmoid, in training and in evaluation alike.

    It is what Improved SemHash rounds, without the rounding. Nor has it the noise, which is there
    to make gates survive the rounding: soft gates shall not pay for what they do not do.
    """

    form: ClassVar[GateForm] = GateForm.SOFT

    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return saturating_sigmoid(logits.to(wide(logits)))

    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return torch.zeros_like(logits)


class RandomGates(Binarizer):
    """Gates that do not look: each is open with probability `rate`, drawn for every sample.

    Logits and threshold have no influence, and whatever made the logits gets no gradient. With
    keys the draws are repeatable, in evaluation too. Its only form is HARD.

    Raises ValueError for a rate outside [0, 1].
    """

    forms: ClassVar[tuple[GateForm, ...]] = (GateForm.HARD,)

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate is {rate}; it is a probability, 0 to 1")
        self.rate = rate

    def sample(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return random_gates(draws.uniform(logits, keys, start=start), self.rate)

    def noise(self, logits: Tensor, keys: Tensor | None, start: int) -> Tensor:
        return torch.zeros_like(logits)

    def evaluate(
        self,
        logits: Tensor,
        form: GateForm | None = None,
        keys: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Return random gates, (N, G); raise UsageError for a form other than HARD."""
        if form is not None and GateForm(form) != GateForm.HARD:
            raise UsageError(f"random gates are open or closed; they have no {form} form")
        return self.sample(logits, keys, start)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


BINARIZERS = MappingProxyType[str, type[Binarizer]](
    {
        "semhash": ImprovedSemHash,
        "straight-through": StraightThrough,
        "gumbel-sigmoid": GumbelSigmoid,
        "hard-concrete": HardConcrete,
        "soft": SoftGates,
        "random": RandomGates,
    }
)
"""Every binarizer by its name in recipes and saved models."""


def make_binarizer(name: str, rate: float | None = None) -> Binarizer:
    """Return the binarizer of that name; `rate` is the share of gates that random ones open.

    Raises ValueError for an unknown name, and where random has no rate or another has one.
    """
    if name not in BINARIZERS:
        near = difflib.get_close_matches(name, BINARIZERS, n=1) or list(BINARIZERS)
        raise ValueError(f"unknown binarizer {name!r}; did you mean {' or '.join(near)}?")
    if (name == "random") != (rate is not None):
        raise ValueError(f"binarizer {name} with rate {rate}: random needs one, and only random")
    if rate is not None:
        return RandomGates(rate)
    return BINARIZERS[name]()
