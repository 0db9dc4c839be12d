"""A gater's extractor that does not look: every image has the same features.

The gates on them are one mask for all images, trained as those of a GaterNet are: what gates that
are chosen by image have to beat.
"""

import re

import torch
from torch import Tensor, nn

from gaternet.backbones.config import BackboneConfig

NAME = "blind"


class Blind(nn.Module):
    """Images (N, C, H, W) → ones (N, 1); it has no parameters and no multiply-accumulates."""

    num_features = 1

    def __init__(self, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_size = input_size

    def describe(self) -> BackboneConfig:
        """Return the configuration that builds it again."""
        channels, image_size, _ = self.input_size
        return BackboneConfig(NAME, 0, channels, image_size)

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, 0, 0, :1])


def build(_: re.Match[str], config: BackboneConfig) -> Blind:
    """Build it; raise ValueError where classes are asked for."""
    if config.classes:
        raise ValueError("it sees nothing and tells no classes: it serves as a gater alone")
    return Blind(config.input_size)
