"""`compile`: a gated model that computes its open filters only, layer by layer where that pays."""

import copy
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaternet.errors import UserError
from gaternet.gate_flow import follow
from gaternet.gate_points import GateHolder, GatePoint, attach, detach
from gaternet.graph import trace
from gaternet.model import GatedModel, GaterNet, GaterNetOutput
from gaternet.runtime.build import load_kernels
from gaternet.runtime.lowering import Unit, find_units, lower, unit_module, unit_name
from gaternet.verification import relative_error

TOLERANCE = 1e-4
"""Largest max|Δ logits| / max|logits| between masked and compiled that passes for rounding."""

_REPEATS = 5


@dataclass(frozen=True)
class LayerChoice:
    """How a conv is computed: `skips` closed filters or not, and what both were measured to take.

    milliseconds: medians at the example's shapes and gates; None where there was no choice
    """

    name: str
    skips: bool
    gated_ms: float | None = None
    dense_ms: float | None = None


@dataclass(frozen=True)
class Report:
    """What became of a backbone.

    layers: its convs, in the order of execution
    chunk: how many images are computed at a time
    masked_because: why the backbone runs masked, all filters computed; None where it does not
    slow_because: why the operator is plain PyTorch, which skips nothing; None where it is not
    """

    layers: tuple[LayerChoice, ...] = ()
    chunk: int | None = None
    masked_because: str | None = None
    slow_because: str | None = None


class CompiledBackbone(nn.Module):
    """Images (N, C, H, W) and gates (N, G), 0 or 1 → what the backbone returns under them.

    Computed without gradients. Several threads may call it at once.
    """

    def __init__(self, body: nn.Module, report: Report) -> None:
        super().__init__()
        self.body = body
        self.report = report

    @torch.no_grad()
    def forward(self, images: Tensor, gates: Tensor) -> Any:
        images = images.contiguous(memory_format=torch.channels_last)
        chunk = self.report.chunk
        if chunk is None or len(images) <= chunk:
            return self.body(images, gates)
        parts = zip(images.split(chunk), gates.split(chunk), strict=True)
        return _join([self.body(*part) for part in parts])


class MaskedBackbone(nn.Module):
    """A backbone under gate hooks; one thread at a time, because they hold the gates."""

    def __init__(self, backbone: nn.Module, holder: GateHolder) -> None:
        super().__init__()
        self.backbone = backbone
        self.holder = holder
        self.lock = threading.Lock()

    def forward(self, images: Tensor, gates: Tensor) -> Any:
        with self.lock:
            self.holder.arm(gates)
            return self.backbone(images)


class CompiledGaterNet(nn.Module):
    """A GaterNet in evaluation mode that computes its open filters only; see `compile`."""

    def __init__(
        self, model: GaterNet, backbone: CompiledBackbone, extractor: CompiledBackbone
    ) -> None:
        super().__init__()
        self.gate_count = model.gate_count
        self.slices = model.slices
        self.gater = model.gater
        self.binarizer = model.binarizer
        self.backbone = backbone
        self.extractor = extractor

    @property
    def report(self) -> Report:
        """How each layer is computed, and why."""
        return self.backbone.report

    def forward(self, images: Tensor, gates: Tensor | None = None) -> GaterNetOutput:
        """Return logits and gates, as the model does; `gates` (N, G) or (G,), 0 or 1.

        Raises ValueError for gates of another shape, or that are neither 0 nor 1.
        """
        gates = self.decide(images) if gates is None else self._check(gates, len(images))
        return GaterNetOutput(self.backbone(images, gates), gates)

    @torch.no_grad()
    def decide(self, images: Tensor) -> Tensor:
        """Return the gates (N, G) that the gater opens."""
        glance = self.gater.glance(images)
        features = self.extractor(glance, glance.new_ones(len(glance), 1))
        assert self.gater.head is not None
        return self.binarizer.evaluate(self.gater.head(features)).float()

    def _check(self, gates: Tensor, batch: int) -> Tensor:
        if gates.shape not in ((self.gate_count,), (batch, self.gate_count)):
            raise ValueError(
                f"gates of shape {tuple(gates.shape)} for {batch} images and {self.gate_count} "
                f"gates: give ({self.gate_count},) or ({batch}, {self.gate_count})"
            )
        gates = gates.float().expand(batch, self.gate_count).contiguous()
        if not _binary(gates):
            raise ValueError("gates must be 0 or 1: what is half open cannot be skipped")
        return gates


