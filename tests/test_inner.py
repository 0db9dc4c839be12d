"""Which layers of a residual branch are inner ones, and where their gates sit."""

import pytest
import timm
import torch
from torch import Tensor, nn

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.gate_points import GatePoint, find_gate_points
from gaternet.graph import Graph, trace
from small_networks import SIZE, Block, ResidualNet, conv


def own(name: str) -> Graph:
    with torch.device("meta"):
        return trace(backbones.create(BackboneConfig(name, 10)), (3, 32, 32))


def of_timm(name: str) -> Graph:
    with torch.device("meta"):
        return trace(timm.create_model(name), (3, 64, 64))


def names(graph: Graph) -> list[str]:
    return [point.name for point in find_gate_points(graph, "inner")]


def test_basic_block_has_one_inner_layer() -> None:
    graph = own("resnet20")
    expected = [f"stage{s}.block{b}.bn1" for s in (1, 2, 3) for b in (1, 2, 3)]
    assert names(graph) == expected
    assert sum(p.gates for p in find_gate_points(graph, "inner")) == 3 * (16 + 32 + 64)


def test_bottleneck_has_two() -> None:
    points = find_gate_points(of_timm("resnet50"), "inner")
    blocks = [(s, b) for s, n in enumerate((3, 4, 6, 3), start=1) for b in range(n)]
    assert [p.name for p in points] == [f"layer{s}.{b}.bn{i}" for s, b in blocks for i in (1, 2)]
    assert [p.channels for p in points] == [64 * 2 ** (s - 1) for s, _ in blocks for _ in (1, 2)]


def test_before_activation_the_norm_of_the_next_layer_directly_follows() -> None:
    found = names(own("resnet11-preact"))
    assert found == [f"stage{s}.block1.bn{i}" for s in (1, 2, 3) for i in (2, 3)]


def test_layer_before_a_depthwise_conv_is_gated_behind_that() -> None:
    """One gate closes the expanding conv's filter, the depthwise one and the next conv's input."""
    points = find_gate_points(of_timm("mobilenetv2_100"), "inner")
    assert all(point.name.endswith("bn2") for point in points)
    # Of 17 blocks 10 have a shortcut (Sandler et al., 2018, table 2).
    assert len(points) == 10


def test_squeeze_and_excitation_inside_a_branch_is_passed() -> None:
    with_it, without = (of_timm(f"efficientnet_{n}") for n in ("b0", "lite0"))
    assert [n for n in names(with_it) if "se" in n.split(".")] == []
    assert names(with_it) == names(without)


def test_both_are_the_outer_and_the_inner_ones_in_the_order_of_execution() -> None:
    graph = own("resnet8")
    points = find_gate_points(graph, "both", 8)
    assert points == tuple(
        GatePoint(f"stage{s}.block1.bn{i}", c, 8)
        for s, c in ((1, 16), (2, 32), (3, 64))
        for i in (1, 2)
    )
    assert {p.name for p in points} == {
        p.name for layers in ("outer", "inner") for p in find_gate_points(graph, layers)
    }


class Between(nn.Sequential):
    """A residual unit whose two convs have something between them."""

    def __init__(self, between: nn.Module) -> None:
        branch = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), between, conv(4, 4))
        super().__init__(conv(3, 4), Block(branch), nn.Flatten(), nn.Linear(256, 5))


@pytest.mark.parametrize(
    ("between", "place"),
    [(nn.ReLU(), "1.branch.1"), (nn.SiLU(), "1.branch.1"), (nn.Sigmoid(), "1.branch.2")],
)
def test_gate_sits_where_a_zero_stays_a_zero(between: nn.Module, place: str) -> None:
    assert names(trace(Between(between), SIZE)) == [place]


class WithoutPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = conv(3, 4), conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.conv2(torch.sigmoid(self.conv1(x)))


def test_inner_layer_without_a_place_is_refused() -> None:
    graph = trace(WithoutPlace(), SIZE)
    with pytest.raises(ValueError, match=r"inner layer .* no place .*`sigmoid`"):
        find_gate_points(graph, "inner")
    with pytest.raises(ValueError, match=r"no place .*\(N, H, W, C\)"):
        find_gate_points(of_timm("convnext_tiny"), "inner")


@pytest.mark.parametrize("layers", ["inner", "both"])
def test_network_without_inner_layers_is_refused(layers: str) -> None:
    graph = own("densenet-bc-16-4")
    with pytest.raises(ValueError, match="no residual branch with an inner layer"):
        find_gate_points(graph, layers)  # type: ignore[arg-type]


def test_blocks_must_fit_the_layers() -> None:
    graph = trace(ResidualNet(), SIZE)
    assert [p.gates for p in find_gate_points(graph, "inner", 4)] == [1, 1]
    with pytest.raises(ValueError, match=r"`1\.branch\.1`: 4 channels are not a multiple of .* 8"):
        find_gate_points(graph, "inner", 8)
