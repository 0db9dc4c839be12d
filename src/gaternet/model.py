"""GaterNet: a backbone whose filters a gater opens and closes for each image (paper, section 3)."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaternet.binarizers import Binarizer, GateForm, ImprovedSemHash
from gaternet.gate_dropout import GateDropout
from gaternet.gate_points import (
    GatePoint,
    attach,
    detach,
    find_gate_points,
    name_gate_points,
)
from gaternet.gater import Gater
from gaternet.graph import Graph, trace
from gaternet.ungated import UngatedImages

Points = Iterable[GatePoint] | Iterable[str] | Callable[[str], bool]


class GaterNetOutput(NamedTuple):
    """What a forward gives.

    logits: whatever the backbone returns: (N, classes), or its list of feature maps
    gates: (N, G) float32 as the binarizer gave them, which is how they were used but for gate
        dropout and ungated images in training; column order is `GatedModel.slices`
    """

    logits: Any
    gates: Tensor


class Decision(NamedTuple):
    """What was decided on a batch, and why.

    logits: the gates' logits, (N, G)
    gates: (N, G) float32
    """

    logits: Tensor
    gates: Tensor


class GatedModel(nn.Module, ABC):
    """A backbone under gates, whoever decides on them: images (N, C, H, W) → GaterNetOutput.

    The backbone is taken over as it is, not copied. `model.backbone(images)` is the plain network
    still; its own methods, such as timm's `forward_features`, are plain only after a forward under
    `torch.no_grad()`. A backbone whose `takes_keys` is true gets the keys of each forward.

    `input_size` is the (C, H, W) that the backbone was traced with; it may take others. Several
    threads may call one model, and take turns. `nn.DataParallel`, whose replicas would share the
    gates of one forward, is refused with a RuntimeError: DistributedDataParallel does not.

    A closed gate makes its feature map exactly 0, and a filter closed for every sample of a batch
    gets no gradient. In training mode its BatchNorm, which comes before the gate, does not know
    about gates: batch statistics and running statistics are over all samples, closed ones too.

    `model.binarizer.threshold` may be moved at inference: lower opens more filters.
    `model.dropout.set_rate` drops gates in training (paper, appendix B); the gates of the output,
    and so the L1 term, are those before it. `model.ungated.set_share` shows some images of
    training to the whole backbone; the gates of the output are the gater's for these too.
    """

    takes_keys = True

    def __init__(
        self,
        backbone: nn.Module,
        points: tuple[GatePoint, ...],
        input_size: tuple[int, int, int],
        binarizer: Binarizer | None,
    ) -> None:
        super().__init__()
        if not isinstance(binarizer, Binarizer | None):
            raise TypeError(
                f"binarizer is {binarizer!r}: give an object, such as "
                "gaternet.make_binarizer('semhash')"
            )
        self.points = points
        self.gate_count = sum(point.gates for point in points)
        self.input_size = input_size
        self.backbone = backbone
        self.binarizer = ImprovedSemHash() if binarizer is None else binarizer
        self.dropout = GateDropout()
        self.ungated = UngatedImages()
        self._holder = attach(backbone, points)

    @property
    def slices(self) -> dict[str, slice]:
        """Which columns of the gates belong to which gate point, by name."""
        slices, start = {}, 0
        for point in self.points:
            slices[point.name] = slice(start, start + point.gates)
            start += point.gates
        return slices

    def forward(
        self, images: Tensor, gates: Tensor | None = None, keys: Tensor | None = None
    ) -> GaterNetOutput:
        """Run the backbone under its own gates, or under `gates`.

        gates: (N, G) or (G,), any dtype; nothing is decided and nothing dropped then
        keys: (N,) int64, see `randomness.sample_keys`: training's draws, repeatable by sample

        Raises ValueError where `gates` has another shape.
        """
        if gates is None:
            return self._forward(images, keys)
        gates = self._expand(gates, images.shape[0])
        return GaterNetOutput(self._run(images, gates, keys), gates)

    @abstractmethod
    def decide(
        self, images: Tensor, form: GateForm | None = None, keys: Tensor | None = None
    ) -> Decision:
        """Return evaluation's gates in the given form, by default the binarizer's own.

        For a model in evaluation mode; `keys` as in a forward, for the forms that draw.
        """

    @abstractmethod
    def evaluate(
        self, images: Tensor, form: GateForm | None = None, keys: Tensor | None = None
    ) -> tuple[Any, Decision]:
        """Return what the backbone returns under the gates of `decide`, and the decision."""

    @abstractmethod
    def _forward(self, images: Tensor, keys: Tensor | None) -> GaterNetOutput:
        """Run the backbone under its own gates."""

    @abstractmethod
    def _describe_decider(self) -> str:
        """Return the lines of `repr` that say who decides."""

    def _run(self, images: Tensor, gates: Tensor | None, keys: Tensor | None) -> Any:
        """Return what the backbone returns under `gates`, (N, G); None: it decides on its way."""
        with self._alone():
            self._holder.arm(gates)
            if getattr(self.backbone, "takes_keys", False):
                logits = self.backbone(images, keys=keys)
            else:
                logits = self.backbone(images)
            # With gradients they must last: activation checkpointing runs blocks again in the
            # backward.
            if not torch.is_grad_enabled():
                self._holder.clear()
        return logits

    def _alone(self) -> AbstractContextManager[Any]:
        """Keep other threads from the gates of the present forward; may be nested."""
        if torch.compiler.is_compiling():
            return nullcontext()  # gates flow through the graph then, and through no holder
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel's replicas would share the gates of one forward: use "
                "DistributedDataParallel (torchrun)"
            )
        return self._holder.lock

    def _expand(self, gates: Tensor, batch: int) -> Tensor:
        # By dimension first: comparing batch with gate_count would fix the batch of an export.
        expected = (self.gate_count,) if gates.ndim == 1 else (batch, self.gate_count)
        if gates.shape != expected:
            raise ValueError(
                f"gates of shape {tuple(gates.shape)} for {batch} images and {self.gate_count} "
                f"gates: give ({self.gate_count},) or ({batch}, {self.gate_count})"
            )
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        return gates.expand(batch, self.gate_count)

    def __repr__(self) -> str:
        """Return how many gates sit where, a line for each group of like gate points."""
        lines = [
            f"{type(self).__name__}: {self.gate_count:,} gates at {len(self.points)} points",
            f"  backbone {type(self.backbone).__name__}, {count_parameters(self.backbone)}",
            f"  {self._describe_decider()}",
            f"  binarizer {self.binarizer!r}",
        ]
        groups: dict[tuple[str, int], list[GatePoint]] = {}
        for point in self.points:
            groups.setdefault((re.sub(r"\d+", "#", point.name), point.gates), []).append(point)
        for (_, gates), points in groups.items():
            count = f"{len(points)} × {gates} = {len(points) * gates:,}"
            names = " … ".join(dict.fromkeys((points[0].name, points[-1].name)))
            lines.append(f"  {count:<20} {names}")
        return "\n".join(lines)


class GaterNet(GatedModel):
    """Images (N, C, H, W) → GaterNetOutput(logits, gates): paper, equations 2 to 4.

    One gater looks at the image first and decides on all gates.

    points: where the gates are; None finds them by the structural rule, else names of submodules,
        a predicate on names, or GatePoints (which keep their order)
    input_size: (C, H, W) of an image, where the backbone does not declare it
    binarizer: from gate logits to gates; None is Improved SemHash

    The backbone and the gater are taken over as they are, not copied.

    Raises ValueError where there is no gate point or a given one cannot be gated.
    """

    def __init__(
        self,
        backbone: nn.Module,
        gater: Gater,
        points: Points | None = None,
        input_size: tuple[int, int, int] | None = None,
        binarizer: Binarizer | None = None,
    ) -> None:
        if not isinstance(gater, Gater):
            raise TypeError(
                f"gater is a {type(gater).__name__}: wrap a CNN without its classifier, "
                "gaternet.Gater(extractor, bottleneck=8)"
            )
        graph = trace(backbone, input_size)
        resolved = resolve_points(graph, points)
        super().__init__(backbone, resolved, graph.input_size, binarizer)
        try:
            gater.connect(self.gate_count, graph.input_size)
        except Exception:  # the extractor's own among them
            detach(backbone)
            raise
        self.gater = gater

    def gate_logits(self, images: Tensor) -> Tensor:
        """Return what the gater says before the binarizer, (N, G)."""
        return self.gater(images)

    def decide(
        self, images: Tensor, form: GateForm | None = None, keys: Tensor | None = None
    ) -> Decision:
        """Return evaluation's gates in a form, by default the binarizer's; only the gater runs."""
        logits = self.gate_logits(images)
        return Decision(logits, self.binarizer.evaluate(logits, form, keys))

    def evaluate(
        self, images: Tensor, form: GateForm | None = None, keys: Tensor | None = None
    ) -> tuple[Any, Decision]:
        """Return what the backbone returns under the gates of `decide`, and the decision."""
        decision = self.decide(images, form, keys)
        return self._run(images, decision.gates, keys), decision

    def _forward(self, images: Tensor, keys: Tensor | None) -> GaterNetOutput:
        gates = self.binarizer(self.gate_logits(images), keys)
        used = self.ungated(self.dropout(gates, keys), keys)
        return GaterNetOutput(self._run(images, used, keys), gates)

    def _describe_decider(self) -> str:
        gater = self.gater
        return (
            f"gater {type(gater.extractor).__name__} → {gater.features} features "
            f"→ {gater.bottleneck} → {self.gate_count:,} gates, {count_parameters(gater)}"
        )


def resolve_points(graph: Graph, points: Points | None) -> tuple[GatePoint, ...]:
    """Return the gate points meant by `points`, checked against the backbone's graph."""
    if points is None:
        return find_gate_points(graph)
    if callable(points):
        return name_gate_points(graph, points)
    given = [points] if isinstance(points, str) else list(points)
    names = [point for point in given if isinstance(point, str)]
    if len(names) == len(given):
        return name_gate_points(graph, names)
    if names:
        raise TypeError(f"points are names or GatePoints, not both: {names[0]!r} is a name")
    chosen = [point for point in given if isinstance(point, GatePoint)]
    other = next((point for point in given if not isinstance(point, GatePoint)), None)
    if other is not None:
        raise TypeError(f"points are names of submodules or GatePoints, not {type(other).__name__}")
    found = {p.name: p.channels for p in name_gate_points(graph, [p.name for p in chosen])}
    for point in chosen:
        if point.channels != found[point.name]:
            raise ValueError(
                f"gate point {point.name} has {found[point.name]} channels in this backbone, "
                f"not {point.channels}"
            )
    return tuple(chosen)


def count_parameters(module: nn.Module) -> str:
    """Return how many parameters a module has, in words."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
