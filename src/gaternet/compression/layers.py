"""Layers of a compressed network: parts of layers, and what puts channels back in their places."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Mask = NDArray[np.bool_]


class Select(nn.Module):
    """Some of the channels: (…, C, …) → (…, len(places), …)."""

    places: Tensor

    def __init__(self, places: Sequence[int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.places)

    def extra_repr(self) -> str:
        return f"{len(self.places)} channels"


class Scatter(nn.Module):
    """Channels to their places among `channels`, 0 or a constant at the others.

    values: (channels,), what the others hold and 0 at the places; None: 0 everywhere
    """

    sources: Tensor
    values: Tensor | None

    def __init__(
        self, places: Sequence[int], channels: int, dim: int, values: Tensor | None
    ) -> None:
        super().__init__()
        self.dim = dim
        kept = len(places)
        # Gathered, not scattered: it compiles into what follows, and is one Gather in ONNX.
        sources = torch.full((channels,), kept)
        sources[list(places)] = torch.arange(kept)
        self.register_buffer("sources", sources, persistent=False)
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        zero = x.new_zeros([1 if axis == self.dim else n for axis, n in enumerate(x.shape)])
        spread = torch.cat((x, zero), self.dim).index_select(self.dim, self.sources)
        return spread if self.values is None else spread + _along(self.values, self.dim, x.ndim)

    def extra_repr(self) -> str:
        return f"{len(self.sources)} channels"


class Constant(nn.Module):
    """A feature map that is the same for every image, of the size that the network was traced with.

    values: (channels,); shape: that of the feature map without the batch, such as (C, H, W)
    """

    values: Tensor

    def __init__(self, values: Tensor, shape: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.shape = shape
        self.dim = dim
        self.register_buffer("values", values)

    def forward(self, images: Tensor) -> Tensor:
        values = _along(self.values, self.dim, len(self.shape) + 1)
        return values.expand(images.shape[0], *self.shape)

    def extra_repr(self) -> str:
        return " × ".join(map(str, self.shape))


def part_of_filter(
    layer: nn.Module, outputs: Mask, inputs: Mask, constants: Tensor | None
) -> nn.Module:
    """Return a conv or linear layer that makes some outputs of some inputs.

    constants: (in,), what the inputs that are left out hold (0 at the others): they come into the
        bias; None: 0
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    part = _copy_of(layer)
    kept = _places(outputs, layer.weight)
    weight, bias = layer.weight.detach(), layer.bias
    rows = weight.index_select(0, kept)
    part.weight = nn.Parameter(rows.index_select(1, _places(inputs, weight)))
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().index_select(0, kept))
    if constants is not None:
        share = response(rows, constants)
        part.bias = nn.Parameter(share if part.bias is None else part.bias.detach() + share)
    _resize(part, int(inputs.sum()), int(outputs.sum()))
    return part


def part_of_depthwise(layer: nn.Module, kept: Mask) -> nn.Module:
    """Return a depthwise conv of some of its channels."""
    assert isinstance(layer, nn.Conv2d)
    part = _copy_of(layer)
    places = _places(kept, layer.weight)
    part.weight = nn.Parameter(layer.weight.detach().index_select(0, places))
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.detach().index_select(0, places))
    part.groups = len(places)
    _resize(part, len(places), len(places))
    return part


def part_of_norm(norm: nn.Module, kept: Mask) -> nn.Module:
    """Return a BatchNorm of some of its channels."""
    assert isinstance(norm, _BatchNorm)
    part = copy.deepcopy(norm)
    places = _places(kept, norm.running_mean)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(part, name, nn.Parameter(parameter.detach().index_select(0, places)))
    for name, buffer in norm.named_buffers(recurse=False):
        if buffer.ndim:
            setattr(part, name, buffer.index_select(0, places))
    part.num_features = len(places)
    return part


def response(weight: Tensor, constants: Tensor) -> Tensor:
    """Return what a filter (out, in, …) makes of channels that hold constants (in,): (out,)."""
    taps = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    return (taps @ constants.double()).to(weight.dtype)


def _copy_of(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Return the layer without copying its weights, which are about to be replaced."""
    tensors = (layer.weight, *(() if layer.bias is None else (layer.bias,)))
    return copy.deepcopy(layer, {id(tensor): tensor for tensor in tensors})


def _resize(layer: nn.Conv2d | nn.Linear, inputs: int, outputs: int) -> None:
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    else:
        layer.in_channels, layer.out_channels = inputs, outputs


def _places(kept: Mask, like: Tensor | None) -> Tensor:
    assert like is not None
    return torch.from_numpy(np.flatnonzero(kept)).to(like.device)


def _along(values: Tensor, dim: int, rank: int) -> Tensor:
    return values.reshape([-1 if axis == dim else 1 for axis in range(rank)])
