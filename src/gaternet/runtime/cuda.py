"""The operators of `gaternet.runtime.operator` on CUDA, by the kernels of `triton_kernel`.

Which blocks of 16 channels are open is sorted on the device, sample by sample, into buffers of
fixed size: nothing waits for the host, so a CUDA graph captures it and then serves any gates.

Sums are float32. Products of float32 are TF32's where PyTorch's own convs have these, which is the
default, and exact where not: `torch.backends.cudnn.conv.fp32_precision = "ieee"`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from gaternet.runtime.operator import LANES, Geometry, Pair
from gaternet.runtime.triton_kernel import convolve, sort_blocks

_CHANNELS_LAST = torch.channels_last
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Tile:
    """What a program computes: pixels × filters, from some input channels at a time.

    Each a power of two and at least 16: a block of filters, and the least that tensor cores take.
    """

    pixels: int
    filters: int
    channels: int


@dataclass(frozen=True)
class Epilogue:
    """What happens to the sums: adding to what is there (never negative, if rectified), ReLU."""

    relu: bool
    adds: bool = False
    rectified: bool = False

    @property
    def keeps(self) -> bool:
        """Whether closed filters leave what is there as it is."""
        return self.adds and (self.rectified or not self.relu)


@dataclass(frozen=True, eq=False)
class Layer:
    """The operands of the operator, checked against each other: a kernel would not notice."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gates: Tensor
    input_gates: Tensor
    output_gates: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair

    def __post_init__(self) -> None:
        """Check dtypes, shapes, and that offsets in an image fit 32 bits."""
        if self.x.dtype not in _DTYPES or self.weight.dtype != self.x.dtype:
            raise TypeError(
                f"x is {self.x.dtype} and weight {self.weight.dtype}: both must be one of {_DTYPES}"
            )
        if {self.input_gates.dtype, self.output_gates.dtype} != {torch.int32}:
            raise TypeError("input_gates and output_gates name a gate for each channel, int32")
        channels, blocks = self.x.shape[1], -(-len(self.output_gates) // LANES)
        fitting = {
            "weight": (blocks, *self.weight.shape[1:3], channels, LANES),
            "bias": (blocks * LANES,),
            "gates": (len(self.x), *self.gates.shape[1:2]),
            "input_gates": (channels,),
        }
        for name, shape in fitting.items():
            given = getattr(self, name)
            if given.shape != shape:
                raise ValueError(f"{name} is {_named(given)}: for x {_named(self.x)}, give {shape}")
        output = self.output
        if min(output[2:]) < 1:
            raise ValueError(f"x is {_named(self.x)}: its images are smaller than the kernel")
        if max(math.prod(self.x.shape[1:]), math.prod(output[1:]), self.weight.numel()) >= 2**31:
            raise ValueError(
                f"x is {_named(self.x)}: its images, or weights, are beyond 2³¹ elements"
            )

    @property
    def output(self) -> list[int]:
        """The shape of the output, (N, O, H', W')."""
        moves = Geometry(self.stride, self.padding, self.dilation)
        sides = moves.output(self.x.shape[2:], self.weight.shape[1:3])
        return [len(self.x), len(self.output_gates), *sides]


_LARGEST = Tile(pixels=128, filters=64, channels=32)


def tile_for(samples: int, pixels: int, filters: int, channels: int, processors: int) -> Tile:
    """Return the largest tile that leaves every multiprocessor something to do."""
    sides = [
        min(triton.next_power_of_2(max(size, LANES)), largest)
        for size, largest in ((pixels, _LARGEST.pixels), (filters, _LARGEST.filters))
    ]
    while max(sides) > LANES and _programs(samples, pixels, filters, *sides) < processors:
        longer = sides.index(max(sides))
        sides[longer] //= 2
    step = min(triton.next_power_of_2(max(channels, LANES)), _LARGEST.channels)
    return Tile(sides[0], sides[1], step)


def _programs(samples: int, pixels: int, filters: int, height: int, width: int) -> int:
    return samples * int(triton.cdiv(pixels, height)) * int(triton.cdiv(filters, width))


def gated_conv2d(*operands: Any) -> Tensor:
    """Compute the operator `gaternet::gated_conv2d` → (N, O, H', W'), channels last.

    x (N, C, H, W) and weight are float32, float16 or bfloat16, both the same; the rest is as in
    `gaternet.runtime.operator.gated_conv2d_reference`

    Raises TypeError for other dtypes, ValueError for shapes that do not fit together.
    """
    *given, relu = operands
    layer = Layer(*given)
    x = layer.x
    y = torch.empty(layer.output, dtype=x.dtype, device=x.device, memory_format=_CHANNELS_LAST)
    _compute(layer, y, Epilogue(relu))
    return y


def gated_conv2d_add_(y: Tensor, *operands: Any) -> None:
    """Compute the operator `gaternet::gated_conv2d_add_`, to y (N, O, H', W').

    Raises TypeError and ValueError as `gated_conv2d` does.
    """
    *given, relu, rectified = operands
    layer = Layer(*given)
    if list(y.shape) != layer.output or y.dtype != layer.x.dtype:
        raise ValueError(f"y is {_named(y)}, the output {layer.x.dtype} {tuple(layer.output)}")
    total = y.contiguous(memory_format=_CHANNELS_LAST)
    _compute(layer, total, Epilogue(relu, adds=True, rectified=rectified))
    if total is not y:
        y.copy_(total)


def _compute(layer: Layer, y: Tensor, epilogue: Epilogue) -> None:
    """Compute a layer into y (N, O, H', W'), channels last."""
    if y.numel() == 0:
        return
    samples, filters, rows, columns = y.shape
    _, channels, *sides = layer.x.shape
    tile = tile_for(samples, rows * columns, filters, channels, _processors(y.device))
    x = layer.x.contiguous(memory_format=_CHANNELS_LAST)
    gates, output_gates = layer.gates.contiguous(), layer.output_gates.contiguous()
    with torch.cuda.device_of(y):
        orders = _sorted_blocks(layer, gates, output_gates)
        grid = (
            samples * triton.cdiv(rows * columns, tile.pixels),
            triton.cdiv(filters, tile.filters),
        )
        convolve[grid](
            *(y, x, layer.weight.contiguous(), layer.bias.contiguous()),
            *(gates, gates.shape[1], output_gates, orders, orders.shape[2]),
            *((channels, *sides), (filters, rows, columns), tuple(layer.weight.shape[1:3])),
            *(tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation)),
            RELU=epilogue.relu,
            ADDS=epilogue.adds,
            KEEPS=epilogue.keeps,
            PRECISION=_precision(),
            PIXELS=tile.pixels,
            FILTERS=tile.filters,
            CHANNELS=tile.channels,
            enable_fp_fusion=True,
        )


def _sorted_blocks(layer: Layer, gates: Tensor, output_gates: Tensor) -> Tensor:
    """Return (N, 2, 1 + blocks) int32: how many input, output blocks are open, then all of them."""
    counts = layer.x.shape[1], len(output_gates)
    blocks = -(-max(counts) // LANES)
    orders = gates.new_empty((len(gates), 2, 1 + blocks), dtype=torch.int32)
    sort_blocks[(len(gates),)](
        *(orders, 1 + blocks, gates, gates.shape[1]),
        *(layer.input_gates.contiguous(), output_gates, counts),
        BLOCKS=triton.next_power_of_2(blocks),
        enable_fp_fusion=True,
    )
    return orders


def _precision() -> str:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if conv.fp32_precision == "tf32" else "ieee"


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _named(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
