"""Models under gates fixed at random, and how far a compressed one is from the masked."""

import numpy as np
import torch
from torch import Tensor, nn

from gaternet import GatePoint, Gater, GaterNet
from gaternet.analysis import GateRecord
from gaternet.compression import backbone_of
from gaternet.model import Points
from small_networks import conv

IMAGES = 12


def gated(
    backbone: nn.Module, size: tuple[int, int, int], points: Points | None = None
) -> GaterNet:
    """Return a float64 model in evaluation mode, its norms and biases away from 0 and 1."""
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    extractor = nn.Sequential(conv(size[0], 4), nn.ReLU(), *pool)
    model = GaterNet(backbone, Gater(extractor, bottleneck=4), points, size)
    generator = torch.Generator().manual_seed(1)
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        if tensor.ndim == 1:
            tensor.data.uniform_(0.2, 0.8, generator=generator)
    return model.double().eval()


def record_of(model: GaterNet, off: float, on: float, seed: int = 0) -> GateRecord:
    """Return gates of which shares never open and never close, the rest at random."""
    generator = np.random.default_rng(seed)
    gates = generator.random((IMAGES, model.gate_count)) < 0.5
    gates[0], gates[1] = True, False  # whatever is neither off nor on is seen both ways
    fate = generator.random(model.gate_count)
    fate[-1] = (off + 1 - on) / 2  # one at least is left
    gates[:, fate < off] = False
    gates[:, fate > 1 - on] = True
    return GateRecord(np.packbits(gates, axis=1), model.slices)


def record_with(model: GaterNet, off: list[int], on: list[int]) -> GateRecord:
    """Return gates of which those columns never open, and those never close."""
    gates = np.arange(IMAGES)[:, None] % 2 == np.ones(model.gate_count)
    gates[:, off], gates[:, on] = False, True
    return GateRecord(np.packbits(gates, axis=1), model.slices)


def columns_of(small: GaterNet) -> list[int]:
    return list(backbone_of(small).columns)


@torch.no_grad()
def distance(model: GaterNet, small: GaterNet, record: GateRecord, side: int) -> float:
    """Return max|Δ logits| / max|logits| under the recorded gates, one image each."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(len(record), 3, side, side, generator=generator).to(dtype)
    gates = torch.from_numpy(record.gates()).to(dtype)
    masked = _features(model(images, gates=gates).logits)
    compressed = _features(small(images, gates=gates[:, columns_of(small)]).logits)
    return float((masked - compressed).abs().max() / masked.abs().max())


def inner_points(backbone: nn.Module) -> list[str]:
    """Return every BatchNorm: gates on both sides of most convs."""
    return [name for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def blocks(points: tuple[GatePoint, ...], block: int) -> list[GatePoint]:
    return [GatePoint(point.name, point.channels, block) for point in points]


def _features(output: Tensor | list[Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat([o.flatten(1) for o in output], 1)
