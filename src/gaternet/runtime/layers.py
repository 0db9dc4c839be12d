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
        self.register_buffer("input_gates", _columns(unit.layer.inputs, weight.device))
        self.register_buffer("output_gates", _columns(unit.layer.outputs, weight.device))
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
        self.mask = _mask(unit, weight.device)
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


class GatedLinear(nn.Module):
    """A linear layer's unit by the operator, as a 1×1 conv: features (N, C), gates → (N, O)."""

    def __init__(self, linear: nn.Linear, unit: Unit) -> None:
        super().__init__()
        self.pointwise = GatedConv2d(_pointwise(linear), unit, rectified=False)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        y: Tensor = self.pointwise(x[..., None, None], gates)
        return y.flatten(1)


class DenseLinear(nn.Module):
    """A linear layer's unit by PyTorch's own: every output is computed, then closed."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, unit: Unit) -> None:
        super().__init__()
        weight, bias = fold(linear, unit.norm)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.mask = _mask(unit, weight.device)
        self.relu = unit.relu

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.mask is not None:
            y = self.mask(y[..., None, None], gates).flatten(1)
        return y.relu_() if self.relu else y


class Mask(nn.Module):
    """Multiplies channels by their gates, where no operator does."""

    columns: Tensor

    def __init__(self, columns: Gates, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("columns", _columns(columns, device))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        return x * spread(gates, self.columns)


def fold(layer: nn.Conv2d | nn.Linear, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer with the BatchNorm behind it, as evaluation has it.

    Without a norm the weight is the layer's own, not a copy.
    """
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if norm is None:
        return weight, bias
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double()
        shift = shift + norm.bias.double()
    per_filter = scale.view(-1, *[1] * (weight.ndim - 1))
    folded = weight.double() * per_filter, bias.double() * scale + shift
    return folded[0].detach().to(weight.dtype), folded[1].detach().to(weight.dtype)


def _columns(gates: Gates, device: torch.device) -> Tensor:
    return torch.tensor(gates, dtype=torch.int32, device=device)


def _mask(unit: Unit, device: torch.device) -> Mask | None:
    outputs = unit.layer.outputs
    return Mask(outputs, device) if any(gate != UNGATED for gate in outputs) else None


def _geometry(conv: nn.Conv2d) -> Geometry:
    assert not isinstance(conv.padding, str)
    return Geometry(list(conv.stride), list(conv.padding), list(conv.dilation))


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    """Return a linear layer as a 1×1 conv with the same weights, not copies."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach()[..., None, None], requires_grad=False)
    conv.bias = linear.bias
    return conv
