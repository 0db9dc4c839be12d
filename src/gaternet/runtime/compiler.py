"""`compile`: a gated model that computes its open filters only, layer by layer where that pays."""

import copy
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaternet.binarizers import GateForm
from gaternet.channels import is_batch_dependent
from gaternet.errors import UserError
from gaternet.evaluation_mode import exact_products
from gaternet.gate_flow import follow
from gaternet.gate_points import GatePoint, detach
from gaternet.graph import trace
from gaternet.model import GatedModel, GaterNet
from gaternet.runtime.build import load_kernels
from gaternet.runtime.chains import chained
from gaternet.runtime.compiled import (
    CompiledBackbone,
    CompiledGaterNet,
    LayerChoice,
    MaskedBackbone,
    Report,
    evaluation,
    is_binary,
    masked_backbone,
    no_gates,
)
from gaternet.runtime.lowering import lower, unit_module, unit_name
from gaternet.runtime.units import Unit, find_units
from gaternet.verification import relative_error

TOLERANCE = 1e-4
"""Largest max|Δ logits| / max|logits| between masked and compiled that passes for rounding."""

CLEARLY = 0.05
"""A layer becomes dense where that is faster by more than this share of its time: it then pays for
open and closed filters alike, and other images close others."""

_REPEATS = 5


def compile(model: GatedModel, images: Tensor | None = None) -> CompiledGaterNet:
    """Return a form of `model` in evaluation mode that computes its open filters only.

    images: normalised examples (N, C, H, W), as large a batch as is meant to run: layers are timed
        on them, skipping and dense, and keep the faster; by default one random image

    The model is copied. What cannot be lowered runs masked, and `report` says why.

    Raises UserError where the gates are not decided by a gater, or are not 0 or 1, and where the
    weights are not float32.
    """
    if not isinstance(model, GaterNet):
        raise UserError(
            f"{type(model).__name__} decides on its gates layer by layer, on the way: only a "
            "GaterNet, whose gater decides first, can be compiled"
        )
    _check_weights(model)
    model = copy.deepcopy(model).eval()
    detach(model.backbone)
    if images is None:
        images = torch.randn(1, *model.input_size, generator=torch.Generator().manual_seed(0))
        images = images.to(next(model.gater.parameters()).device)
    with evaluation(images.device):
        gates = model.decide(images).gates.float()
        glance = model.gater.glance(images)
    if model.binarizer.form is not GateForm.HARD or not is_binary(gates):
        raise UserError(
            f"{model.binarizer!r} gives gates between 0 and 1: what is half open cannot be skipped"
        )
    backbone = compile_backbone(model.backbone, model.points, images, gates)
    assert model.gater.head is not None
    gater = nn.Sequential(model.gater.extractor, model.gater.head)
    gate_logits = compile_backbone(gater, (), glance, no_gates(glance))
    return CompiledGaterNet(model, backbone, gate_logits)


def compile_backbone(
    backbone: nn.Module, points: Sequence[GatePoint], images: Tensor, gates: Tensor
) -> CompiledBackbone:
    """Return a plain backbone that computes what gates at `points` leave open.

    images, gates: examples (N, C, H, W) and (N, G), 0 or 1, that it is timed on

    Raises ValueError for examples of other shapes, UserError for weights that are not float32.
    """
    _check_weights(backbone)
    _check_examples(points, images, gates)
    backbone = copy.deepcopy(backbone).eval()
    slow = load_kernels(images.device)
    masked = masked_backbone(backbone, points)
    with evaluation(images.device):
        masked(images.clone(), gates)  # if it does not run either, that is no matter of compiling
        try:
            return _compile(backbone, points, (images, gates.float()), masked, slow)
        except UserError as error:
            reason = str(error)
        except Exception as error:  # whatever a user's own operations raise
            reason = f"lowered, it does not run: {_explain(error)}"
    return CompiledBackbone(masked, Report(masked_because=reason, slow_because=slow))


def _compile(
    backbone: nn.Module,
    points: Sequence[GatePoint],
    examples: tuple[Tensor, Tensor],
    masked: MaskedBackbone,
    slow: str | None,
) -> CompiledBackbone:
    for name, module in backbone.named_modules():
        if is_batch_dependent(module):
            raise UserError(f"`{name}` normalises by statistics of the batch, which runs in parts")
    images, gates = examples
    size = (images.shape[1], images.shape[2], images.shape[3])
    flow = follow(trace(backbone, size), points)
    units = find_units(flow, backbone)
    # PyTorch reads a linear layer's weights once a chunk, the operator once an image: all skipping,
    # larger chunks would never be seen to pay.
    linear = [unit for unit in units if isinstance(flow.graph.module(unit.start), nn.Linear)]
    whole = lower(flow, backbone, units, linear)
    # Another batch size too: Python that asks for it makes it a constant of the trace.
    _compare(fx.Interpreter(whole).run, masked, *(torch.cat([e, e[:1]]) for e in examples))
    chunk = _fastest_chunk(chained(whole), images, gates)
    last = images.contiguous(memory_format=torch.channels_last)
    choices = _choose(whole, backbone, units, linear, (last[:chunk], gates[:chunk]))
    dense = [unit for unit, choice in choices.items() if not choice.skips]
    report = Report(tuple(choices.values()), chunk, size, slow_because=slow)
    compiled = CompiledBackbone(chained(lower(flow, backbone, units, dense)), report)
    _compare(compiled, masked, images, gates)
    return compiled


