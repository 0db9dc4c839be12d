"""The operators, C++ and plain PyTorch, against PyTorch's conv in float64."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
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
    unpack_weight,
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
    given = operands(case, seed)
    wanted = expected(case, given)
    for kernel in (True, False):
        found = operate(case, given, kernel)
        assert found.shape == wanted.shape
        error = (found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1.0)
        assert error <= 5e-6, (case, kernel, float(error))


KERNELS = [
    ((1, 1), (0, 0)),
    ((1, 1), (1, 1)),
    ((3, 3), (1, 1)),
    ((3, 3), (0, 0)),
    ((5, 5), (2, 2)),
    ((7, 7), (3, 3)),
    ((1, 3), (0, 1)),
    ((7, 1), (3, 0)),
    ((2, 2), (0, 0)),
    ((3, 3), (4, 5)),  # rows and columns of nothing but padding
]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("kernel", "padding"), KERNELS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (2, 3)])
def test_every_geometry(
    kernel: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    case = Case(kernel=kernel, padding=padding, stride=stride, dilation=dilation, side=(14, 21))
    check(case)
    check(replace(case, residual=True, relu=True), seed=1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("channels", [1, 3, 12, 16, 17, 64])
@pytest.mark.parametrize("filters", [1, 5, 16, 17, 40, 64])
def test_every_width_of_a_layer(channels: int, filters: int) -> None:
    for kernel, padding in (((3, 3), (1, 1)), ((1, 1), (0, 0))):
        check(Case(channels, filters, kernel, padding=padding, relu=True))
        check(Case(channels, filters, kernel, padding=padding, residual=True), seed=1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("filters", [16, 32, 80])  # one, two and five blocks side by side
def test_every_length_of_a_row(filters: int) -> None:
    for width in range(1, 61):
        check(Case(filters=filters, side=(2, width), batch=1, outputs=16, rate=0.7), seed=width)
        pointwise = Case(filters=filters, kernel=(1, 1), side=(1, width), padding=(0, 0), batch=1)
        check(pointwise, seed=width)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("inputs", [None, 1, 8, 16])
@pytest.mark.parametrize("outputs", [None, 1, 8, 16])
@pytest.mark.parametrize("rate", [n / 10 for n in range(11)])
def test_gates_of_every_block_at_every_rate(
    inputs: int | None, outputs: int | None, rate: float
) -> None:
    case = Case(32, 48, inputs=inputs, outputs=outputs, rate=rate, batch=3)
    check(case, seed=round(10 * rate))
    check(replace(case, residual=True, relu=True), seed=round(10 * rate) + 1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch", [0, 1, 2, 7, 16, 33])
def test_every_batch(batch: int) -> None:
    case = Case(batch=batch)
    if batch:
        check(case)
        check(replace(case, residual=True), seed=1)
    else:
        given = operands(replace(case, batch=1))
        empty = replace(given, x=given.x[:0], gates=given.gates[:0], residual=given.residual[:0])
        for kernel in (True, False):
            assert operate(case, empty, kernel).shape == (0, 16, 7, 9)
            assert operate(replace(case, residual=True), empty, kernel).shape == (0, 16, 7, 9)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("side", [(1, 1), (7, 7), (40, 41), (200, 3)])
@pytest.mark.parametrize(("channels", "filters"), [(256, 512), (17, 8)])
def test_bands_of_rows_and_groups_of_blocks(
    side: tuple[int, int], channels: int, filters: int
) -> None:
    """Whatever pieces a layer is cut into; wide layers are cut by their filters."""
    for kernel, padding in (((3, 3), (1, 1)), ((1, 1), (0, 0))):
        check(Case(channels, filters, kernel, side, 1, padding=padding, outputs=16))
    if channels < 100:
        check(Case(channels, filters, (3, 3), side, 5, stride=(2, 2)))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("side", "channels", "filters"),
    [
        *(((8, 8), 16, 16), ((7, 9), 24, 40), ((13, 16), 100, 17), ((10, 9), 200, 70)),
        *(((21, 50), 24, 40), ((70, 31), 200, 20)),  # of several bands
    ],
)
@pytest.mark.parametrize("padding", [(1, 1), (0, 0), (2, 3)])
def test_tiles_of_two_by_two_outputs(
    side: tuple[int, int], channels: int, filters: int, padding: tuple[int, int]
) -> None:
    """3×3 convs of enough pixels and channels take Winograd's way; sides may be odd."""
    case = Case(channels, filters, side=side, padding=padding, inputs=4, outputs=8, rate=0.8)
    check(case)
    check(replace(case, residual=True, relu=True, batch=1, inputs=1, rate=0.95), seed=1)
    check(replace(case, batch=1, inputs=None, outputs=None), seed=2)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("residual", [False, True])
