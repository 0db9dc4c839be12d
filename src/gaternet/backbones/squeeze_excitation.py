"""Squeeze and excitation: a residual branch weighs its own channels (Hu et al., CVPR 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcitation(nn.Module):
    """x · σ(FC2(ReLU(FC1(mean of x)))), (N, C, H, W) → the same; C // reduction units between."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))  # (N, C)
        return x * weights[:, :, None, None]


def excitation(channels: int, reduction: int | None) -> nn.Module:
    """Return a branch's squeeze and excitation, or nothing where `reduction` is None."""
    return nn.Identity() if reduction is None else SqueezeExcitation(channels, reduction)
