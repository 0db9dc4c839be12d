"""A network is tried on images without values before anything is written."""

import pytest
import torch
from torch import Tensor, nn

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UserError
from gaternet.training.dry_run import try_network


def test_dry_run_changes_nothing() -> None:
    network = CifarResNet(8, image_size=8).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    try_network(network, (3, 8, 8), 10)
    assert torch.equal(torch.rand(1), drawn)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_images_that_do_not_fit_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(nn.MaxPool2d(4), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(3, 10))
    try_network(network, (3, 16, 16), 10)
    with pytest.raises(UserError, match=r"cannot take images of 3×8×8 \(.*too small\): name one"):
        try_network(network, (3, 8, 8), 10)
    assert not caplog.records


def test_what_gives_no_logits_is_refused() -> None:
    network = CifarResNet(8, classes=0, image_size=8)
    try_network(network, (3, 8, 8), None)
    with pytest.raises(UserError, match=r"gives \(2, 64\) for 2 images, not logits \(2, 10\)"):
        try_network(network, (3, 8, 8), 10)
    with pytest.raises(UserError, match="gives tuple for 2 images"):
        try_network(TwoHeads(), (3, 8, 8), 10)


def test_network_on_the_meta_device_is_tried_too() -> None:
    with torch.device("meta"):
        network = CifarResNet(8, image_size=8)
    try_network(network, (3, 8, 8), 10)
    assert all(parameter.is_meta for parameter in network.parameters())
    with pytest.raises(UserError, match="cannot take images of 4×8×8"):
        try_network(network, (4, 8, 8), 10)


class TwoHeads(nn.Module):
    """Gives a pair while it trains, as networks with auxiliary classifiers do."""

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = images.new_zeros(len(images), 10)
        return (logits, logits) if self.training else logits