def compile(model: GatedModel, images: Tensor | None = None) -> CompiledGaterNet:
    """Return a form of `model` in evaluation mode that computes its open filters only.

    images: normalised examples (N, C, H, W), as large a batch as is meant to run: layers are timed
        on them, skipping and dense, and keep the faster; by default one random image

    The model is copied. What cannot be lowered runs masked, and `report` says why.

    Raises UserError where the gates are not decided by a gater, or are not 0 or 1.
    """
    if not isinstance(model, GaterNet):
        raise UserError(
            f"{type(model).__name__} decides on its gates layer by layer, on the way: only a "
            "GaterNet, whose gater decides first, can be compiled"
        )
    model = copy.deepcopy(model).eval()
    detach(model.backbone)
    like = next(model.parameters())
    if like.dtype != torch.float32:
        raise UserError(f"the model's weights are {like.dtype}: the kernels compute in float32")
    if images is None:
        images = torch.randn(1, *model.input_size, device=like.device)
    with torch.no_grad():
        gates = model.decide(images).gates.float()
    if not _binary(gates):
        raise UserError(
            f"{model.binarizer!r} gives gates between 0 and 1: what is half open cannot be skipped"
        )
    backbone = compile_backbone(model.backbone, model.points, images, gates)
    glance = model.gater.glance(images)
    extractor = compile_backbone(model.gater.extractor, (), glance, glance.new_ones(len(images), 1))
    return CompiledGaterNet(model, backbone, extractor)


def compile_backbone(
    backbone: nn.Module, points: Sequence[GatePoint], images: Tensor, gates: Tensor
) -> CompiledBackbone:
    """Return a plain backbone that computes what gates at `points` leave open.

    images, gates: examples (N, C, H, W) and (N, G), 0 or 1, that it is timed on
    """
    backbone = copy.deepcopy(backbone).eval()
    slow = load_kernels(images.device)
    masked = CompiledBackbone(_masked(backbone, points), Report(slow_because=slow))
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        flow = follow(trace(backbone, _size(images)), points)
        units = find_units(flow, backbone)
        whole = lower(flow, backbone, units)
    except UserError as error:
        return CompiledBackbone(masked.body, Report(masked_because=str(error)))
    chunk = _fastest_chunk(whole, images, gates)
    choices = _choose(whole, backbone, units, images[:chunk], gates[:chunk])
    dense = [unit for unit, choice in choices.items() if not choice.skips]
    layers = tuple(choices.values())
    compiled = CompiledBackbone(
        lower(flow, backbone, units, dense), Report(layers, chunk, slow_because=slow)
    )
    apart = relative_error(compiled(images, gates), masked(images, gates))
    if not apart <= TOLERANCE:
        reason = f"compiled, its outputs are {apart:.1e} of the largest away from the masked ones"
        return CompiledBackbone(masked.body, Report(masked_because=reason))
    return compiled


def _masked(backbone: nn.Module, points: Sequence[GatePoint]) -> MaskedBackbone:
    backbone = copy.deepcopy(backbone)
    return MaskedBackbone(backbone, attach(backbone, points))


def _size(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width


def _binary(gates: Tensor) -> bool:
    return bool(((gates == 0) | (gates == 1)).all())


def _join(parts: Sequence[Any]) -> Any:
    """One batch of several, of tensors or of lists of tensors."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [_join(several) for several in zip(*parts, strict=True)]


class _Timer(fx.Interpreter):
    """Runs a lowered backbone once, timing each unit against its dense form on its own input."""

    def __init__(self, lowered: fx.GraphModule, dense: Mapping[str, nn.Module]) -> None:
        super().__init__(lowered)
        self.dense = dense
        self.measured: dict[str, tuple[float, float]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self.dense:
            gated, dense = _milliseconds([self.submodules[target], self.dense[target]], *args)
            self.measured[target] = gated, dense
        return super().call_module(target, args, kwargs)


def _choose(
    lowered: fx.GraphModule,
    backbone: nn.Module,
    units: Sequence[Unit],
    images: Tensor,
    gates: Tensor,
) -> dict[Unit, LayerChoice]:
    """Time each unit in both forms on what the lowered backbone gives it."""
    names = {unit_name(units, unit): unit for unit in units}
    dense = {
        name: unit_module(unit, backbone, dense=True, rectified=False)
        for name, unit in names.items()
        if unit.layer.groups == 1
    }
    timer = _Timer(lowered, dense)
    timer.run(images, gates)
    choices = {}
    for name, unit in names.items():
        taken = timer.measured.get(name)
        skips = taken is not None and taken[0] <= taken[1]
        choices[unit] = LayerChoice(unit.layer.name, skips, *(taken or ()))
    return choices


def _milliseconds(forms: Sequence[Callable[..., Any]], *args: Tensor) -> list[float]:
    """Medians of several forms of one computation, taken in turns."""
    times: list[list[float]] = [[] for _ in forms]
    for _ in range(1 + _REPEATS):
        for form, taken in zip(forms, times, strict=True):
            given = (*args[:2], *(residual.clone() for residual in args[2:]))
            synchronise(args[0].device)
            start = time.perf_counter()
            form(*given)
            synchronise(args[0].device)
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken[1:]) for taken in times]


def _fastest_chunk(lowered: nn.Module, images: Tensor, gates: Tensor) -> int:
    """How many images at a time are fastest: small chunks stay in cache, large ones cost less."""
    sizes = [len(images)]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    forms = [CompiledBackbone(lowered, Report(chunk=size)) for size in sizes]
    times = _milliseconds(forms, images, gates)
    return sizes[times.index(min(times))]


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