def test_images_of_a_batch_that_are_computed_in_different_ways(residual: bool) -> None:
    """With fewer than 16 open channels there are no tiles of 2 × 2 outputs."""
    counts = (0, 15, 16, 17, 40)
    case = Case(40, 24, side=(10, 11), batch=len(counts), outputs=None, residual=residual)
    given = operands(case)
    for n, count in enumerate(counts):
        given.gates[n] = (torch.randperm(40) < count).float()
    found, wanted = operate(case, given).double(), expected(case, given)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2)])
def test_more_channels_than_fill_a_vector(
    stride: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int]
) -> None:
    """Of every geometry, and in images of several bands."""
    how = Case(kernel=kernel, stride=stride, padding=(2, 2), dilation=dilation, rate=0.9)
    check(replace(how, channels=40, filters=24, side=(14, 21), relu=True))
    check(replace(how, channels=256, filters=20, side=(40, 41), batch=1, inputs=None), seed=1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_residual_stays_where_filters_are_closed(relu: bool, rectified: bool, rate: float) -> None:
    case = Case(32, 40, outputs=8, rate=rate, relu=relu, residual=True, rectified=rectified)
    check(case)


@pytest.mark.usefixtures("kernels")
def test_any_layout_of_memory_is_taken() -> None:
    for case in (Case(relu=True), Case(residual=True), Case(inputs=None)):
        given = operands(case)
        wanted = operate(case, given)
        first = replace(given, x=given.x.contiguous(), residual=given.residual.contiguous())
        wide = torch.randn(2, 16, 14, 9)
        wide[:, :, ::2] = given.x
        spaced = replace(given, x=wide[:, :, ::2], gates=given.gates.t().contiguous().t())
        for other in (first, spaced):
            assert not other.x.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(operate(case, other), wanted)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
@pytest.mark.parametrize("residual", [False, True])
def test_nothing_that_is_closed_reaches_the_output(
    kernel: bool, worst: float, residual: bool
) -> None:
    case = Case(24, 40, inputs=8, outputs=8, batch=1, residual=residual, relu=True)
    given = replace(operands(case), gates=torch.tensor([[1.0, 0, 1, 0, 1, 1, 0, 1]]))
    wanted = expected(case, given)
    x, weight, bias = given.x.clone(), given.weight.clone(), given.bias.clone()
    x[:, 8:16] = worst  # closed input channels
    for first in (0, 24):  # closed filters, in blocks of 16 that are open in part
        weight[first : first + 8], bias[first : first + 8] = worst, worst
    if kernel:  # and what it never multiplies
        weight[:, 8:16] = worst
    found = operate(case, replace(given, x=x, weight=weight, bias=bias), kernel)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("inputs", [1, None])
@pytest.mark.parametrize("at", [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_what_is_not_a_number_stays_visible_where_it_is_open(
    residual: bool, inputs: int | None, at: tuple[int, int]
) -> None:
    """All filters of 3 × 3 pixels see it, however outputs are put together to tiles."""
    case = Case(24, inputs=inputs, outputs=None, batch=1, relu=True, residual=residual)
    given = operands(case)
    given.gates[:, :16] = 1 if inputs is None else 0  # direct with 8 channels
    y, x = at
    given.x[0, 20, y, x] = float("nan")
    given.gates[:, 20:] = 1
    reached = torch.zeros(given.residual.shape, dtype=torch.bool)
    reached[:, :, y - 1 : y + 2, x - 1 : x + 2] = True
    for kernel in (True, False):
        assert torch.equal(operate(case, given, kernel).isnan(), reached)


Change = Callable[[dict[str, Any]], dict[str, Any]]

WRONG: dict[str, tuple[Change, str]] = {
    "rank": (lambda o: {"x": o["x"][0]}, "x must be"),
    "channels": (lambda o: {"x": o["x"][:, :8]}, "weight must be packed"),
    "no channels": (lambda o: {"x": o["x"][:, :0]}, "x must be"),
    "double": (lambda o: {"x": o["x"].double()}, "float32"),
    "bool gates": (lambda o: {"gates": o["gates"].bool()}, "float32"),
    "gates of another batch": (lambda o: {"gates": o["gates"][:1]}, "gates must be"),
    "gates of one sample": (lambda o: {"gates": o["gates"][0]}, "gates must be"),
    "fewer gates than are named": (lambda o: {"gates": o["gates"][:, :4]}, "name a column"),
    "long input gates": (lambda o: {"input_gates": o["input_gates"].long()}, "int32"),
    "input gates missing": (lambda o: {"input_gates": o["input_gates"][:4]}, "name a column"),
    "below −1": (lambda o: {"output_gates": o["output_gates"] - 99}, "name a column"),
    "weight not packed": (lambda o: {"weight": torch.randn(16, 16, 3, 3)}, "weight must be packed"),
    "another number of filters": (
        lambda o: {"output_gates": o["output_gates"].repeat(2)},
        "32 filters",
    ),
    "bias not packed": (lambda o: {"bias": o["bias"][:3]}, "packed"),
    "stride 0": (lambda o: {"stride": [0, 1]}, "stride"),
    "dilation 0": (lambda o: {"dilation": [1, 0]}, "dilation"),
    "negative padding": (lambda o: {"padding": [-1, 1]}, "padding"),
    "one number": (lambda o: {"stride": [2]}, "stride|2"),
    "small image": (lambda o: {"x": o["x"][:, :, :1, :1], "padding": [0, 0]}, "smaller than"),
    "small image, large stride": (
        lambda o: {"x": o["x"][:, :, :2], "padding": [0, 0], "stride": [2, 2]},
        "smaller than",
    ),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_operands_are_refused_in_words(wrong: str) -> None:
    given = operands(Case())
    named: dict[str, Any] = {
        "x": given.x,
        "weight": pack_weight(given.weight),
        "bias": pack_bias(given.bias),
        "gates": given.gates,
        "input_gates": given.input_gates,
        "output_gates": given.output_gates,
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "relu": False,
    }
    change, message = WRONG[wrong]
    with pytest.raises(RuntimeError, match=message):
        gated_conv2d(*(named | change(named)).values())


@pytest.mark.usefixtures("kernels")
def test_wrong_sum_is_refused() -> None:
    case = Case(residual=True)
    given = operands(case)
    for residual in (given.residual[:, :8], given.residual.double(), given.residual[:1]):
        with pytest.raises(RuntimeError, match="y must be float32 and of the shape"):
            operate(case, replace(given, residual=residual))
    operand = (pack_weight(given.weight), pack_bias(given.bias), given.gates)
    rest = (given.input_gates, given.output_gates, *case.geometry, False, False)
    with pytest.raises(RuntimeError, match="memory"):
        gated_conv2d_add_(given.x, given.x, *operand, *rest)


@pytest.mark.usefixtures("kernels")
def test_several_threads_at_once() -> None:
    ways: list[int | None] = [1, None]  # gated inputs, and all open
    cases = [
        Case(filters=16 * (n + 1), side=(20, 20), relu=bool(n % 2), inputs=ways[n // 2])
        for n in range(4)
    ]
    given = [operands(case, seed) for seed, case in enumerate(cases)]
    alone = [operate(*pair) for pair in zip(cases, given, strict=True)]
    equal = [False] * len(cases)

    def work(n: int) -> None:
        equal[n] = all(torch.equal(operate(cases[n], given[n]), alone[n]) for _ in range(50))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    """Among them layers of so many weights that threads share an image's filters, not its rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in (1, 3):
            check(Case(64, 64, side=(20, 20), batch=batch, outputs=16))
            check(Case(256, 128, (1, 1), (4, 4), batch, padding=(0, 0)))
            check(Case(128, 200, side=(4, 4), batch=batch, outputs=8, residual=True, relu=True))
            check(Case(64, 16, side=(2, 2), batch=batch, outputs=16, rate=1.0))
            check(Case(128, 200, side=(8, 8), batch=batch, outputs=8, inputs=None))
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("filters", [1, 17])
@pytest.mark.parametrize("side", [(1, 1), (7, 9)])
def test_operators_are_what_they_say_of_themselves(filters: int, side: tuple[int, int]) -> None:
    """Schema, shapes without values, tracing with any batch: PyTorch's own check."""
    case = Case(filters=filters, side=side)
    given = operands(case)
    packed = (given.x, pack_weight(given.weight), pack_bias(given.bias))
    rest = (given.gates, given.input_gates, given.output_gates, *case.geometry, True)
    torch.library.opcheck(gated_conv2d, (*packed, *rest))
    torch.library.opcheck(gated_conv2d_add_, (given.residual.clone(), *packed, *rest, False))


def test_weights_are_packed_in_blocks_of_sixteen_filters() -> None:
    weight = torch.randn(17, 3, 5, 2)
    packed = pack_weight(weight)
    assert packed.shape == (2, 5, 2, 3, 16)
    assert packed[1, 4, 1, 2, 0] == weight[16, 2, 4, 1]
    assert not packed[1, ..., 1:].any()
    assert torch.equal(unpack_weight(packed, 17), weight)
    assert pack_bias(torch.ones(17)).tolist() == [1.0] * 17 + [0.0] * 15
