"""The paper's backbones and others, lowered: all units skipping and all dense, against the masked.

Random gates at rates 0, 0.1 … 1, batches of 1 to 33, norms of ordinary size.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
import torchvision
from lowered_networks import TOLERANCE, lowered, ordinary
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.gate_points import GatePoint, Layers, find_gate_points, name_gate_points
from gaternet.graph import Graph, trace

pytestmark = pytest.mark.usefixtures("kernels")

RATES = [n / 10 for n in range(11)]


@dataclass(frozen=True)
class Network:
    """A network by name, at a side that is quick; how it cannot be gated, unlike the others."""

    name: str
    side: int = 32
    without: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)

    def create(self) -> nn.Module:
        torch.manual_seed(0)
        if self.name.startswith("timm/"):
            network = timm.create_model(self.name.removeprefix("timm/"), **self.options)
        elif self.name.startswith("torchvision/"):
            network = narrow_vgg(self.name.removeprefix("torchvision/"))
        else:
            network = backbones.create(BackboneConfig(self.name, 10, image_size=self.side))
        return ordinary(network)


def narrow_vgg(name: str) -> nn.Module:
    """torchvision's VGG, whose classifier is linear layers and dropout, here of 64 neurons each."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d((2, 1))
    for index, shape in ((0, (512 * 2, 64)), (3, (64, 64)), (6, (64, 10))):
        network.classifier[index] = nn.Linear(*shape)
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm):
            module.reset_parameters()
    return network


PAPER = [
    Network("resnet20"),
    Network("resnet20-wider"),
    Network("resnet20-se"),
    Network("resnet20-identity"),
    Network("resnet56", 16),
    Network("resnet164", 16),
    Network("resnet164-se", 16),
    Network("resnet11-preact", 16),
    Network("densenet-bc-40-12", 16, frozenset({"both"})),
    Network("shake-shake-26-2x16d", 16),
    Network("timm/resnet18", 64),
    Network("timm/resnet34", 64),
    Network("timm/resnet50", 64),
    Network("timm/resnet101", 64),
    Network("timm/seresnet34", 64),
    Network("timm/inception_v4", 96, frozenset({"both"})),
]
OTHERS = [
    Network("timm/vgg11_bn", 32, frozenset({"both"}), {"mlp_ratio": 1 / 16}),
    Network("torchvision/vgg11_bn", 32, frozenset({"both"})),
    Network("timm/mobilenetv3_small_050", 64),
    Network("timm/efficientnet_b0", 64),
    Network("timm/regnety_002", 64),
    Network("timm/densenet121", 64, frozenset({"both"})),
    Network("timm/convnext_atto", 64, frozenset({"norms"})),
    Network("timm/resnext50_32x4d", 64),
    Network("timm/dpn48b", 64),
    Network("timm/hrnet_w18_small", 64),
    Network("timm/repvgg_a0", 64, frozenset({"both"})),
    Network("timm/seresnet50", 64),
    Network("timm/inception_resnet_v2", 96),
    Network("timm/legacy_xception", 64),
    Network("timm/resnetv2_50", 64),
    Network("timm/resnet18d", 64),
    Network("timm/skresnet18", 64, frozenset({"both"})),
    Network("timm/dla34", 64),
]
QUICK = {"resnet20", "resnet20-se", "resnet11-preact", "timm/resnet18", "timm/regnety_002"}


def by_name(network: nn.Module, graph: Graph, block: int) -> tuple[GatePoint, ...]:
    """Every norm that can be gated, each before whatever follows it."""
    points = []
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            try:
                (point,) = name_gate_points(graph, [name])
            except ValueError:
                continue
            divides = point.channels % block == 0
            points.append(GatePoint(name, point.channels, block if divides else 1))
    return tuple(sorted(points, key=lambda point: _order(graph, point)))


def _order(graph: Graph, point: GatePoint) -> int:
    (node,) = graph.outputs[point.name]
    assert node is not None
    return graph.order(node)


def check(network: Network, layers: Layers | None, block: int, batches: list[int]) -> None:
    """Compare under gates at every rate; layers None: every norm."""
    backbone = network.create()
    graph = trace(backbone, (3, network.side, network.side))
    if layers is None:
        points = by_name(backbone, graph, block)
    else:
        points = find_gate_points(graph, layers, block)
    forms = lowered(backbone, points, graph)
    assert any(unit.layer.gated for unit in forms.units)
    for seed, rate in enumerate(RATES):
        batch = batches[seed % len(batches)]
        error = forms.error(batch, rate, seed)
        assert error <= TOLERANCE, (network.name, layers, block, rate, batch, error)


def cases(*layers: Layers | None) -> list[Any]:
    return [
        pytest.param(
            network,
            which,
            id=f"{network.name}-{which}",
            marks=() if network.name in QUICK and which != "outer" else pytest.mark.slow,
        )
        for network in (*PAPER, *OTHERS)
        for which in layers
        if (which or "norms") not in network.without
    ]


@pytest.mark.parametrize(("network", "layers"), cases("outer", "both", None))
def test_it_returns_what_the_masked_network_returns(network: Network, layers: Layers) -> None:
    check(network, layers, 1, [1, 2, 3])


WITH_NORMS = [network for network in (*PAPER, *OTHERS) if "norms" not in network.without]


@pytest.mark.slow
@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("network", WITH_NORMS, ids=lambda network: network.name)
def test_gates_of_blocks(network: Network, block: int) -> None:
    check(network, None, block, [2, 5])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "timm/resnet50"])
def test_every_batch(name: str) -> None:
    (network,) = (network for network in PAPER if network.name == name)
    backbone = network.create()
    graph = trace(backbone, (3, network.side, network.side))
    forms = lowered(backbone, find_gate_points(graph, "both"), graph)
    for batch in range(1, 34):
        assert forms.error(batch, batch / 33, batch) <= TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_lists_of_feature_maps(name: str) -> None:
    network = Network(f"timm/{name}", 64, options={"features_only": True})
    check(network, None, 1, [1, 3])
