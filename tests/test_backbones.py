"""Backbones: the paper's counts, the authors' names of weights, and back and forth by name."""

import pytest
import timm
import torch
from torch import Tensor, nn

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.backbones.resnet_cifar import BasicBlock, CifarResNet, PaddingShortcut
from gaternet.errors import UserError
from gaternet.gater import Gater
from gaternet.model import GaterNet


def millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"


# Table 1, but the gated ResNet-20 on CIFAR-100: the paper prints 0.60 there, which its own
# arithmetic (0.28 M, the same gater, the same 336 gates) does not give.
@pytest.mark.parametrize(
    ("depth", "classes", "plain", "gated", "gates"),
    [
        (20, 10, "0.27", "0.55", 336),
        (20, 100, "0.28", "0.55", 336),
        (56, 10, "0.86", "1.14", 1008),
        (56, 100, "0.86", "1.14", 1008),
    ],
)
def test_parameters_and_gates_are_the_paper_s(
    depth: int, classes: int, plain: str, gated: str, gates: int
) -> None:
    with torch.device("meta"):
        backbone = CifarResNet(depth, classes)
        assert millions(backbone) == plain
        model = GaterNet(backbone, Gater(CifarResNet(20, classes=0), bottleneck=8))
    assert millions(model) == gated
    assert model.gate_count == gates


def test_resnet20_has_the_usual_count_with_the_parameter_free_shortcut() -> None:
    # He et al. (2016), Table 6: 0.27 M; by hand from its layers: 269,722.
    count = sum(p.numel() for p in CifarResNet(20, shortcut="identity").parameters())
    stages = (
        6 * (16 * 16 * 9 + 32) + (16 * 32 * 9 + 64) + 5 * (32 * 32 * 9 + 64)
        + (32 * 64 * 9 + 128) + 5 * (64 * 64 * 9 + 128)
    )  # fmt: skip
    assert count == (3 * 16 * 9 + 32) + stages + 650 == 269722


@pytest.mark.parametrize("depth", [20, 56])
def test_weights_have_the_authors_names(depth: int) -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv.weight", "fc.weight", "fc.bias"} | {f"bn.{key}" for key in norm}
    for stage in (1, 2, 3):
        for block in range(1, (depth - 2) // 6 + 1):
            prefix = f"stage{stage}.block{block}"
            expected |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            expected |= {f"{prefix}.{bn}.{key}" for bn in ("bn1", "bn2") for key in norm}
        if stage > 1:
            expected.add(f"stage{stage}.block1.shortcut.conv.weight")
            expected |= {f"stage{stage}.block1.shortcut.bn.{key}" for key in norm}
    with torch.device("meta"):
        assert CifarResNet(depth).state_dict().keys() == expected


def padded_shortcut(x: Tensor, outputs: int) -> Tensor:
    """Every other pixel, old channels in the middle of the new: one number at a time."""
    n, c, h, w = x.shape
    result = torch.zeros(n, outputs, h // 2, w // 2)
    before = (outputs - c) // 2
    for image in range(n):
        for channel in range(c):
            for row in range(0, h, 2):
                for column in range(0, w, 2):
                    value = x[image, channel, row, column]
                    result[image, before + channel, row // 2, column // 2] = value
    return result


def test_parameter_free_shortcut_equals_a_slow_one() -> None:
    x = torch.randn(2, 3, 6, 4)
    assert torch.equal(PaddingShortcut(3, 8, 2)(x), padded_shortcut(x, 8))
    block = CifarResNet(8, shortcut="identity").get_submodule("stage2.block1").eval()
    assert isinstance(block, BasicBlock)
    images = torch.randn(2, 16, 8, 8)
    branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(images)))))
    assert torch.equal(block(images), torch.relu(padded_shortcut(images, 32) + branch))


def test_network_without_classifier_gives_pooled_features() -> None:
    model = CifarResNet(8, classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 64, 8, 8)
    assert torch.equal(model(images), features.mean(dim=(2, 3)))


def test_initial_weights_are_he_normal_by_fan_out() -> None:
    torch.manual_seed(0)
    weight = CifarResNet(20).get_submodule("stage3.block2.conv1").weight
    assert isinstance(weight, Tensor)
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [2, 7, 18, 52])
def test_depth_that_is_no_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth {depth} is not 6n"):
        CifarResNet(depth)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet21", "resnet20"),
        ("resnet56-identty", "resnet56-identity"),
        ("timm/resnet1Ot", "resnet10t"),
    ],
)
def test_unknown_name_gives_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{name.rpartition('/')[2]}.*did you mean .*{near}"):
        backbones.create(BackboneConfig(name, 10))


def test_name_like_no_other_says_what_there_is() -> None:
    with pytest.raises(UserError, match=r"give resnetD with D = 6n \+ 2 .*timm/NAME"):
        backbones.create(BackboneConfig("vgg", 10))


@pytest.mark.parametrize("name", backbones.usual_names())
def test_every_name_builds_what_describes_itself_by_it(name: str) -> None:
    config = BackboneConfig(name, classes=7, channels=1, image_size=16)
    with torch.device("meta"):
        model = backbones.create(config)
    assert backbones.describe(model) == config


@pytest.mark.parametrize("classes", [0, 7])
def test_timm_name_goes_back_and_forth(classes: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet10t.c3_in1k", num_classes=classes, in_chans=1)
        config = backbones.describe(model)
        again = backbones.create(config)
    assert (config.name, config.classes, config.channels) == ("timm/resnet10t", classes, 1)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_network_without_a_name_cannot_be_described() -> None:
    with pytest.raises(UserError, match="Sequential cannot be built again by name"):
        backbones.describe(nn.Sequential())
