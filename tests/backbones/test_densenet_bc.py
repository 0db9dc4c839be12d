"""DenseNet-BC against torchvision's DenseNet with another stem."""

import pytest
import torch
import torchvision
from torch import nn

from gaternet.backbones.densenet_bc import DenseNetBC


def torchvisions(depth: int, growth: int, classes: int) -> nn.Module:
    layers = (depth - 4) // 6
    model = torchvision.models.DenseNet(
        growth, (layers,) * 3, 2 * growth, bn_size=4, num_classes=classes
    )
    model.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):  # ImageNet's stem
        model.features.set_submodule(name, nn.Identity())
    return model


@pytest.mark.parametrize("training", [True, False])
def test_outputs_equal_torchvision_s(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = DenseNetBC(22, 4, classes=7), torchvisions(22, 4, classes=7)
    state = ours.state_dict()
    for tensor in state.values():
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 2.0)
    # Both list their layers in the order of the forward.
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    ours.train(training)
    theirs.train(training)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_compression_rounds_down() -> None:
    model = DenseNetBC(10, 3)  # 6 + 3 = 9 channels before the first transition
    assert model.transition1.conv.weight.shape == (4, 9, 1, 1)


def test_network_without_classifier_gives_pooled_features() -> None:
    model = DenseNetBC(16, 4, classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 8, 8)
    assert torch.equal(model(images), features.mean(dim=(2, 3)))


@pytest.mark.parametrize(("depth", "growth"), [(4, 12), (101, 12), (100, 0)])
def test_depth_or_growth_rate_that_cannot_be_is_refused(depth: int, growth: int) -> None:
    with pytest.raises(ValueError, match=r"is not 6n \+ 4|is less than 1"):
        DenseNetBC(depth, growth)
