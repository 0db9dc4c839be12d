"""GaterNet: a backbone whose filters a gater opens and closes for each image (paper, section 3)."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaternet.binarizers import ImprovedSemHash
from gaternet.gate_points import GatePoint, attach, find_gate_points, name_gate_points
from gaternet.gater import Gater
from gaternet.graph import Graph, trace

Points = Iterable[GatePoint] | Iterable[str] | Callable[[str], bool]


class GaterNetOutput(NamedTuple):
    """What a forward gives.

    logits: whatever the backbone returns: (N, classes), or its list of feature maps
    gates: (N, G) float32 as they were used; column order is `GaterNet.slices`
    """

    logits: Any
    gates: Tensor


class GaterNet(nn.Module):
    """Images (N, C, H, W) → GaterNetOutput(logits, gates): paper, equations 2 to 4.

    points: where the gates are; None finds them by the structural rule, else names of submodules,
        a predicate on names, or GatePoints (which keep their order)
    input_size: (C, H, W) of an image, where the backbone does not declare it

    The backbone and the gater are taken over as they are, not copied. `model.backbone(images)` is
    the plain network still; its own methods, such as timm's `forward_features`, are plain only
    after a forward under `torch.no_grad()`.

    A closed gate makes its feature map exactly 0, and a filter closed for every sample of a batch
    gets no gradient. In training mode its BatchNorm, which comes before the gate, does not know
    about gates: batch statistics and running statistics are over all samples, closed ones too.

    `model.binarizer.threshold` may be moved at inference: lower opens more filters.

    Raises ValueError where there is no gate point or a given one cannot be gated.
    """

    def __init__(
        self,
        backbone: nn.Module,
        gater: Gater,
        points: Points | None = None,
        input_size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        graph = trace(backbone, input_size)
        self.points = _resolve(graph, points)
        self.gate_count = sum(point.gates for point in self.points)
        gater.connect(self.gate_count, graph.input_size)
        self.backbone = backbone
        self.gater = gater
        self.binarizer = ImprovedSemHash()
        self._holder = attach(backbone, self.points)

    @property
    def slices(self) -> dict[str, slice]:
        """Which columns of the gates belong to which gate point, by name."""
        slices, start = {}, 0
        for point in self.points:
            slices[point.name] = slice(start, start + point.gates)
            start += point.gates
        return slices

    def gate_logits(self, images: Tensor) -> Tensor:
        """Return what the gater says before the binarizer, (N, G)."""
        return self.gater(images)

    def forward(
        self, images: Tensor, gates: Tensor | None = None, keys: Tensor | None = None
    ) -> GaterNetOutput:
        """Run the backbone under the gater's gates, or under `gates`.

        gates: (N, G) or (G,), any dtype; the gater is not asked then
        keys: (N,) int64, see `randomness.sample_keys`: training's draws, repeatable by sample

        Raises ValueError where `gates` has another shape.
        """
        if gates is None:
            gates = self.binarizer(self.gate_logits(images), keys)
        else:
            gates = self._expand(gates, images.shape[0])
        self._holder.arm(gates)
        logits = self.backbone(images)
        # With gradients they must last: activation checkpointing runs blocks again in the backward.
        if not torch.is_grad_enabled():
            self._holder.clear()
        return GaterNetOutput(logits, gates)

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
            f"GaterNet: {self.gate_count:,} gates at {len(self.points)} points",
            f"  backbone {type(self.backbone).__name__}, {_parameters(self.backbone)}",
            f"  gater {type(self.gater.extractor).__name__} → {self.gater.features} features "
            f"→ {self.gater.bottleneck} → {self.gate_count:,} gates, {_parameters(self.gater)}",
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


def _resolve(graph: Graph, points: Points | None) -> tuple[GatePoint, ...]:
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
    found = {p.name: p.channels for p in name_gate_points(graph, [p.name for p in chosen])}
    for point in chosen:
        if point.channels != found[point.name]:
            raise ValueError(
                f"gate point {point.name} has {found[point.name]} channels in this backbone, "
                f"not {point.channels}"
            )
    return tuple(chosen)


def _parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
