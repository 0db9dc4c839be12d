"""How far two forms of one model are apart: masked, compiled, exported, compressed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gaternet.binarizers import Binarizer
from gaternet.evaluation_mode import exact_products
from gaternet.local import LocalGaterNet
from gaternet.model import Decision, GaterNetOutput


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    logit_error: max|Δ logits| / max|logits| under the same gates; NaN if either has one
    gates: how many gates were compared; 0 where they were given
    flips: how many of them differ
    rounding_flips: how many of those rounding explains
    """

    logit_error: float
    gates: int
    flips: int
    rounding_flips: int

    def agrees(self, tolerance: float = 1e-4) -> bool:
        """Whether the logits are within `tolerance` and rounding explains every flipped gate."""
        return self.logit_error <= tolerance and self.flips == self.rounding_flips


class Reference(Protocol):
    """A gated model, or what decides and answers like one."""

    @property
    def training(self) -> bool: ...

    @property
    def binarizer(self) -> Binarizer: ...

    def __call__(self, images: Tensor, gates: Tensor | None = None) -> GaterNetOutput: ...

    def decide(self, images: Tensor) -> Decision: ...


@torch.no_grad()
@exact_products()
def verify(
    reference: Reference,
    other: Callable[..., Any],
    images: Tensor,
    gates: Tensor | None = None,
    *,
    rounding: float = 1e-4,
) -> Verification:
    """Compare `other`, another form of `reference` in evaluation mode, on images (N, C, H, W).

    other: takes (images), or (images, gates) where `gates` is given, and returns (logits, gates)

    Logits are always compared under the same gates, `gates` or those that `other` chose, because
    one flipped gate changes them far beyond rounding; the choice is compared by itself. A flip is
    rounding where the reference's gate logit is within `rounding` of the threshold and, where gates
    are decided layer by layer, also after such a flip: later layers see other feature maps then.

    Raises ValueError where the reference is in training mode or shapes differ.
    """
    if reference.training:
        raise ValueError("the reference draws noise in training mode: call reference.eval() first")
    if gates is not None:
        logits, _ = other(images, gates)
        expected = reference(images, gates=gates).logits
        return Verification(relative_error(logits, expected), gates=0, flips=0, rounding_flips=0)
    logits, chosen = other(images)
    expected = reference(images, gates=chosen).logits
    gate_logits, own = reference.decide(images)
    flipped = ~((own - chosen).abs() <= rounding)  # a soft gate may differ by that much; NaN is one
    near = (gate_logits - reference.binarizer.threshold).abs() <= rounding
    explained = flipped & near
    if isinstance(reference, LocalGaterNet):
        explained = flipped & (explained.cumsum(dim=1) > 0)
    return Verification(
        relative_error(logits, expected),
        gates=chosen.numel(),
        flips=int(flipped.sum()),
        rounding_flips=int(explained.sum()),
    )


def relative_error(actual: Any, expected: Any) -> float:
    """Return max|actual − expected| / max|expected| of two tensors, the worst of two lists."""
    if not isinstance(expected, Tensor):
        pairs = zip(actual, expected, strict=True)
        return float(torch.tensor([relative_error(a, e) for a, e in pairs]).max())
    if actual.shape != expected.shape:
        raise ValueError(f"logits are {tuple(actual.shape)}, not {tuple(expected.shape)}")
    difference = (actual.double() - expected.double()).abs().max()
    if difference == 0:  # also where every logit is 0
        return 0.0
    return float(difference / expected.double().abs().max())
