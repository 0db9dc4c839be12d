"""What is said of single operations, against what they do to zeros and to the order of dims."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaternet import channels
from gaternet.graph import Graph, trace

SIZE = (4, 6, 6)
Function = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def last(layer: nn.Module) -> tuple[Graph, torch.fx.Node]:
    graph = trace(nn.Sequential(layer), SIZE)
    return graph, list(graph.fx.nodes)[-2]


KEEPING_FUNCTIONS: list[Function] = [
    *(F.relu, F.silu, F.leaky_relu, F.gelu, F.hardswish, torch.tanh, torch.relu_, F.elu),
    *(lambda x: x.mul(3), lambda x: x / 3, lambda x: x * x.sigmoid(), lambda x: -x),
    *(lambda x: F.pad(x, (1, 1)), lambda x: F.pad(x, (1, 1, 0, 0), "reflect")),
    *(lambda x: F.max_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 2)),
    *(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), torch.clone),
    *(lambda x: x.to(torch.float64), lambda x: 0 + x, lambda x: F.dropout(x, 0.5, False)),
    lambda x: F.conv2d(x, torch.full((4, 1, 3, 3), 0.1), groups=4),
]
KEEPING: list[nn.Module] = [
    *(activation() for activation in channels.ZERO_KEEPING_ACTIVATIONS),
    *(nn.Identity(), nn.Dropout2d(), nn.AlphaDropout(), nn.Upsample(scale_factor=2)),
    *(nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.LPPool2d(2, 2), nn.AdaptiveMaxPool2d(1)),
    *(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.ZeroPad2d(1)),
    *(nn.Hardtanh(), *(Apply(function) for function in KEEPING_FUNCTIONS)),
]
LOSING_FUNCTIONS: list[Function] = [
    *(lambda x: x + 1, lambda x: 1 - x, torch.exp, torch.cos, torch.sigmoid),
    *(lambda x: F.pad(x, (1, 1), value=1.0), lambda x: 1 / (1 + x)),
    lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3), torch.ones(4), groups=4),
]
LOSING: list[nn.Module] = [
    *(nn.Sigmoid(), nn.Hardsigmoid(), nn.LogSigmoid(), nn.Softplus(), nn.Hardtanh(0.5, 1.0)),
    *(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4)),
    Shift(),
    *(Apply(function) for function in LOSING_FUNCTIONS),
]


@pytest.mark.parametrize("layer", KEEPING, ids=lambda layer: type(layer).__name__)
def test_a_zero_channel_stays_zero_and_the_others_stay_apart(layer: nn.Module) -> None:
    graph, node = last(layer)
    assert channels.keeps_zero(graph, node)
    assert channels.channel_input(graph, node) is next(iter(graph.fx.nodes))
    images = torch.randn(2, *SIZE)
    images[:, 1] = 0
    output = layer.eval()(images.clone())
    assert (output[:, 1] == 0).all()
    assert (output[:, [0, 2, 3]] != 0).any()


@pytest.mark.parametrize("layer", LOSING, ids=lambda layer: type(layer).__name__)
def test_a_zero_channel_does_not_stay_zero(layer: nn.Module) -> None:
    assert not channels.keeps_zero(*last(layer))
    images = torch.randn(2, *SIZE)
    images[:, 1] = 0
    assert (layer.eval()(images)[:, 1] != 0).any()


def test_a_product_with_its_own_attention_hands_on_the_feature_map() -> None:
    for function in (lambda x: x * x.mean((2, 3), True), lambda x: x.sigmoid() * x):
        graph, node = last(Apply(function))
        assert channels.channel_input(graph, node) is next(iter(graph.fx.nodes))


@pytest.mark.parametrize(
    ("function", "dim"),
    [
        (lambda x: x, 1),
        (lambda x: x.permute(0, 2, 3, 1), 3),
        (lambda x: x.permute((0, -2, -1, 1)) * 2, 3),
        (lambda x: torch.permute(x, dims=(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
        (lambda x: x.transpose(1, 3)[:, 1:], 3),
        (lambda x: torch.transpose(x, -1, 1).transpose(dim0=1, dim1=-1), 1),
        (lambda x: x.transpose(1, 3) + x.transpose(1, 3).roll(1, 1), 3),
        (lambda x: F.layer_norm(x, (6,)), 3),
        (lambda x: F.linear(x, torch.ones(5, 6)), 3),
        (lambda x: torch.cat([x, x], 1), 1),
        (lambda x: x.reshape(-1, 6, 2, 12), None),
    ],
)
def test_where_the_channels_are(function: Function, dim: int | None) -> None:
    assert channels.channel_dim(*last(Apply(function))) == dim


def test_additions_and_concatenations() -> None:
    def is_addition(function: Function) -> bool:
        return channels.is_addition(*last(Apply(function)))

    def is_concatenation(function: Function) -> bool:
        return channels.is_concatenation(*last(Apply(function)))

    assert is_addition(lambda x: x + x.relu())
    assert is_addition(lambda x: x.relu().add_(x))
    assert not is_addition(lambda x: x + x.mean((2, 3), True))  # broadcast: no second branch
    assert not is_addition(lambda x: x + 1)
    assert not is_addition(lambda x: x.flatten(2) + x.flatten(2).relu())
    assert is_concatenation(lambda x: torch.cat([x, x], 1))
    assert is_concatenation(lambda x: torch.cat([x, x], dim=-3))
    axis: dict[str, Any] = {"axis": 1}
    assert is_concatenation(lambda x: torch.concat([x, x], **axis))
    assert not is_concatenation(lambda x: torch.cat([x, x], 2))
    assert not is_concatenation(lambda x: torch.cat([x, x]))


def test_sums_of_tokens() -> None:
    def is_token_sum(function: Function) -> bool:
        return channels.is_token_sum(*last(Apply(function)))

    assert is_token_sum(lambda x: x.flatten(2) + x.flatten(2).relu())
    assert not is_token_sum(lambda x: x + x.relu())
    assert not is_token_sum(lambda x: x.flatten(2) + 1)


@pytest.mark.parametrize(
    ("function", "is_slice"),
    [
        (lambda x: x[:, :2], True),
        (lambda x: x[:, 1:3, :, :], True),
        (lambda x: x.chunk(2, 1)[1], True),
        (lambda x: torch.split(x, 2, dim=-3)[0], True),
        (lambda x: x[:, :2, 1:], False),
        (lambda x: x[:1], False),
        (lambda x: x.chunk(2, 2)[1], False),
        (lambda x: x.chunk(2)[0], False),
        (lambda x: x[:, :2].relu(), False),
    ],
)
def test_ranges_of_channels(function: Function, is_slice: bool) -> None:
    graph, node = last(Apply(function))
    images = next(iter(graph.fx.nodes))
    assert channels.sliced_input(graph, node) is (images if is_slice else None)
