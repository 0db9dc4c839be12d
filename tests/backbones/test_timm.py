"""The bridge to timm: back and forth by name, wider ResNets, pre-trained weights."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from gaternet import backbones
from gaternet.backbones import BackboneConfig, resnet_wide
from gaternet.errors import UserError


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


@pytest.mark.parametrize("depth", [34, 101])
def test_wider_resnet_of_base_width_64_is_timm_s(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resnet_wide.BASE_WIDTHS, depth, 64)
    torch.manual_seed(0)
    ours = resnet_wide.WideResNet(depth, classes=5).eval()
    theirs = timm.create_model(f"resnet{depth}", num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
    assert ours.feature_info == theirs.feature_info


def test_wider_resnet_is_wider_everywhere() -> None:
    with torch.device("meta"):
        model = resnet_wide.WideResNet(152, classes=0)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 75 == 0 for conv in convs)
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 32 * 75)


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights that stand in for those of the hub."""
    torch.manual_seed(1)
    weights = timm.create_model("resnet10t").state_dict()

    def load(*args: object, **kwargs: object) -> dict[str, Tensor]:
        return dict(weights)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    return weights


def test_pretrained_weights_are_loaded(standing_in: dict[str, Tensor]) -> None:
    model = backbones.create(BackboneConfig("timm/resnet10t", 1000), pretrained=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, standing_in[name])


def test_pretrained_weights_get_a_new_head_for_other_classes(
    standing_in: dict[str, Tensor],
) -> None:
    model = backbones.create(BackboneConfig("timm/resnet10t", 7), pretrained=True)
    state = model.state_dict()
    assert state["fc.weight"].shape == (7, 512)
    assert torch.equal(state["layer4.0.conv1.weight"], standing_in["layer4.0.conv1.weight"])


def test_hub_that_cannot_be_reached_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(UserError, match=r"'resnet10t'.*\(no route to host\): check the network"):
        backbones.create(BackboneConfig("timm/resnet10t", 10), pretrained=True)


@pytest.mark.parametrize("name", ["resnet20", "timm/resnet34-wider", "timm/resnet20"])
def test_network_without_pretrained_weights_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}|no model"):
        backbones.create(BackboneConfig(name, 10), pretrained=True)


def test_weights_of_an_unknown_tag_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"resnet10t has no weights tagged 'c4'.*c3_in1k"):
        backbones.create(BackboneConfig("timm/resnet10t.c4", 10), pretrained=True)


def test_network_without_a_name_cannot_be_described() -> None:
    with pytest.raises(UserError, match="Sequential cannot be built again by name"):
        backbones.describe(nn.Sequential())
