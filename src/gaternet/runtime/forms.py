"""The forms of one network that `gaternet bench latency` compares, each ready to run.

dense-eager         the plain backbone
dense-compiled      the same, torch.compile with frozen weights
dense-onnxruntime   the same, exported
masked              under gates as in training: everything is computed, then closed
compressed          masked too, after the filters that never open have left
runtime             `gaternet.runtime.compile`
slim-compiled       a plain network that has only as many filters as are open, compiled as the
                    dense one: the same arithmetic without a choice

All compute the same batches, one at each call: a batch that is computed again and again finds its
open filters in the caches, and may open more or fewer than others do.
"""

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor

from gaternet.accounting import MacCounter, count_macs
from gaternet.compression.network import CompressedBackbone
from gaternet.compression.plan import CompressionPlan, PointPlan
from gaternet.errors import UserError
from gaternet.gate_flow import follow
from gaternet.gate_points import GatePoint, detach
from gaternet.graph import trace
from gaternet.model import GaterNet
from gaternet.runtime.compiled import CompiledBackbone, CompiledGaterNet
from gaternet.runtime.compiler import compile, compile_backbone, masked_backbone
from gaternet.runtime.export import export
from gaternet.runtime.export_formats import Onnx, quiet
from gaternet.runtime.serving import Serving


@dataclass(frozen=True)
class Form:
    """One form of a network.

    run: computes the next batch; after the last comes the first
    open_share: share of the gates that are open, 1 where there are none
    macs: multiply-accumulates per image, the gater's included where it runs
    """

    variant: str
    run: Callable[[], Any]
    open_share: float
    macs: float


@dataclass(frozen=True)
class Forms:
    """The forms of a network that can run here, and why the others cannot.

    turns: how many batches each of them computes before it begins again
    """

    ready: tuple[Form, ...]
    missing: dict[str, str]
    turns: int


class Collector:
    """Collects forms; of one that cannot be made it notes why."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.ready: list[Form] = []
        self.missing: dict[str, str] = {}

    def add(
        self, variant: str, share: float, macs: float, make: Callable[[], Callable[[], Any]]
    ) -> None:
        try:
            with quiet():
                run = make()
        except (UserError, RuntimeError) as error:  # no compiler, no onnxruntime
            self.missing[variant] = str(error).strip().splitlines()[0]
        else:
            self.ready.append(Form(variant, run, share, macs))

    def forms(self) -> Forms:
        """Return what was collected."""
        return Forms(tuple(self.ready), self.missing, self.turns)


def dense_forms(backbone: nn.Module, batches: Sequence[Tensor]) -> Forms:
    """Return the forms of a plain network.

    batches: of images, (N, C, H, W) each
    """
    collector = Collector(len(batches))
    _add_dense(collector, backbone, batches)
    return collector.forms()


def given_gates(
    backbone: nn.Module,
    points: Sequence[GatePoint],
    batches: Sequence[Tensor],
    gates: Sequence[Tensor],
) -> Forms:
    """Return the forms of a backbone under given gates: no gater, nothing to compress.

    batches, gates: of images, (N, C, H, W) each, and of their gates, (N, G) each
    """
    counter = MacCounter(follow(trace(backbone, _size(batches)), points))
    every = torch.cat(tuple(gates))
    share, macs = _open_share(every), _needed_macs(counter, every)
    collector = Collector(len(batches))
    _add_dense(collector, backbone, batches)
    masked = masked_backbone(backbone, points)
    collector.add("masked", share, counter.backbone_macs, lambda: _eager(masked, batches, gates))

    def skipping() -> Callable[[], Any]:
        return _skipping(compile_backbone(backbone, points, batches[0], gates[0]), batches, gates)

    collector.add("runtime", share, macs, skipping)
    _add_slim(collector, backbone, points, batches, every)
    return collector.forms()


def own_gates(model: GaterNet, small: GaterNet | None, batches: Sequence[Tensor]) -> Forms:
    """Return the forms of a model under its own gates, its gater included.

    small: the compressed model, where there is one
    batches: of images, (N, C, H, W) each
    """
    size = model.input_size
    backbone = copy.deepcopy(model.backbone)
    detach(backbone)
    gates = _decided(model, batches)
    counter = count_macs(model, size)
    share, needed = _open_share(gates), _needed_macs(counter, gates)
    collector = Collector(len(batches))
    _add_dense(collector, backbone, batches)
    whole = counter.backbone_macs + counter.deciding_macs
    collector.add("masked", share, whole, lambda: _eager(model, batches))
    if small is not None:
        less = count_macs(small, size)
        macs = less.backbone_macs + less.deciding_macs
        left = _open_share(_decided(small, batches))
        collector.add("compressed", left, macs, lambda: _eager(small, batches))
    collector.add("runtime", share, needed, lambda: _compiled(model, batches))
    _add_slim(collector, backbone, model.points, batches, gates)
    return collector.forms()


def runtime_form(model: GaterNet, batches: Sequence[Tensor], macs: float) -> Form:
    """Return a model as `gaternet.runtime.compile` makes it.

    macs: multiply-accumulates that an image needs, mean

    Raises UserError, with the reason, where no filter is skipped.
    """
    return Form("runtime", _compiled(model, batches), _open_share(_decided(model, batches)), macs)


def _compiled(model: GaterNet, batches: Sequence[Tensor]) -> Callable[[], Any]:
    return _skipping(compile(model, batches[0]), batches)


@torch.no_grad()
def _decided(model: GaterNet, batches: Sequence[Tensor]) -> Tensor:
    """Return the gates of all batches' images, (N, G)."""
    return torch.cat([model.decide(images).gates for images in batches])


