"""A compressed model beside the masked one that it was made from: how equal, how much smaller."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gaternet.binarizers import Binarizer
from gaternet.compression.network import CompressedBackbone, backbone_of
from gaternet.model import Decision, GaterNet, GaterNetOutput
from gaternet.verification import Verification, verify


class Masked:
    """A whole model that takes and gives the gates of its compressed form: `verify`'s reference.

    The gates that went are fixed as the plan has them: removed ones closed, the others open.
    """

    def __init__(self, model: GaterNet, small: GaterNet | CompressedBackbone) -> None:
        backbone = backbone_of(small)
        self.model = model
        self.columns = list(backbone.columns)
        self.removed = list(backbone.plan.gates("removed"))

    @property
    def training(self) -> bool:
        return self.model.training

    @property
    def binarizer(self) -> Binarizer:
        return self.model.binarizer

    def widen(self, gates: Tensor) -> Tensor:
        """Return gates of the compressed model, (N, K), as gates of the whole one, (N, G)."""
        whole = gates.new_ones(len(gates), self.model.gate_count)
        whole[:, self.removed] = 0
        whole[:, self.columns] = gates
        return whole

    def __call__(self, images: Tensor, gates: Tensor | None = None) -> GaterNetOutput:
        if gates is None:
            gates = self.decide(images).gates
        return GaterNetOutput(self.model(images, gates=self.widen(gates)).logits, gates)

    def decide(self, images: Tensor) -> Decision:
        logits, gates = self.model.decide(images)
        return Decision(logits[:, self.columns], gates[:, self.columns])


@dataclass(frozen=True)
class UnseenImages:
    """The compressed model beside the whole one on images that the plan was not made from.

    same_class: images for which both say the same class
    wanted_removed: images for which the gater wanted a removed filter open
    wanted_closed: images for which it wanted a filter closed that is always open now
    correct, correct_before: images that are classified correctly, by either
    """

    images: int
    same_class: int
    wanted_removed: int
    wanted_closed: int
    correct: int
    correct_before: int


@dataclass(frozen=True)
class Size:
    """What a model costs: parameters and multiply-accumulates per image with every gate open, the
    gater included; gates, and the mean share of them that was open on the recorded images."""

    parameters: int
    macs: int
    gates: int
    open_share: float


@dataclass(frozen=True)
class CompressionReport:
    """What compression did; `uncounted` are operations that `macs` leave out, of either model."""

    recorded: int
    split: str
    tolerance: int
    one_mask: bool
    removed: int
    always_on: int
    unneeded: int
    before: Size
    after: Size
    uncounted: dict[str, int]
    verification: Verification
    """On the recorded images, with the gates that are left."""
    unseen: UnseenImages
    unseen_split: str


def verify_batches(
    model: GaterNet, small: GaterNet | CompressedBackbone, batches: Iterable[Tensor]
) -> Verification:
    """Compare a compressed model with the masked one on normalised images, batch by batch."""
    masked = Masked(model, small)
    found = [_verify(masked, small, images) for images in batches]
    return Verification(
        max(part.logit_error for part in found),
        sum(part.gates for part in found),
        sum(part.flips for part in found),
        sum(part.rounding_flips for part in found),
    )


def _verify(masked: Masked, small: GaterNet | CompressedBackbone, images: Tensor) -> Verification:
    if isinstance(small, GaterNet):
        return verify(masked, small, images)
    no_gates = images.new_ones(len(images), 0)
    return verify(masked, lambda images, gates: (small(images), gates), images, no_gates)


@torch.no_grad()
def compare_unseen(
    model: GaterNet,
    small: GaterNet | CompressedBackbone,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> UnseenImages:
    """Compare both on normalised images and labels (N,) that the plan was not made from."""
    plan = backbone_of(small).plan
    removed, on = list(plan.gates("removed")), list(plan.gates("always_on"))
    counts = [0] * 6
    for images, labels in batches:
        before, gates = model(images)
        logits = small(images).logits if isinstance(small, GaterNet) else small(images)
        said, said_before = logits.argmax(1), before.argmax(1)
        found = (
            torch.ones_like(said),
            said == said_before,
            (gates[:, removed] > 0).any(1),
            (gates[:, on] == 0).any(1),
            said == labels,
            said_before == labels,
        )
        counts = [count + int(part.sum()) for count, part in zip(counts, found, strict=True)]
    return UnseenImages(*counts)
