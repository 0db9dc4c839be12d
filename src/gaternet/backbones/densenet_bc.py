"""DenseNet-BC for 32×32 images: bottleneck and compression (Huang et al., CVPR 2017)."""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet.backbones.config import BackboneConfig
from gaternet.backbones.initialisation import he_normal

NAME = r"densenet-bc-(?P<depth>\d{1,4})-(?P<growth>\d{1,4})"
USUAL_NAMES = ("densenet-bc-100-12", "densenet-bc-250-24", "densenet-bc-190-40")

BOTTLENECK = 4
"""Channels between a layer's two convs, in growth rates."""


class DenseLayer(nn.Module):
    """1×1 conv to 4k channels, 3×3 conv to k new ones: (N, in, H, W) → (N, in + k, H, W)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(x)))
        new = self.conv2(F.relu(self.bn2(new)))
        return torch.cat((x, new), dim=1)


class Transition(nn.Module):
    """1×1 conv to half of the channels and 2×2 average: (N, C, H, W) → (N, C/2, H/2, W/2)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNetBC(nn.Module):
    """Three dense blocks of (depth − 4)/6 layers: images (N, C, H, W) → logits (N, classes).

    `classes=0` leaves the classifier out and gives the pooled features (N, num_features).
    Raises ValueError for a depth that is not 6n + 4.
    """

    def __init__(
        self,
        depth: int,
        growth: int,
        classes: int = 10,
        *,
        input_size: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth {depth} is not 6n + 4 with n ≥ 1 (40, 100, 190, 250, …)")
        if growth < 1:
            raise ValueError(f"growth rate {growth} is less than 1")
        layers = (depth - 4) // 6
        self.depth = depth
        self.growth = growth
        self.classes = classes
        self.input_size = input_size
        channels = 2 * growth
        self.conv = nn.Conv2d(input_size[0], channels, 3, padding=1, bias=False)
        self.block1 = _block(layers, channels, growth)
        channels += layers * growth
        self.transition1 = Transition(channels)
        channels //= 2
        self.block2 = _block(layers, channels, growth)
        channels += layers * growth
        self.transition2 = Transition(channels)
        channels //= 2
        self.block3 = _block(layers, channels, growth)
        channels += layers * growth
        self.num_features = channels
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes) if classes else nn.Identity()
        self.apply(he_normal)

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds this architecture again."""
        channels, image_size, _ = self.input_size
        name = f"densenet-bc-{self.depth}-{self.growth}"
        return BackboneConfig(name, self.classes, channels, image_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature maps before pooling, (N, num_features, H/4, W/4)."""
        x = self.transition1(self.block1(self.conv(images)))
        x = self.block3(self.transition2(self.block2(x)))
        return F.relu(self.bn(x))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.forward_features(images).mean(dim=(2, 3)))


def _block(layers: int, inputs: int, growth: int) -> nn.Sequential:
    block = nn.Sequential()
    for i in range(layers):
        block.add_module(f"layer{i + 1}", DenseLayer(inputs + i * growth, growth))
    return block


def build(name: re.Match[str], config: BackboneConfig) -> DenseNetBC:
    """Build the network that `NAME` matched; raise ValueError where its depth has none."""
    depth, growth = int(name["depth"]), int(name["growth"])
    return DenseNetBC(depth, growth, config.classes, input_size=config.input_size)
