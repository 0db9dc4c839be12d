"""Where gates reach, against what networks compute when a gate is closed by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gaternet.gate_flow import FilterLayer, follow
from gaternet.gate_points import UNGATED, GatePoint, attach, name_gate_points
from gaternet.graph import trace
from small_networks import SIZE, conv


def layers(network: nn.Module, *points: str | GatePoint) -> dict[str, FilterLayer]:
    graph = trace(network, SIZE)
    named = [
        point if isinstance(point, GatePoint) else name_gate_points(graph, [point])[0]
        for point in points
    ]
    return {layer.name: layer for layer in follow(graph, named).layers}


@pytest.mark.parametrize(
    ("norm", "unneeded"),
    [
        (nn.BatchNorm2d(4), (0, 1, 2, 3)),
        (nn.InstanceNorm2d(4), (0, 1, 2, 3)),
        (nn.GroupNorm(2, 4), (UNGATED,) * 4),
        (nn.LocalResponseNorm(2), (UNGATED,) * 4),
    ],
)
def test_a_norm_over_several_channels_needs_them_all(
    norm: nn.Module, unneeded: tuple[int, ...]
) -> None:
    network = nn.Sequential(conv(3, 4), norm, conv(4, 2)).eval()
    assert layers(network, "1")["0"].outputs == unneeded
    # What the graph says is what happens: the others change where a channel before them does.
    images, without = torch.randn(2, *SIZE), copy.deepcopy(network)
    with torch.no_grad():
        without.get_parameter("0.weight")[1] = 0
        without.get_parameter("0.bias")[1] = 7
        before, after = network[:2](images), without[:2](images)
    others = torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert others == (unneeded[0] != UNGATED)


class Excitation(nn.Module):
    """Squeeze and excitation by convs on a mean that keeps its dimensions, or by linear layers."""

    def __init__(self, by_convs: bool) -> None:
        super().__init__()
        self.by_convs = by_convs
        self.make = nn.Sequential(conv(3, 4), nn.ReLU())
        self.fc1 = conv(4, 2, 1) if by_convs else nn.Linear(4, 2)
        self.fc2 = conv(2, 4, 1) if by_convs else nn.Linear(2, 4)
        self.last = conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        scale = self.fc2(self.fc1(x.mean((2, 3), keepdim=self.by_convs))).sigmoid()
        return self.last(x * (scale if self.by_convs else scale[:, :, None, None]))


@pytest.mark.parametrize("by_convs", [True, False])
def test_a_mean_of_zeros_is_zero(by_convs: bool) -> None:
    found = layers(Excitation(by_convs), "make.0")
    assert found["make.0"].outputs == (0, 1, 2, 3)
    assert found["fc1"].inputs == (0, 1, 2, 3)
    assert found["last"].inputs == (0, 1, 2, 3)


def test_channels_that_are_always_open_have_no_gate() -> None:
    network = nn.Sequential(conv(3, 4), conv(4, 2))
    found = layers(network, GatePoint("0", 4, gate_of=(1, UNGATED, 0, 1)))
    assert found["0"].outputs == found["1"].inputs == (1, UNGATED, 0, 1)


def test_a_point_multiplies_each_channel_by_its_own_gate() -> None:
    network = nn.Sequential(conv(3, 4))
    images = torch.randn(2, *SIZE)
    plain = network(images)
    attach(network, [GatePoint("0", 4, gate_of=(1, UNGATED, 0, 1))]).arm(
        torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    )
    expected = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.5, 0.0]])
    assert torch.equal(network(images), plain * expected[:, :, None, None])


@pytest.mark.parametrize("gate_of", [(0, 1), (0, 2, 2, 1, 4), (-1, -1, -1, -1), (0, 0, 2, -1)])
def test_gates_are_numbered_from_0_without_gaps(gate_of: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"gate point `0`: gate_of numbers the gates of 4"):
        GatePoint("0", 4, gate_of=gate_of)


class Overwriting(nn.Module):
    """What is gated is read, overwritten by an operation whose result nobody reads, read again."""

    def __init__(self, overwrite: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make, self.early, self.late = conv(3, 4), conv(4, 2), conv(4, 2)
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        y = self.early(x)
        self.overwrite(x)
        return y + self.late(x)


@pytest.mark.parametrize(
    ("overwrite", "zeros"),
    [
        (lambda x: x.add_(1.0), (UNGATED,) * 4),
        (lambda x: x.transpose(2, 3).add_(1.0), (UNGATED,) * 4),
        (lambda x: x.relu_(), (0, 1, 2, 3)),
        (lambda x: x + 1.0, (0, 1, 2, 3)),
    ],
    ids=["itself", "a view", "zeros by zeros", "nothing"],
)
def test_what_was_overwritten_is_not_zero_any_more(
    overwrite: Callable[[Tensor], object], zeros: tuple[int, ...]
) -> None:
    found = layers(Overwriting(overwrite), "make")
    assert found["early"].inputs == (0, 1, 2, 3)
    assert found["late"].inputs == zeros
