"""Names of backbones: back and forth, on disk, and what a mistyped one leads to."""

from pathlib import Path

import pytest
import torch

import gaternet
from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.backbones.resnet_preact import PreactResNet
from gaternet.errors import UserError

SMALL = [
    *("resnet8", "resnet8-identity", "resnet8-se", "resnet20-wider"),
    *("resnet11-preact", "resnet11-preact-se", "densenet-bc-10-4", "shake-shake-26-2x4d"),
]


@pytest.mark.parametrize("name", [*backbones.usual_names(), *SMALL])
def test_every_name_builds_what_describes_itself_by_it(name: str) -> None:
    config = BackboneConfig(name, classes=7, channels=1, image_size=16)
    with torch.device("meta"):
        model = backbones.create(config)
    assert backbones.describe(model) == config


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_wider_imagenet_resnets_describe_themselves(depth: int) -> None:
    config = BackboneConfig(f"timm/resnet{depth}-wider", classes=7, channels=1, image_size=64)
    with torch.device("meta"):
        assert backbones.describe(backbones.create(config)) == config


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [0, 7])
def test_networks_are_saved_and_loaded(name: str, classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = backbones.create(BackboneConfig(name, classes, channels=1, image_size=16)).eval()
    gaternet.save(model, tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model")
    images = torch.randn(2, 1, 16, 16)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(images), model(images))


def test_resnet164_has_bottlenecks_and_is_named_without_saying_so() -> None:
    with torch.device("meta"):
        for name in ("resnet164", "resnet164-preact"):
            model = backbones.create(BackboneConfig(name, 10))
            assert isinstance(model, PreactResNet)
            assert backbones.describe(model).name == "resnet164"
        assert isinstance(backbones.create(BackboneConfig("resnet110", 10)), CifarResNet)
        assert isinstance(backbones.create(BackboneConfig("resnet110-preact", 10)), PreactResNet)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet21", "resnet20"),
        ("resnet56-identty", "resnet56-identity"),
        ("resnet32-wider", "resnet20-wider"),
        ("resnet164_se", "resnet164-se"),
        ("densenet-bc-101-12", "densenet-bc-100-12"),
        ("shakeshake-26-2x64d", "shake-shake-26-2x64d"),
        ("shake-shake-26-2x33d", "shake-shake-26-2x32d"),
        ("resnet34", "timm/resnet34"),
        ("inceptionv4", "timm/inception_v4"),
        ("timm/resnet1Ot", "resnet10t"),
    ],
)
def test_unknown_name_gives_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{name.rpartition('/')[2]}.*did you mean .*{near}"):
        backbones.create(BackboneConfig(name, 10))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet22", r"depth 22 is not 6n \+ 2"),
        ("resnet32-wider", "of depth 32 there is no wider version"),
        ("resnet12-preact", r"depth 12 is not 9n \+ 2"),
        ("densenet-bc-101-12", r"depth 101 is not 6n \+ 4"),
        ("shake-shake-26-2x33d", "width 33 is not even"),
        ("timm/resnet50-wider", "depth 50 is none of 34, 101, 152"),
        ("vgg", "timm/NAME takes any timm CNN"),
        ("§", "usual_names"),
    ],
)
def test_name_that_cannot_be_says_why(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        backbones.create(BackboneConfig(name, 10))
