"""The modules of a lowered backbone: units that skip what is closed, units that do not, gates."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gaternet.gate_flow import UNGATED, Gates
from gaternet.runtime.operator import (
    Geometry,
    gated_conv2d,
    gated_conv2d_add_,
    pack_bias,
    pack_weight,
    spread,
)
from gaternet.runtime.units import Unit


class GatedConv2d(nn.Module):
    """A unit by the operator: images, gates (N, G) and a residual → (N, O, H', W').

    The residual is overwritten; `rectified` says that it is never negative.
    """

    weight: Tensor
    bias: Tensor
    input_gates: Tensor
    output_gates: Tensor

    def __init__(self, conv: nn.Conv2d, unit: Unit, rectified: bool) -> None:
        super().__init__()
        weight, bias = fold(conv, unit.norm)
        self.register_buffer("weight", pack_weight(weight))
        self.register_buffer("bias", pack_bias(bias))
        self.register_buffer("input_gates", torch.tensor(unit.layer.inputs, dtype=torch.int32))
        self.register_buffer("output_gates", torch.tensor(unit.layer.outputs, dtype=torch.int32))
        self.geometry = _geometry(conv)
        self.relu = unit.relu
        self.rectified = rectified

    def forward(self, x: Tensor, gates: Tensor, residual: Tensor | None = None) -> Tensor:
        how = self.geometry
        operands = (x, self.weight, self.bias, gates, self.input_gates, self.output_gates)
        moves = (how.stride, how.padding, how.dilation, self.relu)
        if residual is None:
            return gated_conv2d(*operands, *moves)
        gated_conv2d_add_(residual, *operands, *moves, self.rectified)
        return residual


class DenseConv2d(nn.Module):
    """A unit by PyTorch's own conv: every filter is computed, then closed."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, unit: Unit) -> None:
        super().__init__()
        weight, bias = fold(conv, unit.norm)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        outputs = unit.layer.outputs
        self.mask = Mask(outputs) if any(gate != UNGATED for gate in outputs) else None
        self.geometry = _geometry(conv)
        self.groups = conv.groups
        self.relu = unit.relu

    def forward(self, x: Tensor, gates: Tensor, residual: Tensor | None = None) -> Tensor:
        how = self.geometry
        y = F.conv2d(x, self.weight, self.bias, how.stride, how.padding, how.dilation, self.groups)
        if self.mask is not None:
            y = self.mask(y, gates)
        if residual is not None:
            y += residual
        return y.relu_() if self.relu else y


class Mask(nn.Module):
    """Multiplies channels by their gates, where no operator does."""

    columns: Tensor

    def __init__(self, columns: Gates) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int32))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        return x * spread(gates, self.columns)


def fold(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a conv with the BatchNorm behind it, as evaluation has it."""
    weight = conv.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is not None:
        assert isinstance(norm, _BatchNorm)
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            scale, shift = scale * norm.weight.double(), shift * norm.weight.double()
            shift = shift + norm.bias.double()
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return weight.detach().to(conv.weight.dtype), bias.detach().to(conv.weight.dtype)


def _geometry(conv: nn.Conv2d) -> Geometry:
    assert not isinstance(conv.padding, str)
    return Geometry(list(conv.stride), list(conv.padding), list(conv.dilation))
