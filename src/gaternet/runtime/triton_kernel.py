"""The kernels of `gaternet.runtime.cuda`: blocks sorted by whether they are open, and the conv.

The conv is an implicit matrix product. A program computes some pixels of one sample for some blocks
of 16 filters, open ones first, over its taps and its open blocks of 16 channels.
"""

import triton
import triton.language as tl

from gaternet.runtime.operator import LANES

_LANES = tl.constexpr(LANES)


@triton.jit
def _sort_side(
    gates: tl.tensor, gates_of: tl.tensor, count: tl.tensor, order: tl.tensor, BLOCKS: tl.constexpr
) -> None:
    # order[0] ← how many blocks are open; order[1:] ← all blocks, open ones first, each as its
    # number in the upper half and a bit for each of its 16 channels, set if open, in the lower.
    block = tl.arange(0, BLOCKS)
    lane = tl.arange(0, _LANES)[None, :]
    channel = block[:, None] * _LANES + lane
    gate_at = tl.load(gates_of + channel, mask=channel < count, other=0)
    gated = (channel < count) & (gate_at >= 0)
    gate = tl.load(gates + tl.maximum(gate_at, 0), mask=gated, other=1.0)
    channel_open = ((gate != 0) & (channel < count)).to(tl.int32)
    bits = tl.sum(channel_open << lane, axis=1)
    block_open = (bits != 0).to(tl.int32)
    open_count = tl.sum(block_open)
    place = tl.where(bits != 0, tl.cumsum(block_open), open_count + tl.cumsum(1 - block_open))
    tl.store(order, open_count)
    tl.store(order + place, (block << _LANES) | bits, mask=block * _LANES < count)


@triton.jit
def sort_blocks(
    orders: tl.tensor,
    width: tl.tensor,
    gates: tl.tensor,
    gate_count: tl.tensor,
    input_gates: tl.tensor,
    output_gates: tl.tensor,
    counts: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    # One program a sample: its input blocks, then its output blocks.
    channels, filters = counts
    sample = tl.program_id(0).to(tl.int64)
    inputs = orders + sample * 2 * width
    of_sample = gates + sample * gate_count
    _sort_side(of_sample, input_gates, channels, inputs, BLOCKS)
    _sort_side(of_sample, output_gates, filters, inputs + width, BLOCKS)


@triton.jit
def convolve(
    y: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    gates: tl.tensor,
    gate_count: tl.tensor,
    output_gates: tl.tensor,
    orders: tl.tensor,
    width: tl.tensor,
    image: tl.tensor,
    output: tl.tensor,
    kernel: tl.tensor,
    stride: tl.tensor,
    padding: tl.tensor,
    dilation: tl.tensor,
    RELU: tl.constexpr,
    ADDS: tl.constexpr,
    KEEPS: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    FILTERS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    channels, image_rows, image_columns = image
    filters, rows, columns = output
    taps = kernel[0] * kernel[1]
    tiles = tl.cdiv(rows * columns, PIXELS)
    # A batch may have more than 2³¹ elements, one of its images may not.
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    inputs = orders + sample * 2 * width
    outputs = inputs + width
    first_slot = tl.program_id(1) * (FILTERS // _LANES)
    closed = first_slot >= tl.load(outputs)
    if KEEPS and closed:
        return

    slot = first_slot + tl.arange(0, FILTERS) // _LANES
    lane = tl.arange(0, FILTERS) % _LANES
    exists = slot * _LANES < filters
    block = tl.load(outputs + 1 + slot, mask=exists, other=0) >> _LANES
    # Blocks come from memory, in any order: the hints say that their 16 lanes still lie in a row.
    in_weight = block * (taps * channels * _LANES) + lane
    in_weight = tl.max_contiguous(tl.multiple_of(in_weight, _LANES), _LANES)
    filter_at = tl.max_contiguous(tl.multiple_of(block * _LANES + lane, _LANES), _LANES)

    pixel = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
    top = pixel // columns * stride[0] - padding[0]
    left = pixel % columns * stride[1] - padding[1]
    x += sample * image_rows * image_columns * channels
    open_count = tl.load(inputs)
    per_tap = tl.cdiv(open_count * _LANES, CHANNELS)
    part = tl.arange(0, CHANNELS)
    sums = tl.zeros((PIXELS, FILTERS), tl.float32)
    for step in range(tl.where(closed, 0, taps * per_tap)):
        tap = step // per_tap
        open_slot = step % per_tap * (CHANNELS // _LANES) + part // _LANES
        entry = tl.load(inputs + 1 + open_slot, mask=open_slot < open_count, other=0)
        channel = (entry >> _LANES) * _LANES + part % _LANES
        channel = tl.max_contiguous(tl.multiple_of(channel, _LANES), _LANES)
        there = (open_slot < open_count) & (channel < channels)
        at_row = top + tap // kernel[1] * dilation[0]
        at_column = left + tap % kernel[1] * dilation[1]
        inside = (at_row >= 0) & (at_row < image_rows)
        inside &= (at_column >= 0) & (at_column < image_columns)
        in_image = (at_row * image_columns + at_column) * channels
        given = tl.load(
            x + in_image[:, None] + channel[None, :],
            mask=inside[:, None] & there[None, :],
            other=0.0,
        )
        # Not part of the mask: then the 16 channels of a block would be loaded one by one.
        channel_open = (entry >> (part % _LANES)) & 1
        given = tl.where(channel_open[None, :] != 0, given, 0.0)
        filters_there = tl.load(
            weight + ((tap * channels + channel) * _LANES)[:, None] + in_weight[None, :],
            mask=there[:, None],
            other=0.0,
        )
        sums = tl.dot(given, filters_there, sums, input_precision=PRECISION)

    exists &= filter_at < filters
    gate_at = tl.load(output_gates + filter_at, mask=exists, other=0)
    gated = exists & (gate_at >= 0)
    gate = tl.load(gates + sample * gate_count + tl.maximum(gate_at, 0), mask=gated, other=1.0)
    offset = tl.load(bias + filter_at, mask=exists, other=0.0)
    value = tl.where((gate != 0)[None, :], gate[None, :] * (sums + offset[None, :]), 0.0)
    to = y + sample * rows * columns * filters + pixel[:, None] * filters + filter_at[None, :]
    mask = (pixel < rows * columns)[:, None] & exists[None, :]
    if ADDS:
        value += tl.load(to, mask=mask, other=0.0)
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(to, value.to(y.dtype.element_ty), mask=mask)
