"""Compressed backbones against the same ones under gates that stay closed, all in float64."""

import copy

import pytest
import timm
import torch
from torch import nn

from gaternet import GaterNet, compress, find_gate_points, trace
from gaternet.backbones import BackboneConfig, create
from random_gates import blocks, distance, gated, inner_points, parameters, record_of, record_with

OWN = ("resnet8", "resnet8-identity", "resnet8-se", "resnet11-preact", "densenet-bc-16-4")
OWN_DEEP = ("resnet20", "resnet29-preact", "densenet-bc-22-12", "shake-shake-26-2x8d")
TIMM = (
    *(("resnet50", 64), ("vgg11_bn", 32), ("densenet121", 64), ("mobilenetv3_small_050", 64)),
    *(("inception_v4", 139), ("efficientnet_b0", 64), ("regnety_002", 64), ("repvgg_a0", 64)),
    *(("hrnet_w18_small", 64), ("resnext50_32x4d", 64), ("ghostnet_050", 64)),
    ("convnext_atto", 64),
)


def own(name: str, side: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return create(BackboneConfig(name, 5, image_size=side))


def check(model: GaterNet, off: float, on: float, side: int) -> None:
    record = record_of(model, off, on)
    before = copy.deepcopy(model.state_dict())
    small = compress(model, record)
    assert distance(model, small, record, side) < 1e-10
    assert parameters(small.backbone) < parameters(model.backbone) or off == 0
    whole, part = (trace(m.backbone, (3, side, side)) for m in (model, small))
    assert part.total_macs < whole.total_macs or off == 0
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("off", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("inner", [False, True], ids=["paper", "inner"])
@pytest.mark.parametrize("name", OWN)
def test_own_backbones(name: str, inner: bool, off: float) -> None:
    backbone = own(name)
    points = inner_points(backbone) if inner else None
    check(gated(backbone, (3, 8, 8), points), off, on=0.04 if off > 0.9 else 0.2, side=8)


@pytest.mark.slow
@pytest.mark.parametrize("off", [0.4, 0.95])
@pytest.mark.parametrize("inner", [False, True], ids=["paper", "inner"])
@pytest.mark.parametrize("name", OWN_DEEP)
def test_deep_backbones(name: str, inner: bool, off: float) -> None:
    backbone = own(name)
    points = inner_points(backbone) if inner else None
    check(gated(backbone, (3, 8, 8), points), off, on=0.04, side=8)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [False, True], ids=["paper", "inner"])
@pytest.mark.parametrize(("name", "side"), TIMM)
def test_timm_backbones(name: str, side: int, inner: bool) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=5)
    if inner and not inner_points(backbone):
        pytest.skip("no BatchNorm")
    points = inner_points(backbone) if inner else None
    check(gated(backbone, (3, side, side), points), 0.5, on=0.2, side=side)


def test_blocks_go_whole() -> None:
    backbone = own("resnet8")
    points = blocks(find_gate_points(trace(backbone)), 4)
    model = gated(backbone, (3, 8, 8), points)
    record = record_of(model, 0.4, 0.2)
    small = compress(model, record)
    assert distance(model, small, record, 8) < 1e-10
    assert small.gate_count < model.gate_count == 28


def test_float32_is_equal_to_rounding() -> None:
    backbone = own("resnet11-preact")
    model = gated(backbone, (3, 8, 8), inner_points(backbone)).float()
    record = record_of(model, 0.4, 0.2)
    assert distance(model, compress(model, record), record, 8) < 1e-5


def test_a_compressed_network_has_the_costs_of_its_open_filters() -> None:
    """ResNet-8 with every second filter of each branch: half of conv2, nothing else."""
    model = gated(own("resnet8"), (3, 8, 8))
    small = compress(model, record_with(model, list(range(1, model.gate_count, 2)), []))
    saved = {width: 9 * width * width // 2 for width in (16, 32, 64)}
    sides = {16: 8, 32: 4, 64: 2}
    norms = sum(2 * width // 2 for width in saved)
    assert parameters(model.backbone) - parameters(small.backbone) == sum(saved.values()) + norms
    macs = sum(saved[width] * sides[width] ** 2 for width in saved)
    assert trace(model.backbone).total_macs - trace(small.backbone).total_macs == macs
