"""Pre-activation ResNets: counts by hand, and a slow re-implementation of their unit."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gaternet.backbones.resnet_preact import PreactBottleneck, PreactResNet


def test_smallest_network_has_the_count_by_hand() -> None:
    def unit(inputs: int, inner: int, outputs: int) -> int:
        norms = 2 * (inputs + inner + inner)
        convs = inputs * inner + 9 * inner * inner + inner * outputs
        return norms + convs + (0 if inputs == outputs else inputs * outputs)

    units = unit(16, 4, 16) + unit(16, 32, 128) + unit(128, 64, 256)
    expected = 3 * 16 * 9 + units + 2 * 256 + 256 * 10 + 10
    assert sum(p.numel() for p in PreactResNet(11).parameters()) == expected


def normalised(x: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize(("outputs", "stride"), [(6, 1), (8, 1), (8, 2)])
def test_unit_equals_its_definition(outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    unit = PreactBottleneck(6, 4, outputs, stride, reduction=None).eval()
    for norm in (unit.bn1, unit.bn2, unit.bn3):
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert tensor is not None
            torch.nn.init.uniform_(tensor, 0.5, 2.0)
    x = torch.randn(2, 6, 8, 8)
    start = normalised(x, unit.bn1).clamp(min=0)
    # A 1×1 conv is a matrix product, and a stride after it is as good as a stride in it.
    inner = torch.einsum("oi,nihw->nohw", unit.conv1.weight[:, :, 0, 0], start)
    inner = inner[:, :, ::stride, ::stride]
    inner = F.conv2d(normalised(inner, unit.bn2).clamp(min=0), unit.conv2.weight, padding=1)
    inner = normalised(inner, unit.bn3).clamp(min=0)
    branch = torch.einsum("oi,nihw->nohw", unit.conv3.weight[:, :, 0, 0], inner)
    shortcut = x
    if unit.shortcut is not None:
        weight = unit.shortcut.weight[:, :, 0, 0]
        shortcut = torch.einsum("oi,nihw->nohw", weight, start)[:, :, ::stride, ::stride]
    assert (unit.shortcut is None) == (outputs == 6)
    torch.testing.assert_close(unit(x), shortcut + branch, rtol=1e-4, atol=1e-4)


def test_network_without_classifier_gives_pooled_features() -> None:
    model = PreactResNet(11, classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 256, 8, 8)
    assert features.min() >= 0  # the last norm and ReLU are in it
    assert torch.equal(model(images), features.mean(dim=(2, 3)))


@pytest.mark.parametrize("depth", [2, 55, 163])
def test_depth_that_is_no_9n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth {depth} is not 9n"):
        PreactResNet(depth)
