"""What the operators compute, C++ and plain PyTorch, against PyTorch's conv in float64."""

from dataclasses import replace

import pytest
import torch

from gated_convs import Case, check, expected, operands, operate

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
    draws = torch.Generator().manual_seed(0)
    for n, count in enumerate(counts):
        given.gates[n] = (torch.randperm(40, generator=draws) < count).float()
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
    given.gates[:, :16], given.gates[:, 20:] = 0, 1  # few are open, if channels have gates
    y, x = at
    given.x[0, 20, y, x] = float("nan")
    reached = torch.zeros(given.residual.shape, dtype=torch.bool)
    reached[:, :, y - 1 : y + 2, x - 1 : x + 2] = True
    for kernel in (True, False):
        assert torch.equal(operate(case, given, kernel).isnan(), reached)
