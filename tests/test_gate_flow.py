"""What the gates' flow claims, against the masked network itself: brute force in float64.

A channel that is claimed zero is zero where a layer reads it; one that nobody is claimed to need
can be overwritten where a layer makes it, and the logits stay what they were.
"""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.gate_flow import UNGATED, FilterLayer, GateFlow, follow
from gaternet.gate_points import GatePoint, Layers, attach, find_gate_points, name_gate_points
from gaternet.graph import trace
from small_networks import SIZE, ResidualNet, conv

OWN = ("resnet8", "resnet8-se", "resnet11-preact", "densenet-bc-16-4", "shake-shake-26-2x4d")
TIMM = (
    "resnet18",
    "resnext50_32x4d",
    "seresnet50",
    "resnet50_gn",
    "resnetv2_50",
    "regnety_002",
    "mobilenetv2_050",
    "efficientnet_b0",
    "vgg11_bn",
    "inception_v4",
    "dla34",
)
QUICK = (*OWN, "resnet18", "regnety_002", "mobilenetv2_050")
WITHOUT = {
    *((name, "both") for name in ("densenet-bc-16-4", "vgg11_bn", "inception_v4")),
    ("resnet50_gn", "outer"),  # its last norms need all channels, and its sums are never zero
}


def plain_network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network in float64 and evaluation mode whose norms do something, and its input."""
    torch.manual_seed(0)
    size = (3, 8, 8) if name in OWN else (3, 96, 96) if name == "inception_v4" else (3, 32, 32)
    if name in OWN:
        network = backbones.create(BackboneConfig(name, 5, image_size=8))
    else:
        network = timm.create_model(name, num_classes=5)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return network.double().eval(), size


def run(network: nn.Module, points: tuple[GatePoint, ...], gates: Tensor, images: Tensor) -> Tensor:
    """Run a network under gates; a copy of it, so that it stays plain."""
    return masked(copy.deepcopy(network), points, gates)(images)


def masked(
    network: nn.Module, points: tuple[GatePoint, ...], gates: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return a network that runs once, under gates."""
    attach(network, points).arm(gates)
    return network


def closed(gates: Tensor, sample: int, named: tuple[int, ...]) -> list[int]:
    """Return the channels whose gate is closed."""
    return [c for c, gate in enumerate(named) if gate != UNGATED and not gates[sample, gate]]


def on_layer(
    network: nn.Module, layer: FilterLayer, before: Callable[..., None], after: Callable[..., None]
) -> None:
    """Call `before` with what a layer reads, and `after` with what it makes; both may change it."""
    if layer.node.op != "call_module":
        return
    module = network.get_submodule(layer.name)
    module.register_forward_pre_hook(lambda module, args: before(layer, args[0]))
    # Before the gate, where that sits on the layer itself.
    module.register_forward_hook(lambda module, args, output: after(layer, output), prepend=True)


def channels_of(features: Tensor, sample: int, count: int) -> Tensor:
    """Return one sample's features as (channels, …), from (C, H, W), (H, W, C) or (C,)."""
    own = features[sample]
    return own if own.shape[0] == count else own.movedim(-1, 0)


@torch.no_grad()
def check(name: str, layers: Layers, block: int = 1) -> GateFlow:
    """Run a network under random gates and compare it with what its flow claims."""
    network, size = plain_network(name)
    graph = trace(network, size)
    points = find_gate_points(graph, layers, block)
    flow = follow(graph, points)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    gates = (torch.rand(2, sum(p.gates for p in points), generator=generator) < 0.5).double()
    expected = run(network, points, gates, images)
    claimed = 0

    def is_zero(layer: FilterLayer, features: Tensor) -> None:
        nonlocal claimed
        for sample in range(2):
            zeros = closed(gates, sample, layer.inputs)
            claimed += len(zeros)
            assert not channels_of(features, sample, len(layer.inputs))[zeros].any(), layer.name

    def spoil(layer: FilterLayer, features: Tensor) -> None:
        nonlocal claimed
        for sample in range(2):
            spare = closed(gates, sample, layer.outputs)
            claimed += len(spare)
            channels_of(features, sample, len(layer.outputs))[spare] += 7.0

    spoiled = copy.deepcopy(network)
    forward = masked(spoiled, points, gates)
    for layer in flow.layers:
        on_layer(spoiled, layer, is_zero, spoil)
    found = forward(images)
    assert claimed > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected, run(network, points, 1 - gates, images))
    return flow


CASES = [
    (name, layers)
    for name in (*OWN, *TIMM)
    for layers in ("outer", "both")
    if (name, layers) not in WITHOUT
]


