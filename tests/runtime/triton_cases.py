"""Layers to compute by the Triton kernels; as a program, it computes them in Triton's interpreter.

    TRITON_INTERPRET=1 python triton_cases.py RESULTS.pt

Triton decides when it is imported whether it interprets, so that takes a process of its own.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaternet.runtime.operator import (
    LANES,
    Geometry,
    gated_conv2d_add_reference,
    gated_conv2d_reference,
    pack_bias,
    pack_weight,
)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A layer and its gates; each gate is open with a chance of `share`, for `block` channels."""

    name: str
    samples: int = 2
    channels: int = 16
    filters: int = 16
    image: Pair = (5, 4)
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    share: float = 0.5
    block: int = 1
    relu: bool = True
    adds: bool = False
    rectified: bool = False
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    tile: tuple[int, int, int] | None = None


CASES = (
    Case("pointwise", channels=48, filters=40, tile=(32, 32, 16)),
    Case("3x3", channels=20, filters=24, kernel=(3, 3), padding=(1, 1)),
    Case("7x7", 1, 3, 12, (9, 8), (7, 7), (2, 2), (3, 3), share=0.8),
    Case("dilation", kernel=(3, 3), image=(6, 7), padding=(2, 2), dilation=(2, 2)),
    Case("lopsided", 2, 12, 20, (7, 9), (2, 3), (2, 1), (0, 2), (1, 2)),
    Case("strided", channels=32, image=(7, 7), stride=(2, 2), tile=(16, 16, 32)),
    Case("all closed", channels=20, filters=20, share=0.0, block=4),
    Case("inputs closed", channels=20, filters=20, share=0.0),
    Case("all open", channels=20, filters=20, share=1.0),
    Case("gates of blocks", 3, 64, 72, share=0.3, block=16),
    Case("steps of two blocks", 3, 80, 80, share=0.5, block=16, tile=(16, 32, 32)),
    Case("steps of four blocks", 2, 80, 80, share=0.5, block=16, tile=(16, 64, 64)),
    Case("several tiles of pixels", image=(7, 6), kernel=(1, 3), padding=(0, 1), tile=(16, 16, 16)),
    Case("no ReLU", relu=False),
    Case("added", filters=40, adds=True),
    Case("added, no ReLU", filters=40, block=16, adds=True, relu=False, tile=(32, 16, 16)),
    Case("added to rectified", filters=40, block=16, adds=True, rectified=True, tile=(32, 16, 16)),
    Case("added, all closed", filters=24, share=0.0, block=8, adds=True),
    Case("added, all closed, no ReLU", filters=24, share=0.0, block=8, adds=True, relu=False),
    Case("added, channels first", filters=24, adds=True, channels_last=False),
    Case("channels first", channels=20, image=(4, 6), channels_last=False),
    Case("one of everything", 1, 1, 1, (1, 1), share=1.0),
    Case("half", channels=48, dtype=torch.float16),
)
# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
COMPILED_CASES = (*CASES, Case("bfloat16", channels=48, dtype=torch.bfloat16, adds=True))


@dataclass(frozen=True)
class Operands:
    """What an operator is called with, and what is in its output before."""

    before: Tensor
    given: tuple[Any, ...]

    def to(self, device: str) -> "Operands":
        """Copy to a device."""
        moved = (other.to(device) if isinstance(other, Tensor) else other for other in self.given)
        return Operands(self.before.to(device), tuple(moved))