@exact_products()
def _compare(
    form: Callable[..., Any], masked: MaskedBackbone, images: Tensor, gates: Tensor
) -> None:
    """Raise UserError where a form does not return what the masked backbone does."""
    expected = masked(images.clone(), gates)
    if not isinstance(expected, Tensor | list | tuple):
        raise UserError(f"it returns a {type(expected).__name__}, not tensors or a list of them")
    last = images.clone(memory_format=torch.channels_last)
    found = form(last, gates)
    try:
        apart = relative_error(found, expected)
    except ValueError as error:  # of other shapes
        raise UserError(f"its outputs would have other shapes: {error}") from error
    if not apart <= TOLERANCE:
        raise UserError(f"its outputs would differ from the masked by {apart:.1e} of the largest")


def _check_weights(module: nn.Module) -> None:
    tensors = (*module.named_parameters(), *module.named_buffers())
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(f"`{name}` is {tensor.dtype}: the kernels compute in float32")


def _check_examples(points: Sequence[GatePoint], images: Tensor, gates: Tensor) -> None:
    if images.ndim != 4 or not len(images):
        raise ValueError(f"example images are {tuple(images.shape)}: give (N, C, H, W), N ≥ 1")
    expected = (len(images), sum(point.gates for point in points))
    if gates.shape != expected:
        raise ValueError(f"example gates are {tuple(gates.shape)}, not {expected}")
    if not is_binary(gates):
        raise ValueError("example gates must be 0 or 1: what is half open cannot be skipped")


def _explain(error: Exception) -> str:
    """What an operation of a lowered graph raised, and which operation it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    where = next((line for line in lines[1:] if line.startswith("While executing")), None)
    return first if where is None else f"{first} ({where})"


class _Timer(fx.Interpreter):
    """Runs a lowered backbone once, timing each unit against its other form on its own input."""

    def __init__(self, lowered: fx.GraphModule, others: Mapping[str, nn.Module]) -> None:
        super().__init__(lowered)
        self.others = others
        self.measured: dict[str, list[float]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self.others:
            forms = [self.submodules[target], self.others[target]]
            self.measured[target] = _milliseconds(forms, *args)
        return super().call_module(target, args, kwargs)


def _choose(
    lowered: fx.GraphModule,
    backbone: nn.Module,
    units: Sequence[Unit],
    dense: Collection[Unit],
    examples: tuple[Tensor, Tensor],
) -> dict[Unit, LayerChoice]:
    """Time each unit in both forms on what the lowered backbone, some dense in it, gives it.

    Each by a call of its own, which a unit that skips may be spared in the end (`chains.py`): dense
    is favoured by some microseconds.
    """
    names = {unit_name(units, unit): unit for unit in units}
    others = {
        name: unit_module(unit, backbone, dense=unit not in dense, rectified=False)
        for name, unit in names.items()
        if unit.layer.groups == 1
    }
    timer = _Timer(lowered, others)
    timer.run(*examples)
    choices = {}
    for name, unit in names.items():
        taken = timer.measured.get(name, [])
        if unit in dense:
            taken.reverse()
        skips = bool(taken) and taken[0] <= (1 + CLEARLY) * taken[1]
        choices[unit] = LayerChoice(unit.layer.name, skips, *taken)
    return choices


def _milliseconds(forms: Sequence[Callable[..., Any]], *args: Tensor) -> list[float]:
    """The fastest runs of several forms of one computation, taken in turns.

    Not their medians: whatever else the machine does only ever makes a run slower.
    """
    times: list[list[float]] = [[] for _ in forms]
    for _ in range(1 + _REPEATS):
        for form, taken in zip(forms, times, strict=True):
            given = (*args[:2], *(residual.clone() for residual in args[2:]))
            synchronise(args[0].device)
            start = time.perf_counter()
            form(*given)
            synchronise(args[0].device)
            taken.append(1e3 * (time.perf_counter() - start))
    return [min(taken[1:]) for taken in times]


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
