"""ResNets of basic blocks: counts by hand, the authors' names of weights, slow shortcuts."""

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from gaternet.backbones.resnet_cifar import BasicBlock, CifarResNet, PaddingShortcut
from gaternet.backbones.squeeze_excitation import SqueezeExcitation


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


def test_squeeze_and_excitation_equals_timm_s() -> None:
    torch.manual_seed(0)
    ours = SqueezeExcitation(8, reduction=4)
    theirs = timm.layers.SEModule(8, rd_channels=2)
    for layer, conv in ((ours.fc1, theirs.fc1), (ours.fc2, theirs.fc2)):
        conv.load_state_dict(
            {"weight": layer.weight[:, :, None, None], "bias": torch.randn_like(layer.bias)}
        )
        layer.load_state_dict({"weight": layer.weight, "bias": conv.bias})
    x = torch.randn(3, 8, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_squeeze_and_excitation_weighs_the_branch_and_not_the_shortcut() -> None:
    block = CifarResNet(8, reduction=4).get_submodule("stage1.block1").eval()
    assert isinstance(block, BasicBlock)
    assert isinstance(block.excitation, SqueezeExcitation)
    nn.init.constant_(block.excitation.fc2.bias, -1e4)  # every weight is 0
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), torch.relu(x))
