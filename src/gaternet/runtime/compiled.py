"""What compiling gives: a backbone that skips closed filters or runs masked, a model around it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaternet.gate_points import GateHolder, GatePoint, attach
from gaternet.model import GaterNet, GaterNetOutput
from gaternet.runtime.build import load_cpu_kernels


@dataclass(frozen=True)
class LayerChoice:
    """How a conv or linear layer is computed: `skips` what is closed or not, and what both take.

    gated_ms, dense_ms: milliseconds, the fastest of some runs at the example's shapes and gates;
        None where there was no choice
    """

    name: str
    skips: bool
    gated_ms: float | None = None
    dense_ms: float | None = None


@dataclass(frozen=True)
class Report:
    """What became of a backbone.

    layers: its convs and linear layers, in the order of execution
    chunk: how many images are computed at a time; None where it runs masked
    image_size: (C, H, W) of the images that it takes; None where it runs masked, which takes any
    masked_because: why the backbone runs masked, all filters computed; None where it does not
    slow_because: why the operator is plain PyTorch, which skips nothing; None where it is not
    """

    layers: tuple[LayerChoice, ...] = ()
    chunk: int | None = None
    image_size: tuple[int, ...] | None = None
    masked_because: str | None = None
    slow_because: str | None = None


class CompiledBackbone(nn.Module):
    """Images (N, C, H, W) and gates (N, G), 0 or 1 → what the backbone returns under them.

    Computed in float32, also under autocast, and without gradients. Several threads may call it at
    once. Raises ValueError for images of another size than it was compiled for.
    """

    def __init__(self, body: nn.Module, report: Report) -> None:
        super().__init__()
        self.body = body
        self.report = report
        self.eval()

    def forward(self, images: Tensor, gates: Tensor) -> Any:
        size, chunk = self.report.image_size, self.report.chunk
        if size is not None and tuple(images.shape[1:]) != size:
            raise ValueError(
                f"images of shape {tuple(images.shape)} for a backbone that was compiled for "
                f"(N, {', '.join(map(str, size))}): compile it again with examples of that size"
            )
        with evaluation(images.device):
            gates = gates.float()  # the kernels take no booleans
            # An exported batch is open: there is no number of parts to it.
            if chunk is None or torch.compiler.is_exporting():
                return self.body(images, gates)
            images = images.contiguous(memory_format=torch.channels_last)
            if len(images) <= chunk:
                return self.body(images, gates)
            parts = zip(images.split(chunk), gates.split(chunk), strict=True)
            return _join([self.body(*part) for part in parts])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        load_cpu_kernels()  # in another process than the one that compiled it


class MaskedBackbone(nn.Module):
    """A backbone under gate hooks; one thread at a time, because they hold the gates."""

    def __init__(self, backbone: nn.Module, holder: GateHolder) -> None:
        super().__init__()
        self.backbone = backbone
        self.holder = holder

    def forward(self, images: Tensor, gates: Tensor) -> Any:
        with self.holder.lock:
            self.holder.arm(gates)
            return self.backbone(images)


class CompiledGaterNet(nn.Module):
    """A GaterNet in evaluation mode that computes its open filters only; see `compile`.

    gate_logits: the gater, from images as it sees them, scaled
    """

    def __init__(
        self, model: GaterNet, backbone: CompiledBackbone, gate_logits: CompiledBackbone
    ) -> None:
        super().__init__()
        self.gate_count = model.gate_count
        self.slices = model.slices
        self.gater = model.gater
        self.binarizer = model.binarizer
        self.backbone = backbone
        self.gate_logits = gate_logits
        self.eval()

    @property
    def report(self) -> Report:
        """How each layer is computed, and why."""
        return self.backbone.report

    def forward(self, images: Tensor, gates: Tensor | None = None) -> GaterNetOutput:
        """Return logits and gates, as the model does; `gates` (N, G) or (G,), 0 or 1.

        Raises ValueError for gates of another shape, or that are neither 0 nor 1, and for images
        of another size than it was compiled for.
        """
        gates = self.decide(images) if gates is None else self._check(gates, len(images))
        return GaterNetOutput(self.backbone(images, gates), gates)

    def decide(self, images: Tensor) -> Tensor:
        """Return all gates (N, G), 0 or 1, as the gater decides."""
        with evaluation(images.device):
            glance = self.gater.glance(images)
            logits = self.gate_logits(glance, no_gates(glance))
            return self.binarizer.evaluate(logits).float()

    def _check(self, gates: Tensor, batch: int) -> Tensor:
        if gates.shape not in ((self.gate_count,), (batch, self.gate_count)):
            raise ValueError(
                f"gates of shape {tuple(gates.shape)} for {batch} images and {self.gate_count} "
                f"gates: give ({self.gate_count},) or ({batch}, {self.gate_count})"
            )
        gates = gates.float().expand(batch, self.gate_count).contiguous()
        if not is_binary(gates):
            raise ValueError("gates must be 0 or 1: what is half open cannot be skipped")
        return gates


def masked_backbone(backbone: nn.Module, points: Sequence[GatePoint]) -> MaskedBackbone:
    """Return a copy of a backbone that runs under the gates it is given."""
    backbone = deepcopy(backbone)
    return MaskedBackbone(backbone, attach(backbone, points))


def is_binary(gates: Tensor) -> bool:
    """Whether all gates are 0 or 1."""
    return bool(((gates == 0) | (gates == 1)).all())


def no_gates(images: Tensor) -> Tensor:
    """Return the gates of a network that has none, (N, 0)."""
    return images.new_empty(images.shape[0], 0)  # not len(): an export would fix it


@contextmanager
def evaluation(device: torch.device) -> Iterator[None]:
    """Compute without gradients and in the dtype of the weights."""
    with torch.no_grad():
        # To switch off what is off takes as long as a layer. A program is run under another's.
        if not torch.is_autocast_enabled(device.type) and not torch.compiler.is_exporting():
            yield
            return
        with torch.autocast(device.type, enabled=False):
            yield


def _join(parts: Sequence[Any]) -> Any:
    """One batch of several, of tensors or of lists of tensors."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    return type(first)(_join(several) for several in zip(*parts, strict=True))
