"""Gated convs with random operands: by the operators, and by a slow obvious loop in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gaternet.runtime.operator import (
    gated_conv2d,
    gated_conv2d_add_,
    gated_conv2d_add_reference,
    gated_conv2d_reference,
    pack_bias,
    pack_weight,
)


@dataclass(frozen=True)
class Case:
    """A conv and its gates; a block of None stands for a side without gates."""

    channels: int = 16
    filters: int = 16
    kernel: tuple[int, int] = (3, 3)
    side: tuple[int, int] = (7, 9)
    batch: int = 2
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    inputs: int | None = 1
    outputs: int | None = 1
    rate: float = 0.5
    relu: bool = False
    residual: bool = False
    rectified: bool = False

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.stride), list(self.padding), list(self.dilation)


@dataclass(frozen=True)
class Operands:
    x: Tensor
    weight: Tensor
    bias: Tensor
    gates: Tensor
    input_gates: Tensor
    output_gates: Tensor
    residual: Tensor


def columns(channels: int, block: int | None, first: int) -> Tensor:
    """Return the gate of each channel, `block` neighbours sharing one; −1 without gates."""
    if block is None:
        return torch.full((channels,), -1, dtype=torch.int32)
    return first + torch.arange(channels, dtype=torch.int32) // block


def operands(case: Case, seed: int = 0) -> Operands:
    """Return random operands; x is zero where its gates are closed, as it is in a network."""
    generator = torch.Generator().manual_seed(seed)
    input_gates = columns(case.channels, case.inputs, 0)
    output_gates = columns(case.filters, case.outputs, int(input_gates.max()) + 1)
    count = max(int(output_gates.max()), int(input_gates.max())) + 1
    gates = (torch.rand(case.batch, count, generator=generator) < case.rate).float()
    x = torch.randn(case.batch, case.channels, *case.side, generator=generator)
    weight = torch.randn(case.filters, case.channels, *case.kernel, generator=generator)
    y = F.conv2d(x, weight, None, *case.geometry)
    residual = torch.randn(y.shape, generator=generator)
    return Operands(
        x=x.contiguous(memory_format=torch.channels_last),
        weight=weight,
        bias=torch.randn(case.filters, generator=generator),
        gates=gates,
        input_gates=input_gates,
        output_gates=output_gates,
        residual=residual.relu() if case.rectified else residual,
    )


def expected(case: Case, given: Operands) -> Tensor:
    """A slow obvious loop over samples, in float64: open filters of open channels, nothing else."""
    y = torch.zeros(given.residual.shape, dtype=torch.float64)
    for n in range(case.batch):
        opened = [
            [c for c, gate in enumerate(side.tolist()) if gate < 0 or given.gates[n, gate] != 0]
            for side in (given.output_gates, given.input_gates)
        ]
        weight = given.weight.double()[opened[0]][:, opened[1]]
        image, bias = given.x[n : n + 1, opened[1]].double(), given.bias.double()[opened[0]]
        if all(opened):
            y[n, opened[0]] = F.conv2d(image, weight, bias, *case.geometry)[0]
        else:
            y[n, opened[0]] = bias[:, None, None]
    if case.residual:
        y += given.residual.double()
    return y.relu() if case.relu else y


def operate(case: Case, given: Operands, kernel: bool = True) -> Tensor:
    """Run the operator, or the plain PyTorch that stands in for it."""
    packed = (given.x, pack_weight(given.weight), pack_bias(given.bias))
    rest = (given.gates, given.input_gates, given.output_gates, *case.geometry, case.relu)
    if not case.residual:
        plain: Callable[..., Tensor] = gated_conv2d if kernel else gated_conv2d_reference
        return plain(*packed, *rest)
    y = given.residual.clone(memory_format=torch.preserve_format)
    adding: Callable[..., None] = gated_conv2d_add_ if kernel else gated_conv2d_add_reference
    adding(y, *packed, *rest, case.rectified)
    return y


def check(case: Case, seed: int = 0) -> None:
    """Compare both forms of the operators with the loop."""
    given = operands(case, seed)
    wanted = expected(case, given)
    for kernel in (True, False):
        found = operate(case, given, kernel)
        assert found.shape == wanted.shape
        error = (found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1.0)
        assert error <= 5e-6, (case, kernel, float(error))