def _open_share(gates: Tensor) -> float:
    return float(gates.mean())


def _needed_macs(counter: MacCounter, gates: Tensor) -> float:
    return float(counter(gates.double().cpu()).sum(dim=1).mean())


def _call(form: Callable[..., Any], *operands: Sequence[Tensor]) -> Callable[[], Any]:
    """Return a function of nothing, after a first run: what is built at first use is built.

    operands: each with a tensor for each batch
    """
    turns = cycle(tuple(zip(*operands, strict=True)))

    @torch.no_grad()
    def run() -> Any:
        return form(*next(turns))

    run()
    return run


def _eager(
    network: nn.Module, batches: Sequence[Tensor], *more: Sequence[Tensor]
) -> Callable[[], Any]:
    """Return a network as PyTorch runs it, in the memory layout that is training's default."""
    network = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    return _call(network, _channels_last(batches), *more)


def _skipping(
    compiled: CompiledBackbone | CompiledGaterNet, *operands: Sequence[Tensor]
) -> Callable[[], Any]:
    """Return a compiled form; raise UserError, with the reason, for one that skips no filter."""
    report = compiled.report
    if reason := report.masked_because or report.slow_because:
        raise UserError(f"no filter is skipped: {reason}")
    return _call(compiled, *operands)


def _add_dense(collector: Collector, backbone: nn.Module, batches: Sequence[Tensor]) -> None:
    macs = trace(backbone, _size(batches)).total_macs
    collector.add("dense-eager", 1.0, macs, lambda: _eager(backbone, batches))
    collector.add("dense-compiled", 1.0, macs, lambda: _frozen(backbone, batches))
    if batches[0].device.type == "cpu":
        collector.add("dense-onnxruntime", 1.0, macs, lambda: _exported(backbone, batches))


def _add_slim(
    collector: Collector,
    backbone: nn.Module,
    points: Sequence[GatePoint],
    batches: Sequence[Tensor],
    gates: Tensor,
) -> None:
    size = _size(batches)
    slim = slimmed(backbone, points, gates, size)
    macs = trace(slim, size).total_macs
    collector.add("slim-compiled", 1.0, macs, lambda: _frozen(slim, batches))


def slimmed(
    backbone: nn.Module, points: Sequence[GatePoint], gates: Tensor, size: tuple[int, int, int]
) -> nn.Module:
    """Return a plain network with as many filters at each gate point as are open on average.

    gates: (N, G); the gates that open most stay, at least one a point
    """
    mask = torch.zeros_like(gates[0])
    start = 0
    for point in points:
        opened = gates[:, start : start + point.gates].sum(dim=0)
        count = max(1, round(float(opened.sum()) / len(gates)))
        mask[start + opened.argsort(descending=True)[:count]] = 1
        start += point.gates
    return under_mask(backbone, points, mask, size)


def under_mask(
    backbone: nn.Module, points: Sequence[GatePoint], mask: Tensor, size: tuple[int, int, int]
) -> nn.Module:
    """Return a plain network without the filters that a mask (G,) closes for all images."""
    plans, start = [], 0
    for point in points:
        gone = set((mask[start : start + point.gates] == 0).nonzero().flatten().tolist())
        # By channel: in a compressed network some have no gate.
        closed = [gate in gone for gate in point.gate_of_channels]
        off = tuple(channel for channel, is_closed in enumerate(closed) if is_closed)
        on = tuple(channel for channel, is_closed in enumerate(closed) if not is_closed)
        plans.append(PointPlan(point.name, point.channels, 1, 0, off, on, ()))
        start += point.gates
    plan = CompressionPlan("", 1, None, 0, tuple(plans), {})
    return CompressedBackbone(backbone, plan, size).eval().to(mask.device)


def _frozen(network: nn.Module, batches: Sequence[Tensor]) -> Callable[[], Any]:
    """Return a network compiled for one shape, its weights constants, layouts chosen for them."""
    network = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA: no matter
    # Around the first run: as an option of torch.compile it would come too late for the trace.
    with inductor.patch(freezing=True), dynamo.patch(recompile_limit=64):
        return _call(torch.compile(network, dynamic=False), _channels_last(batches))


def _size(batches: Sequence[Tensor]) -> tuple[int, int, int]:
    _, channels, height, width = batches[0].shape
    return channels, height, width


def _channels_last(batches: Sequence[Tensor]) -> list[Tensor]:
    return [images.contiguous(memory_format=torch.channels_last) for images in batches]


def _exported(backbone: nn.Module, batches: Sequence[Tensor]) -> Callable[[], Any]:
    onnx = Onnx()
    if onnx.runtime() is None:
        raise UserError("onnxruntime is not installed: pip install 'gaternet[export]'")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dense.onnx"
        export(backbone, file, Serving(_size(batches)))
        return _call(onnx.open(file), batches)
