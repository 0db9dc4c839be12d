"""Shake-Shake: two residual branches in a random mixture (Gastaldi, arXiv 1705.07485)."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet import randomness
from gaternet.backbones.config import BackboneConfig
from gaternet.backbones.initialisation import he_normal

NAME = r"shake-shake-26-2x(?P<width>\d{1,4})d"
USUAL_NAMES = tuple(f"shake-shake-26-2x{width}d" for width in (32, 64, 96, 112))

BLOCKS = 4
"""Blocks of a stage; 3 stages, 2 convs a branch, stem and classifier make 26 layers."""

_SALT = 0x53686B65
"""Keeps these draws apart from whatever else is drawn by the same keys."""


class Coefficients(NamedTuple):
    """One sample's share of the first branch, (N,) float32 in [0, 1)."""

    forward: Tensor
    """α: in the value."""
    backward: Tensor
    """β: in the gradient."""


def shake(first: Tensor, second: Tensor, coefficients: Coefficients) -> Tensor:
    """Return α·first + (1 − α)·second; its gradients are β and 1 − β. All are (N, C, H, W)."""
    return _Shake.apply(first, second, *coefficients)


class _Shake(torch.autograd.Function):
    @staticmethod
    def forward(first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        alpha = alpha[:, None, None, None]
        return (alpha * first + (1 - alpha) * second).to(first.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        beta = ctx.saved_tensors[0][:, None, None, None]
        first = (beta * gradient).to(gradient.dtype)
        return first, gradient - first, None, None


class Branch(nn.Module):
    """ReLU before, BatchNorm after each of two 3×3 convs: (N, in, H, W) → (N, out, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(F.relu(x)))
        return self.bn2(self.conv2(F.relu(x)))


class TwoPathShortcut(nn.Module):
    """Two 1×1 convs, each to half of the channels: one sees every stride-th pixel, the other those
    above and to the left of them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # Both paths in one conv: its first group sees the first path, its second the second.
        self.conv = nn.Conv2d(2 * inputs, outputs, 1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        paths = (x, F.pad(x, (1, -1, 1, -1)))
        seen = [path[:, :, :: self.stride, :: self.stride] for path in paths]
        return self.bn(self.conv(torch.cat(seen, dim=1)))


class ShakeShakeBlock(nn.Module):
    """A shortcut and a mixture of two branches: (N, in, H, W) → (N, out, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch1 = Branch(inputs, outputs, stride)
        self.branch2 = Branch(inputs, outputs, stride)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else TwoPathShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor, coefficients: Coefficients | None = None) -> Tensor:
        """Mix by these coefficients; None: half of each branch, the expectation."""
        first, second = self.branch1(x), self.branch2(x)
        if coefficients is None:
            return self.shortcut(x) + 0.5 * first + 0.5 * second
        return self.shortcut(x) + shake(first, second, coefficients)


class ShakeShake(nn.Module):
    """Shake-Shake-26 2×Wd, three stages of four blocks: images (N, C, H, W) → logits (N, classes).

    In training every sample has its own forward and backward coefficients in every block, uniform
    in [0, 1); in evaluation there are none. `classes=0` leaves the classifier out and gives the
    pooled features (N, 4·width). Raises ValueError for an odd width.

    The stem has `width` channels, as the parameters of the gated paper's Table 2 tell; Gastaldi's
    has 16, and for that a third shortcut.
    """

    takes_keys = True
    """The forward takes keys that its draws follow from, (N,) int64."""

    def __init__(
        self, width: int, classes: int = 10, *, input_size: tuple[int, int, int] = (3, 32, 32)
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width {width} is not even (the shortcut has two halves)")
        self.width = width
        self.classes = classes
        self.input_size = input_size
        self.num_features = 4 * width
        self.conv = nn.Conv2d(input_size[0], width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        shapes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.blocks = nn.ModuleList()
        for inputs, outputs, stride in shapes:
            self.blocks.append(ShakeShakeBlock(inputs, outputs, stride))
            self.blocks.extend(ShakeShakeBlock(outputs, outputs, 1) for _ in range(BLOCKS - 1))
        self.fc = nn.Linear(self.num_features, classes) if classes else nn.Identity()
        self.apply(he_normal)

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds this architecture again."""
        channels, image_size, _ = self.input_size
        name = f"shake-shake-26-2x{self.width}d"
        return BackboneConfig(name, self.classes, channels, image_size)

    def forward_features(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the feature maps before pooling, (N, 4·width, H/4, W/4)."""
        x = self.bn(self.conv(images))
        if not self.training:
            for block in self.blocks:
                x = block(x)
            return F.relu(x)
        draws = self._draw(images, keys)
        for i, block in enumerate(self.blocks):
            x = block(x, Coefficients(draws[:, 2 * i], draws[:, 2 * i + 1]))
        return F.relu(x)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return logits; `keys`, (N,) int64, make training's draws repeatable by sample."""
        return self.fc(self.forward_features(images, keys).mean(dim=(2, 3)))

    def _draw(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """Return α and β of every block in turn, (N, 2·blocks)."""
        count = 2 * len(self.blocks)
        if keys is None:
            return torch.rand(images.shape[0], count, device=images.device)
        return randomness.uniform(keys ^ _SALT, count)


def build(name: re.Match[str], config: BackboneConfig) -> ShakeShake:
    """Build the network that `NAME` matched; raise ValueError for an odd width."""
    return ShakeShake(int(name["width"]), config.classes, input_size=config.input_size)
