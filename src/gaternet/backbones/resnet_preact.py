"""Pre-activation residual networks for 32×32 images, depth 9n + 2 (He et al., ECCV 2016)."""

import re

from torch import Tensor, nn
from torch.nn import functional as F

from gaternet.backbones.config import BackboneConfig
from gaternet.backbones.initialisation import he_normal
from gaternet.backbones.squeeze_excitation import excitation

BARE_DEPTHS = (164, 1001)
"""He et al.'s depths, known as ResNet-164 and ResNet-1001; the others are `resnetD-preact`."""

NAME = r"resnet(?P<depth>164|1001|\d{1,4}(?=-preact))(-preact)?(?P<variant>-se|-wider)?"

Widths = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""For each stage: channels of the two inner convs, and of the unit."""

PLAIN: Widths = ((4, 16), (32, 128), (64, 256))
"""The gated paper's (section 4.4); He et al. have (16, 64) first."""
WIDER: dict[int, Widths] = {164: ((4, 18), (36, 144), (72, 288))}
"""Depth → widths that give the parameters of Table 1's ResNet-164-Wider."""
REDUCTION = 8
"""Of squeeze and excitation, as the parameters of Table 1's ResNet-164-SE tell."""

USUAL_NAMES = (
    *("resnet164", "resnet164-se", "resnet164-wider", "resnet1001"),
    *("resnet11-preact", "resnet29-preact", "resnet47-preact", "resnet110-preact"),
)


class PreactBottleneck(nn.Module):
    """Norm and ReLU before each of 1×1, 3×3, 1×1 conv: (N, in, H, W) → (N, out, H/s, W/s)."""

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, reduction: int | None
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.excitation = excitation(outputs, reduction)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = self.conv1(activated)
        residual = self.conv2(F.relu(self.bn2(residual)))
        residual = self.excitation(self.conv3(F.relu(self.bn3(residual))))
        # Where the shape changes, the shortcut too starts from the activated features.
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class PreactResNet(nn.Module):
    """Three stages of n bottlenecks: images (N, C, H, W) → logits (N, classes).

    `classes=0` leaves the classifier out and gives the pooled features (N, widths[2][1]).
    `reduction` adds squeeze and excitation to every unit. Raises ValueError for another depth.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        *,
        widths: Widths = PLAIN,
        reduction: int | None = None,
        input_size: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        if depth < 11 or depth % 9 != 2:
            raise ValueError(f"depth {depth} is not 9n + 2 with n ≥ 1 (11, 20, … 164, …)")
        blocks = (depth - 2) // 9
        self.depth = depth
        self.classes = classes
        self.widths = widths
        self.reduction = reduction
        self.input_size = input_size
        stem, self.num_features = widths[0][1], widths[2][1]
        self.conv = nn.Conv2d(input_size[0], stem, 3, padding=1, bias=False)
        self.stage1 = _stage(blocks, stem, widths[0], 1, reduction)
        self.stage2 = _stage(blocks, widths[0][1], widths[1], 2, reduction)
        self.stage3 = _stage(blocks, widths[1][1], widths[2], 2, reduction)
        self.bn = nn.BatchNorm2d(self.num_features)
        self.fc = nn.Linear(self.num_features, classes) if classes else nn.Identity()
        self.apply(he_normal)

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds this architecture again (widths of its name)."""
        name = f"resnet{self.depth}" + ("" if self.depth in BARE_DEPTHS else "-preact")
        if self.reduction is not None:
            name += "-se"
        elif self.widths == WIDER.get(self.depth):
            name += "-wider"
        channels, image_size, _ = self.input_size
        return BackboneConfig(name, self.classes, channels, image_size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature maps before pooling, (N, widths[2][1], H/4, W/4)."""
        x = self.stage3(self.stage2(self.stage1(self.conv(images))))
        return F.relu(self.bn(x))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.forward_features(images).mean(dim=(2, 3)))


def _stage(
    blocks: int, inputs: int, widths: tuple[int, int], stride: int, reduction: int | None
) -> nn.Sequential:
    inner, outputs = widths
    stage = nn.Sequential()
    for i in range(blocks):
        first = i == 0
        unit = PreactBottleneck(
            inputs if first else outputs, inner, outputs, stride if first else 1, reduction
        )
        stage.add_module(f"block{i + 1}", unit)
    return stage


def build(name: re.Match[str], config: BackboneConfig) -> PreactResNet:
    """Build the network that `NAME` matched; raise ValueError where its depth has none."""
    depth, variant = int(name["depth"]), name["variant"]
    if variant == "-wider" and depth not in WIDER:
        raise ValueError(f"of depth {depth} there is no wider version")
    return PreactResNet(
        depth,
        config.classes,
        widths=WIDER[depth] if variant == "-wider" else PLAIN,
        reduction=REDUCTION if variant == "-se" else None,
        input_size=config.input_size,
    )
