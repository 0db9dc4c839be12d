"""ImageNet ResNets that are wider all the way: Table 3's baselines of the size of gated ones."""

import re
from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
from torch import nn

from gaternet.backbones.config import TIMM_PREFIX, BackboneConfig

NAME = r"resnet(?P<depth>\d{1,4})-wider"

# Any: timm's signature asks for instances where its code takes classes.
LAYOUTS: dict[int, tuple[Any, tuple[int, ...]]] = {
    34: (BasicBlock, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
BASE_WIDTHS = {34: 80, 101: 74, 152: 75}
"""Depth → channels of the stem and the first stage; the plain ones have 64.

ResNet-152-Wider's printed 81.37 M lie between those of 74 (80.07 M) and of 75 (82.22 M): 75 is
nearer, and where it errs it favours the baseline.
"""


class WideResNet(ResNet):
    """timm's ResNet with stem and stages of `BASE_WIDTHS[depth]`·(1, 1, 2, 4, 8) channels.

    Images (N, C, H, W) → logits (N, classes); `classes=0` gives the pooled features. Raises
    ValueError for a depth that Table 3 has no wider version of.
    """

    def __init__(
        self, depth: int, classes: int = 1000, *, input_size: tuple[int, int, int] = (3, 224, 224)
    ) -> None:
        if depth not in LAYOUTS:
            raise ValueError(f"depth {depth} is none of {', '.join(map(str, LAYOUTS))}")
        (block, layers), width = LAYOUTS[depth], BASE_WIDTHS[depth]
        channels = (width, 2 * width, 4 * width, 8 * width)
        super().__init__(block, layers, classes, input_size[0], channels=channels)
        self.depth = depth
        self.input_size = input_size
        # timm's plain stem has 64 channels whatever the stages have.
        self.conv1 = nn.Conv2d(  # type: ignore[assignment]
            input_size[0], width, 7, stride=2, padding=3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.feature_info[0]["num_chs"] = width
        [(_, self.layer1)], _ = make_blocks((block,), (width,), layers[:1], inplanes=width)
        self.init_weights()

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds this architecture again."""
        channels, image_size, _ = self.input_size
        name = f"{TIMM_PREFIX}resnet{self.depth}-wider"
        return BackboneConfig(name, self.num_classes, channels, image_size)


def build(name: re.Match[str], config: BackboneConfig) -> WideResNet:
    """Build the network that `NAME` matched."""
    return WideResNet(int(name["depth"]), config.classes, input_size=config.input_size)
