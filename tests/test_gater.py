"""The gater's parts and sizes (paper, sections 3.2.1 and 3.2.2)."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.gater import Gater


class Means(nn.Module):
    """Channel means: a smallest extractor, (N, C, H, W) → (N, C)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_head_is_the_papers(batch_norm: bool) -> None:
    gater = Gater(Means(), bottleneck=4, batch_norm=batch_norm).eval()
    gater.connect(6, (3, 8, 8))
    assert gater.head is not None
    weights = {name: torch.randn_like(p) for name, p in gater.head.named_parameters()}
    gater.head.load_state_dict(weights, strict=False)
    images = torch.randn(5, 3, 8, 8)
    x = images.mean(dim=(2, 3)) @ weights["fc1.weight"].T + weights["fc1.bias"]
    if batch_norm:  # running mean 0 and variance 1
        x = x / (1 + 1e-5) ** 0.5 * weights["norm.weight"] + weights["norm.bias"]
    expected = x.clamp(min=0) @ weights["fc2.weight"].T + weights["fc2.bias"]
    torch.testing.assert_close(gater(images), expected)


def test_parameters_are_features_and_two_layers() -> None:
    extractor = CifarResNet(20, classes=0)
    gater = Gater(extractor, bottleneck=8)
    gater.connect(336, (3, 32, 32))
    head = 64 * 8 + 8 + 2 * 8 + 8 * 336 + 336  # FC1, BatchNorm, FC2
    assert parameters(gater) == parameters(extractor) + head
    assert gater.features == 64


def test_biases_start_at_zero_and_the_opening_bias_is_fc2s() -> None:
    gater = Gater(Means(), bottleneck=4, opening_bias=1.5)
    gater.connect(6, (3, 8, 8))
    assert not gater.get_parameter("head.fc1.bias").any()
    assert (gater.get_parameter("head.fc2.bias") == 1.5).all()


def test_features_are_measured_without_a_trace() -> None:
    # num_features is 576 here but 1,024 leave the head: only a run knows.
    extractor = timm.create_model("mobilenetv3_small_050", num_classes=0)
    before = copy.deepcopy(extractor.state_dict())
    random_state = torch.get_rng_state()
    gater = Gater(extractor, bottleneck=8)
    assert gater._measure_features((3, 64, 64)) == 1024
    assert extractor.training
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in extractor.state_dict().items():
        assert torch.equal(value, before[name])


def test_measures_on_the_meta_device() -> None:
    with torch.device("meta"):
        gater = Gater(CifarResNet(8, classes=0), bottleneck=8)
        gater.connect(5, (3, 32, 32))
    assert gater.features == 64
    assert {parameter.device.type for parameter in gater.parameters()} == {"meta"}


def test_classifier_left_in_is_refused() -> None:
    gater = Gater(CifarResNet(8, classes=10), bottleneck=8)
    with pytest.raises(ValueError, match="gives 10 outputs but has 64 features"):
        gater.connect(5, (3, 32, 32))
    Gater(CifarResNet(8, classes=10), bottleneck=8, features=10).connect(5, (3, 32, 32))


def test_unpooled_features_are_refused() -> None:
    gater = Gater(nn.Conv2d(3, 8, 3), bottleneck=8)
    with pytest.raises(ValueError, match="pool them"):
        gater.connect(5, (3, 32, 32))


def test_connects_once() -> None:
    gater = Gater(Means(), bottleneck=4)
    with pytest.raises(RuntimeError, match="no gates yet"):
        gater(torch.zeros(1, 3, 8, 8))
    gater.connect(6, (3, 8, 8))
    head = gater.head
    gater.connect(6, (3, 8, 8))
    assert gater.head is head
    with pytest.raises(ValueError, match="6 gates, not to 7"):
        gater.connect(7, (3, 8, 8))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="bottleneck is 0; it must be at least 1"):
        Gater(Means(), bottleneck=0)
    with pytest.raises(ValueError, match="input_size is -8; it must be at least 1"):
        Gater(Means(), bottleneck=4, input_size=-8)


def test_glance_sees_a_smaller_copy() -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    gater = Gater(Flat(), bottleneck=4, input_size=8)
    gater.connect(6, (3, 32, 32))
    assert gater.features == 3 * 8 * 8
    images = torch.rand(2, 3, 32, 32)
    small = gater.glance(images)
    assert small.shape == (2, 3, 8, 8)
    # Antialiased: a triangle four pixels wide to each side, so flat areas stay and noise shrinks.
    torch.testing.assert_close(gater.glance(torch.full_like(images, 0.3)), small * 0 + 0.3)
    assert small.std() < F.avg_pool2d(images, 2).std()
    assert gater.glance(small) is small


def test_features_that_are_given_are_checked() -> None:
    gater = Gater(CifarResNet(8, classes=0), bottleneck=8, features=50)
    with pytest.raises(ValueError, match=r"gives \(2, 64\) for two images, not features=50"):
        gater.connect(5, (3, 32, 32))
    Gater(CifarResNet(8, classes=10), bottleneck=8, features=10).connect(5, (3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_glances_in_half_precision(dtype: torch.dtype) -> None:
    gater = Gater(CifarResNet(8, classes=0), bottleneck=4, input_size=16)
    gater.connect(5, (3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    found = gater.to(dtype).eval().glance(images.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), gater.glance(images), atol=2e-2, rtol=2e-2)
