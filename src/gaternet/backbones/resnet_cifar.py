"""Residual networks for 32×32 images, depth 6n + 2 (He et al., CVPR 2016, section 4.2)."""

import re
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from gaternet.backbones.config import BackboneConfig
from gaternet.backbones.initialisation import he_normal
from gaternet.backbones.squeeze_excitation import excitation

Shortcut = Literal["projection", "identity"]

NAME = r"resnet(?P<depth>\d{1,4})(?P<variant>-identity|-se|-wider|-narrow)?"

PLAIN = (16, 32, 64)
WIDER = {20: (23, 46, 92), 56: (18, 36, 72)}
"""Depth → widths that give the parameters of Table 1's ResNet-20-Wider and ResNet-56-Wider."""
NARROW = (8, 16, 32)
"""Half as wide: a gater that shall cost next to nothing, or a baseline that costs a quarter."""
REDUCTION = 4
"""Of squeeze and excitation, as the parameters of Table 1's ResNet-20-SE and ResNet-56-SE tell."""

_USUAL_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)
USUAL_NAMES = (
    *(f"resnet{depth}{suffix}" for depth in _USUAL_DEPTHS for suffix in ("", "-identity", "-se")),
    *(f"resnet{depth}-wider" for depth in WIDER),
    *("resnet8-narrow", "resnet20-narrow"),
)


class BasicBlock(nn.Module):
    """Two 3×3 convs and a shortcut: (N, in, H, W) → (N, out, H/stride, W/stride)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        shortcut: nn.Module,
        reduction: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.excitation = excitation(outputs, reduction)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.excitation(self.bn2(self.conv2(residual)))
        return F.relu(self.shortcut(x) + residual)


class ProjectionShortcut(nn.Module):
    """1×1 conv and BatchNorm where the shape changes (option B; the authors' layout)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class PaddingShortcut(nn.Module):
    """Every stride-th pixel, zeros for the new channels: no parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


SHORTCUTS: dict[Shortcut, type[ProjectionShortcut] | type[PaddingShortcut]] = {
    "projection": ProjectionShortcut,
    "identity": PaddingShortcut,
}


class CifarResNet(nn.Module):
    """Three stages of n basic blocks: images (N, C, H, W) → logits (N, classes).

    `classes=0` leaves the classifier out and gives the pooled features (N, widths[2]): the form
    that a gater takes as its extractor (paper, section 3.2.1). `reduction` adds squeeze and
    excitation to every block. Raises ValueError for another depth.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        *,
        widths: tuple[int, int, int] = PLAIN,
        channels: int = 3,
        shortcut: Shortcut = "projection",
        image_size: int = 32,
        reduction: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth {depth} is not 6n + 2 with n ≥ 1 (8, 14, 20, … 56, …)")
        blocks = (depth - 2) // 6
        self.depth = depth
        self.classes = classes
        self.widths = widths
        self.shortcut: Shortcut = shortcut
        self.reduction = reduction
        self.input_size = (channels, image_size, image_size)
        self.num_features = widths[2]
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.stage1 = self._stage(blocks, widths[0], widths[0], 1)
        self.stage2 = self._stage(blocks, widths[0], widths[1], 2)
        self.stage3 = self._stage(blocks, widths[1], widths[2], 2)
        self.fc = nn.Linear(widths[2], classes) if classes else nn.Identity()
        self.apply(he_normal)

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds this architecture again (widths of its name)."""
        suffix = "-identity" if self.shortcut == "identity" else ""
        if self.reduction is not None:
            suffix = "-se"
        elif self.widths == WIDER.get(self.depth):
            suffix = "-wider"
        elif self.widths == NARROW:
            suffix = "-narrow"
        channels, image_size, _ = self.input_size
        return BackboneConfig(f"resnet{self.depth}{suffix}", self.classes, channels, image_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature maps before pooling, (N, widths[2], H/4, W/4)."""
        x = F.relu(self.bn(self.conv(images)))
        return self.stage3(self.stage2(self.stage1(x)))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.forward_features(images).mean(dim=(2, 3)))

    def _stage(self, blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        stage = nn.Sequential()
        for i in range(blocks):
            # Only a stage's first block changes the shape.
            changes = i == 0 and (stride != 1 or inputs != outputs)
            path = SHORTCUTS[self.shortcut](inputs, outputs, stride) if changes else nn.Identity()
            block = BasicBlock(
                inputs if i == 0 else outputs,
                outputs,
                stride if i == 0 else 1,
                path,
                self.reduction,
            )
            stage.add_module(f"block{i + 1}", block)
        return stage


def build(name: re.Match[str], config: BackboneConfig) -> CifarResNet:
    """Build the network that `NAME` matched; raise ValueError where its depth has none."""
    depth, variant = int(name["depth"]), name["variant"]
    if variant == "-wider" and depth not in WIDER:
        raise ValueError(f"of depth {depth} there is no wider version")
    widths = {"-wider": WIDER.get(depth, PLAIN), "-narrow": NARROW}
    return CifarResNet(
        depth,
        config.classes,
        widths=widths.get(variant, PLAIN),
        channels=config.channels,
        shortcut="identity" if variant == "-identity" else "projection",
        image_size=config.image_size,
        reduction=REDUCTION if variant == "-se" else None,
    )