@pytest.mark.parametrize(
    ("name", "layers"),
    [case if case[0] in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_claims_hold_in_the_masked_network(name: str, layers: Layers) -> None:
    check(name, layers)


@pytest.mark.parametrize("block", [4, 8])
def test_claims_hold_for_blocks_of_channels(block: int) -> None:
    flow = check("resnet8", "both", block)
    assert sum(point.gates for point in flow.points) == 2 * (16 + 32 + 64) // block
    assert len(set(flow.layers[1].outputs)) == 16 // block


def test_every_gate_in_turn_reaches_what_it_is_said_to_reach_and_nothing_else() -> None:
    """A slow loop: which channels a layer reads turn zero when one gate alone is closed."""
    network, size = ResidualNet().double().eval(), SIZE
    graph = trace(network, size)
    points = find_gate_points(graph, "both")
    flow = follow(graph, points)
    images = torch.randn(1, *size, dtype=torch.float64)
    count = sum(point.gates for point in points)

    def zeros(gates: Tensor) -> dict[str, set[int]]:
        seen: dict[str, set[int]] = {}

        def look(layer: FilterLayer, features: Tensor) -> None:
            channels = channels_of(features, 0, len(layer.inputs))
            seen[layer.name] = {c for c, values in enumerate(channels) if not values.any()}

        watched = copy.deepcopy(network)
        for layer in flow.layers:
            on_layer(watched, layer, look, lambda layer, output: None)
        run(watched, points, gates, images)
        return seen

    always = zeros(torch.ones(1, count))
    for gate in range(count):
        gates = torch.ones(1, count)
        gates[0, gate] = 0
        for layer in flow.layers:
            claimed = {c for c, named in enumerate(layer.inputs) if named == gate}
            assert zeros(gates)[layer.name] - always[layer.name] == claimed, (gate, layer.name)


def gated_sides(flow: GateFlow) -> dict[str, tuple[str, str]]:
    """Return how much of each layer's inputs and outputs is gated: none, some or all."""

    def told(gates: tuple[int, ...]) -> str:
        gated = sum(gate != UNGATED for gate in gates)
        return {0: "none", len(gates): "all"}.get(gated, "some")

    return {layer.name: (told(layer.inputs), told(layer.outputs)) for layer in flow.layers}


def test_nothing_of_a_bottleneck_is_missed() -> None:
    with torch.device("meta"):
        network = timm.create_model("resnet50")
    graph = trace(network, (3, 64, 64))
    inner = gated_sides(follow(graph, find_gate_points(graph, "inner")))
    both = gated_sides(follow(graph, find_gate_points(graph, "both")))
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            unit = f"layer{stage}.{block}"
            assert inner[f"{unit}.conv1"] == ("none", "all")
            assert inner[f"{unit}.conv2"] == ("all", "all")
            assert inner[f"{unit}.conv3"] == ("all", "none")
            assert both[f"{unit}.conv3"] == ("all", "all")
    for plain in ("conv1", "layer1.0.downsample.0", "fc"):
        assert both[plain] == ("none", "none")


class OneByOne(nn.Sequential):
    """A layer, something behind it that is not apart from channel to channel, and the gate."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__(conv(3, 8), behind, nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))


@pytest.mark.parametrize(
    "behind",
    [nn.GroupNorm(2, 8), nn.LocalResponseNorm(3), nn.BatchNorm2d(8, track_running_stats=False)],
    ids=lambda module: type(module).__name__,
)
def test_norm_over_several_channels_or_images_needs_those_that_are_closed(
    behind: nn.Module,
) -> None:
    graph = trace(OneByOne(behind), SIZE)
    flow = follow(graph, name_gate_points(graph, ["1"]))
    assert gated_sides(flow) == {"0": ("none", "none"), "4": ("all", "none")}


@pytest.mark.parametrize("behind", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8), nn.Identity()])
def test_norm_of_each_channel_by_itself_does_not(behind: nn.Module) -> None:
    graph = trace(OneByOne(behind), SIZE)
    flow = follow(graph, name_gate_points(graph, ["1"]))
    assert gated_sides(flow) == {"0": ("none", "all"), "4": ("all", "none")}


class Rearranged(nn.Module):
    """Where a reshape or a slice hides which dimension the channels are, a conv's reader knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(3, 8), conv(8, 8), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        mixed = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        summed = self.second(mixed) + x.chunk(1, 1)[0]
        return self.last(torch.cat([mixed, summed], 1))


def test_channels_are_known_behind_what_hides_them() -> None:
    graph = trace(Rearranged(), SIZE)
    layers = {layer.name: layer for layer in follow(graph, [GatePoint("second", 8)]).layers}
    assert layers["second"].inputs == (UNGATED,) * 8
    assert layers["second"].outputs == tuple(range(8))
    assert layers["last"].inputs == (UNGATED,) * 16


class OfParameters(nn.Module):
    """A conv and a linear layer that see no image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = conv(3, 8), nn.Linear(4, 8)
        self.tokens, self.map = (
            nn.Parameter(torch.randn(2, 4)),
            nn.Parameter(torch.randn(1, 3, 8, 8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        scale = self.linear(self.tokens).mean() * self.conv(self.map).mean()
        return self.conv(x) * scale


def test_what_reads_no_image_is_no_layer() -> None:
    (layer,) = follow(trace(OfParameters(), SIZE), []).layers
    assert layer.inputs == (UNGATED,) * 3


class _Reshaped(nn.Module):
    """What looks like a flatten or a global mean, and is none: channels go elsewhere."""

    def __init__(self, reshape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = conv(3, 8)
        self.norm = nn.BatchNorm2d(8)
        self.reshape = reshape
        self.fc = nn.Linear(reshape(torch.zeros(2, 8, 8, 8)).shape[1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.reshape(self.norm(self.conv(x))))


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.view(x.shape[0] * x.shape[1], -1),  # a softmax over places, as for keypoints
        lambda x: x.mean((1, 2)),  # (N, W), here as many as channels
        lambda x: x.amax(dim=(-3, -1)),
    ],
)
def test_what_is_no_flatten_hands_no_channel_on(reshape: Callable[[Tensor], Tensor]) -> None:
    graph = trace(_Reshaped(reshape), SIZE)
    flow = follow(graph, name_gate_points(graph, ["norm"]))
    assert all(gate == UNGATED for layer in flow.layers for gate in layer.inputs)


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.amax(dim=[-1, -2]),
        lambda x: torch.mean(x, dim=(2, 3)),
        lambda x: x.sum((-2, -1)),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(),
    ],
)
def test_a_global_mean_hands_each_channel_on(reshape: Callable[[Tensor], Tensor]) -> None:
    graph = trace(_Reshaped(reshape), SIZE)
    flow = follow(graph, name_gate_points(graph, ["norm"]))
    assert flow.layers[-1].inputs == tuple(range(8))
