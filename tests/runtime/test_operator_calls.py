"""How the operators are called: wrong operands, threads, PyTorch's checks, packed weights."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from gated_convs import Case, check, operands, operate
from gaternet.runtime.operator import (
    gated_conv2d,
    gated_conv2d_add_,
    pack_bias,
    pack_weight,
    unpack_weight,
)

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
