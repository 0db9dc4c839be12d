"""Multiply-accumulates: against a slow loop, PyTorch's own counter, and really slimmed networks."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaternet import backbones
from gaternet.accounting import MacCounter, count_macs
from gaternet.backbones import BackboneConfig
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.gate_flow import UNGATED, FilterLayer, follow
from gaternet.gate_points import Layers, find_gate_points, name_gate_points
from gaternet.gater import Gater
from gaternet.graph import trace
from gaternet.local import LocalGaterNet
from gaternet.model import GaterNet
from small_networks import SIZE, ResidualNet, conv
from small_runs import tiny_gated

NETWORKS = {
    "resnet8": (3, 32, 32),
    "densenet-bc-16-4": (3, 32, 32),
    "shake-shake-26-2x4d": (3, 32, 32),
    "timm/resnext26ts": (3, 64, 64),
    "timm/mobilenetv2_050": (3, 64, 64),
    "timm/regnety_002": (3, 64, 64),
}


def network(name: str, size: tuple[int, int, int]) -> nn.Module:
    return backbones.create(BackboneConfig(name, 10, size[0], size[1])).eval()


def torch_macs(module: nn.Module, *size: int) -> int:
    """PyTorch counts an addition and a multiplication as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *size))
    return counter.get_total_flops() // 2


def random_gates(samples: int, gates: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(samples, gates, generator=generator) < 0.5).double()


def macs_by_loop(layer: FilterLayer, opened: list[bool]) -> float:
    """Look at every pair of an input and an output channel."""

    def is_open(gate: int) -> bool:
        return gate == UNGATED or opened[gate]

    if not layer.inputs:  # its channels are not known
        return layer.macs
    inputs, outputs = len(layer.inputs) // layer.groups, len(layer.outputs) // layer.groups
    pairs = needed = 0
    for group in range(layer.groups):
        for i in range(group * inputs, (group + 1) * inputs):
            for o in range(group * outputs, (group + 1) * outputs):
                pairs += 1
                needed += is_open(layer.inputs[i]) and is_open(layer.outputs[o])
    return layer.macs * needed / pairs


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_a_loop_over_pairs_of_channels(name: str) -> None:
    size = NETWORKS[name]
    graph = trace(network(name, size), size)
    layers: Layers = "outer" if "densenet" in name else "both"
    flow = follow(graph, find_gate_points(graph, layers))
    counter = MacCounter(flow)
    gates = random_gates(2, counter.gate_count)
    found = counter(gates)
    rows = {layer.name: row for row, layer in enumerate(counter.layers)}
    for sample, opened in enumerate(gates.bool().tolist()):
        for layer in flow.layers:
            expected = macs_by_loop(layer, opened)
            assert found[sample, rows[layer.name]].item() == pytest.approx(expected), layer.name
    everything = sum(macs_by_loop(layer, [True] * counter.gate_count) for layer in flow.layers)
    assert everything == graph.total_macs


@pytest.mark.parametrize("name", NETWORKS)
def test_with_every_gate_open_it_is_what_pytorch_counts(name: str) -> None:
    size = NETWORKS[name]
    plain = network(name, size)
    graph = trace(plain, size)
    counter = MacCounter(follow(graph, find_gate_points(graph)))
    everything = counter(torch.ones(1, counter.gate_count, dtype=torch.float64))
    assert everything.sum().item() == torch_macs(plain, *size)
    assert [layer.dense for layer in counter.layers] == everything[0].tolist()


def slimmed(network: CifarResNet, opened: dict[str, Tensor]) -> CifarResNet:
    """Take closed inner filters out of a ResNet for good, by hand."""
    slim = copy.deepcopy(network)
    for name, mask in opened.items():
        block = slim.get_submodule(name.removesuffix(".bn1"))
        keep = mask.nonzero()[:, 0]
        first, second = block.get_submodule("conv1"), block.get_submodule("conv2")
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        first.weight.data = first.weight[keep]
        second.weight.data = second.weight[:, keep]
        norm = nn.BatchNorm2d(len(keep))
        block.bn1 = norm.eval()
    return slim


def test_equals_what_pytorch_counts_of_a_network_slimmed_by_hand() -> None:
    plain = network("resnet14", (3, 32, 32))
    assert isinstance(plain, CifarResNet)
    graph = trace(plain, (3, 32, 32))
    points = find_gate_points(graph, "inner")
    counter = MacCounter(follow(graph, points))
    gates = random_gates(1, counter.gate_count)
    parts = gates[0].split([point.gates for point in points])
    slim = slimmed(plain, {p.name: part for p, part in zip(points, parts, strict=True)})
    assert counter(gates).sum().item() == torch_macs(slim, 3, 32, 32)


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        apart = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        super().__init__(conv(3, 8), nn.ReLU(), apart, nn.Flatten(), nn.Linear(512, 5))


