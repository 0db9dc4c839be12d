"""The operators `gaternet::gated_conv2d`, …: convolutions of what their gates leave open.

    y[n, o] = activation((y[n, o] +) gate(n, o) · (bias[o] + Σ weight[o, c] ∗ x[n, c]))

where the sum is over open channels c; `…_add_` adds to y, and `…_chain` computes several, each from
what others made. Shapes are dense and do not depend on gates, so a graph with them stays static.
They have a C++ kernel for CPUs, a Triton kernel for CUDA, and this file's plain PyTorch where
neither can be had.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LANES = 16
"""Filters in a packed block: what a kernel computes or skips together."""

Pair = Sequence[int]

_OPERANDS = (
    "Tensor x, Tensor weight, Tensor bias, Tensor gates, Tensor input_gates, Tensor output_gates, "
    "int[2] stride, int[2] padding, int[2] dilation, bool relu"
)
torch.library.define("gaternet::gated_conv2d", f"({_OPERANDS}) -> Tensor")
torch.library.define(
    "gaternet::gated_conv2d_add_", f"(Tensor(a!) y, {_OPERANDS}, bool rectified) -> ()"
)
torch.library.define(
    "gaternet::gated_conv2d_chain",
    "(Tensor[] images, Tensor gates, Tensor[] parameters, int[] steps, int[] kept) -> Tensor[]",
)

STEP = 10
"""Numbers that spell a step of a chain: what it reads, what it adds to or −1, relu, rectified; then
stride, padding and dilation, two each."""
PARAMETERS = ("weight", "bias", "input_gates", "output_gates")
"""Tensors of a step."""


def pack_weight(weight: Tensor) -> Tensor:
    """Return filters (O, C, KH, KW) in blocks, (⌈O / 16⌉, KH, KW, C, 16), filled up with zeros."""
    filters, channels, height, width = weight.shape
    missing = -filters % LANES
    # Not by nothing: that copies, and a linear layer's weights may be most of a network's.
    filled = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else weight
    blocks = filled.view(-1, LANES, channels, height, width)
    return blocks.permute(0, 3, 4, 2, 1).contiguous()


def pack_bias(bias: Tensor) -> Tensor:
    """Return a bias (O,) filled up with zeros to whole blocks."""
    return F.pad(bias, (0, -len(bias) % LANES))


def unpack_weight(packed: Tensor, filters: int) -> Tensor:
    """Return the filters (O, C, KH, KW) that `pack_weight` packed."""
    return packed.permute(0, 4, 3, 1, 2).flatten(0, 1)[:filters]


def spread(gates: Tensor, columns: Tensor) -> Tensor:
    """Return the gates (N, G) of each channel, (N, C, 1, 1): 1 where none is named (column −1)."""
    return F.pad(gates, (0, 1), value=1.0)[:, columns][..., None, None]


@dataclass(frozen=True)
class Geometry:
    """How a conv's kernel moves over its image: vertically, horizontally."""

    stride: Pair
    padding: Pair
    dilation: Pair

    def output(self, image: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Return the height and width of the output."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True)]
        sides = zip(image, self.padding, reach, self.stride, strict=True)
        return [(side + 2 * padding - r) // stride + 1 for side, padding, r, stride in sides]


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gates: Tensor,
    input_gates: Tensor,
    output_gates: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    filters = unpack_weight(weight, len(output_gates))
    given = torch.where(spread(gates, input_gates) == 0, 0.0, x)
    y = F.conv2d(given, filters, bias[: len(filters)], list(stride), list(padding), list(dilation))
    scale = spread(gates, output_gates)
    # Not only a product: what is closed is 0, whatever was computed for it.
    return torch.where(scale == 0, 0.0, y * scale).contiguous(memory_format=torch.channels_last)


def gated_conv2d_reference(*operands: Any) -> Tensor:
    """Compute `gated_conv2d` in plain PyTorch: everything, then zeros.

    x: (N, C, H, W); weight, bias: as packed; gates: (N, G); input_gates, output_gates: (C,), (O,)
    int32, the gate of each channel or −1
    """
    *given, relu = operands
    y = _convolve(*given)
    return y.relu_() if relu else y


def gated_conv2d_add_reference(y: Tensor, *operands: Any) -> None:
    """Add to y (N, O, H', W') in plain PyTorch; as `gated_conv2d_reference` otherwise.

    rectified, the last of the operands, says that y is not negative
    """
    *given, relu, _ = operands
    y.add_(_convolve(*given))
    if relu:
        y.relu_()


def gated_conv2d_chain_reference(
    images: Sequence[Tensor],
    gates: Tensor,
    parameters: Sequence[Tensor],
    steps: Sequence[int],
    kept: Sequence[int],
) -> list[Tensor]:
    """Compute convolutions one by one, each from the images or from what earlier ones made.

    parameters: those named in `PARAMETERS`, for each step
    steps: `STEP` numbers each; kept: the steps whose outputs are returned
    """
    values = list(images)
    for number in range(len(steps) // STEP):
        given, residual, relu, rectified, *moves = steps[STEP * number :][:STEP]
        own = parameters[len(PARAMETERS) * number :][: len(PARAMETERS)]
        geometry = moves[:2], moves[2:4], moves[4:]
        operands = (values[given], *own[:2], gates, *own[2:], *geometry, bool(relu))
        if residual < 0:
            values.append(gated_conv2d(*operands))
        else:
            gated_conv2d_add_(values[residual], *operands, bool(rectified))
            values.append(values[residual])
    return [values[len(images) + number] for number in kept]


def _shape_only(x: Tensor, weight: Tensor, bias: Tensor, gates: Tensor, *others: Any) -> Tensor:
    _, output_gates, *geometry, _ = others
    sides = Geometry(*geometry).output(x.shape[2:], weight.shape[1:3])
    shape = (x.shape[0], output_gates.shape[0], *sides)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@cache
def _kernels_for_cuda() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    # Here, because Triton takes a while to import and only GPUs need it.
    return importlib.import_module("gaternet.runtime.cuda")


def _gated_conv2d_on_cuda(*operands: Any) -> Tensor:
    kernels = _kernels_for_cuda()
    compute = gated_conv2d_reference if kernels is None else kernels.gated_conv2d
    return compute(*operands)


def _gated_conv2d_add_on_cuda(y: Tensor, *operands: Any) -> None:
    kernels = _kernels_for_cuda()
    compute = gated_conv2d_add_reference if kernels is None else kernels.gated_conv2d_add_
    compute(y, *operands)


torch.library.register_fake("gaternet::gated_conv2d", _shape_only)
torch.library.register_fake("gaternet::gated_conv2d_add_", lambda y, *operands: None)
for _name, _plain, _on_cuda in (
    ("gated_conv2d", gated_conv2d_reference, _gated_conv2d_on_cuda),
    ("gated_conv2d_add_", gated_conv2d_add_reference, _gated_conv2d_add_on_cuda),
):
    torch.library.impl(f"gaternet::{_name}", "CompositeExplicitAutograd", _plain)
    torch.library.impl(f"gaternet::{_name}", "CUDA", _on_cuda)
torch.library.impl(
    "gaternet::gated_conv2d_chain", "CompositeExplicitAutograd", gated_conv2d_chain_reference
)
torch.library.register_fake("gaternet::gated_conv2d_chain", gated_conv2d_chain_reference)
gated_conv2d = torch.ops.gaternet.gated_conv2d.default
gated_conv2d_add_ = torch.ops.gaternet.gated_conv2d_add_.default
gated_conv2d_chain = torch.ops.gaternet.gated_conv2d_chain.default
