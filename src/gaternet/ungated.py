"""Images that training shows to the plain backbone, every gate open."""

import torch
from torch import Tensor, nn

from gaternet import draws
from gaternet.draws import Salt


class UngatedImages(nn.Module):
    """Gates (N, G) → gates that are all 1 for a share of the images, in training mode only.

    Without such images the backbone sees an image only under the gates that were chosen for it, and
    may learn to read the class from them instead of from the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.share = 0.0

    def set_share(self, share: float) -> None:
        """Set the share of images, drawn at random; raise ValueError unless it is in [0, 1)."""
        if not 0.0 <= share < 1.0:
            raise ValueError(f"share is {share}; it is a probability below 1")
        self.share = share

    def forward(self, gates: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the gates that are used; `keys` as for a binarizer.

        By its key an image is open in every layer or in none.
        """
        if not (self.training and self.share):
            return gates
        opened = draws.uniform(gates[:, :1], keys, Salt.UNGATED) < self.share
        return torch.where(opened, 1.0, gates)