def test_channel_of_a_depthwise_conv_counts_once() -> None:
    graph = trace(Depthwise(), SIZE)
    counter = MacCounter(follow(graph, name_gate_points(graph, ["1"])))
    gates = torch.tensor([[1.0] * 6 + [0.0] * 2], dtype=torch.float64)
    shares = counter(gates)[0] / torch.tensor([layer.dense for layer in counter.layers])
    assert shares.tolist() == [6 / 8, 6 / 8, 6 / 8]


def test_channel_that_a_norm_makes_non_zero_counts_as_read() -> None:
    """A DenseNet's closed channel is a constant behind the next BatchNorm, and no zero."""
    graph = trace(network("densenet-bc-16-4", (3, 32, 32)), (3, 32, 32))
    flow = follow(graph, find_gate_points(graph))
    assert all(set(layer.inputs) == {UNGATED} for layer in flow.layers)
    counter = MacCounter(flow)
    closed = counter(torch.zeros(1, counter.gate_count, dtype=torch.float64))[0]
    spared = {
        layer.name
        for layer, macs in zip(counter.layers, closed.tolist(), strict=True)
        if macs < layer.dense
    }
    assert spared == {point.name for point in flow.points}


def test_gradient_is_that_of_the_product_of_both_sides() -> None:
    graph = trace(network("resnet8", (3, 32, 32)), (3, 32, 32))
    points = find_gate_points(graph, "inner")
    counter = MacCounter(follow(graph, points))
    gates = torch.full((2, counter.gate_count), 0.5, dtype=torch.float64, requires_grad=True)
    counter.shares(gates).mean().backward()
    assert gates.grad is not None
    macs = {layer.name: layer.dense for layer in counter.layers}
    # A filter of a basic block's first conv has its part of that conv and of the second one.
    start = 0
    for point in points:
        block = point.name.removesuffix(".bn1")
        part = (macs[f"{block}.conv1"] + macs[f"{block}.conv2"]) / point.channels
        expected = part / graph.total_macs / 2
        columns = gates.grad[:, start : start + point.gates]
        torch.testing.assert_close(columns, torch.full_like(columns, expected))
        start += point.gates


def test_gater_counts_at_the_size_that_it_sees() -> None:
    extractor = CifarResNet(8, classes=0, widths=(4, 8, 8))
    gater = Gater(extractor, bottleneck=4, input_size=16)
    model = GaterNet(CifarResNet(8), gater).eval()
    counter = count_macs(model, (3, 32, 32))
    images = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(images, gates=torch.ones(model.gate_count))
    assert counter.backbone_macs == flops.get_total_flops() // 2
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.gate_logits(images)
    assert counter.deciding_macs == flops.get_total_flops() // 2
    everything = counter(torch.ones(1, model.gate_count, dtype=torch.float64)).sum()
    assert everything.item() == counter.backbone_macs + counter.deciding_macs


def test_heads_of_local_gates_count() -> None:
    model = LocalGaterNet(CifarResNet(8, widths=(4, 8, 8)), bottleneck=2)
    counter = count_macs(model, (3, 32, 32))
    # Each head reads the input of its branch's last conv: 4, 8 and 8 channels.
    assert counter.deciding_macs == 4 * 2 + 2 * 4 + 8 * 2 + 2 * 8 + 8 * 2 + 2 * 8
    assert all(layer.name.startswith("heads.") for layer in counter.deciding_layers)


def test_plain_network_has_no_gates_to_count_by() -> None:
    plain = CifarResNet(8)
    counter = count_macs(plain, (3, 32, 32))
    assert counter(torch.ones(3, 0)).sum(dim=1).tolist() == [torch_macs(plain, 3, 32, 32)] * 3


def test_parts_of_the_samples_are_counted_alike() -> None:
    model = tiny_gated()
    counter = count_macs(model, (1, 8, 8))
    gates = random_gates(150, model.gate_count)
    each = torch.cat([counter(row[None]) for row in gates])
    assert torch.equal(counter(gates), each)


class Attentive(nn.Sequential):
    """An extractor that multiplies matrices in a way that is not counted."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images).flatten(2)
        return torch.einsum("ncp,nkp->nck", features, features).mean(dim=2)


def test_what_cannot_be_counted_is_listed() -> None:
    gater = Gater(Attentive(conv(3, 4)), bottleneck=4, features=4)
    counter = count_macs(GaterNet(CifarResNet(8), gater), (3, 32, 32))
    assert counter.uncounted == {"gater.einsum: einsum": 1}


@pytest.mark.parametrize("shape", [(2, 13), (2, 5), (12,)])
def test_gates_of_another_network_are_refused(shape: tuple[int, ...]) -> None:
    graph = trace(ResidualNet(), SIZE)
    counter = MacCounter(follow(graph, find_gate_points(graph)))
    with pytest.raises(ValueError, match=r"not this network's: give \(images, 12\)"):
        counter.shares(torch.ones(shape))