def operands_of(case: Case, poisoned: bool = False) -> Operands:
    """Draw the operands of a case; poisoned, all that is closed and must not be read is NaN."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    x = draw(case.samples, case.channels, *case.image)
    weight = draw(case.filters, case.channels, *case.kernel)
    bias = draw(case.filters)
    inputs, outputs = _columns(case.channels, case.block), _columns(case.filters, case.block)
    outputs = torch.where(outputs < 0, -1, outputs + case.channels)
    shape = case.samples, case.channels + case.filters
    gates = (torch.rand(shape, generator=generator) < case.share).float()
    if poisoned:
        readable, computed = _open(gates, inputs), _open(gates, outputs)
        x[~readable] = torch.nan
        weight[:, ~_blocks_with(readable.any(0))] = torch.nan
        weight[~_blocks_with(computed.any(0))] = torch.nan
        bias[~computed.any(0)] = torch.nan
    packed = pack_weight(weight), pack_bias(bias)
    moves = case.stride, case.padding, case.dilation, case.relu
    operands = (x, *packed, gates, inputs.int(), outputs.int(), *moves)
    sides = Geometry(*moves[:3]).output(case.image, case.kernel)
    before = draw(case.samples, case.filters, *sides)
    if case.rectified:
        before.relu_()
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        before = before.contiguous(memory_format=torch.channels_last)
    given = (x, *operands[1:], case.rectified) if case.adds else (x, *operands[1:])
    return Operands(before, given)


def _columns(channels: int, block: int) -> Tensor:
    """The gate of each channel; without one (−1) every fifth, where gates are not for blocks."""
    channel = torch.arange(channels)
    return torch.where((channel % 5 == 4) & (block == 1), -1, channel // block)


def _open(gates: Tensor, columns: Tensor) -> Tensor:
    return (columns < 0) | (gates[:, columns.clamp_min(0)] != 0)


def _blocks_with(channels: Tensor) -> Tensor:
    """The channels whose block of 16 holds one of these."""
    return torch.cat([part.any().expand(len(part)) for part in channels.split(LANES)])


def expected(case: Case) -> Tensor:
    """Compute a case in plain PyTorch, in float64."""
    clean = operands_of(case)
    doubled = (
        other.double() if isinstance(other, Tensor) and other.is_floating_point() else other
        for other in clean.given
    )
    if not case.adds:
        return gated_conv2d_reference(*doubled)
    y = clean.before.double()
    gated_conv2d_add_reference(y, *doubled)
    return y


def computed(case: Case, device: str = "cpu") -> Tensor:
    """Compute a case by the Triton kernels, all that is closed poisoned."""
    from gaternet.runtime import cuda

    operands = operands_of(case, poisoned=True).to(device)
    if not case.adds:
        return cuda.gated_conv2d(*operands.given)
    cuda.gated_conv2d_add_(operands.before, *operands.given)
    return operands.before


def products_of(case: Case, tile: tuple[int, int, int]) -> int:
    """How many products of blocks a case takes: a loop over what its gates leave open."""
    pixels, filters, channels = tile
    _, _, _, gates, inputs, outputs, *_ = operands_of(case).given
    _, _, *sides = operands_of(case).before.shape
    count = 0
    for sample in gates:
        by_side = [
            sum(any(gate < 0 or sample[gate] for gate in block) for block in columns.split(LANES))
            for columns in (inputs, outputs)
        ]
        steps = math.prod(case.kernel) * math.ceil(by_side[0] * LANES / channels)
        tiles = math.ceil(math.prod(sides) / pixels) * math.ceil(by_side[1] * LANES / filters)
        count += steps * tiles
    return count


def main() -> None:
    """Compute all cases, each by the tiles that it names, and count their products of blocks."""
    from triton.runtime.interpreter import interpreter_builder

    from gaternet.runtime import cuda

    results = {}
    by_shape, multiply = cuda.tile_for, interpreter_builder.create_dot
    products = 0

    def counted(*operands: Any) -> Any:
        nonlocal products
        products += 1
        return multiply(*operands)

    interpreter_builder.create_dot = counted
    for case in CASES:
        tile = None if case.tile is None else cuda.Tile(*case.tile)
        cuda.tile_for = by_shape if tile is None else lambda *_, tile=tile: tile
        products = 0
        results[case.name] = computed(case), products
    torch.save(results, sys.argv[1])


if __name__ == "__main__":
    main()
