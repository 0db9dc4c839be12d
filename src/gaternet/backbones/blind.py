"""A feature extractor that does not look: every image has the same features.

What is decided from them is decided once for all images: a baseline for what looks.
"""

import re

import torch
from torch import Tensor, nn

from gaternet.backbones.config import BackboneConfig

NAME = "blind"


class Blind(nn.Module):
    """Images (N, C, H, W) → zeros (N, 1); it has no parameters and no multiply-accumulates.

    Of zeros exactly the biases are left behind linear layers, norms and ReLU, whatever the weights.
    """

    num_features = 1

    def __init__(self, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_size = input_size

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds it again."""
        channels, image_size, _ = self.input_size
        return BackboneConfig(NAME, 0, channels, image_size)

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images[:, 0, 0, :1])


def build(_: re.Match[str], config: BackboneConfig) -> Blind:
    """Build it; raise ValueError where classes are asked for."""
    if config.classes:
        raise ValueError("it sees nothing and tells no classes: it serves as a gater alone")
    return Blind(config.input_size)
