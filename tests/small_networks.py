"""Small networks that the tests of several parts share."""

import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Block(nn.Module):
    """A branch and a shortcut, whatever they are."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


class ResidualNet(nn.Sequential):
    """A stem, an identity block, a projection block: 4 gates at 1.branch.4, 8 at 2.branch.4."""

    def __init__(self) -> None:
        branches = [
            nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, n), nn.BatchNorm2d(n))
            for n in (4, 8)
        ]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        super().__init__(conv(3, 4), Block(branches[0]), Block(branches[1], conv(4, 8, 1)), *head)
