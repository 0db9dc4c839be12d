"""How a backbone is named."""

from dataclasses import dataclass

TIMM_PREFIX = "timm/"


@dataclass(frozen=True)
class BackboneConfig:
    """A CNN by name; `classes=0` leaves the classifier out: an extractor for a gater.

    resnetD, D = 6n + 2 but 164: basic blocks; resnetD-identity: the parameter-free shortcut;
        resnetD-se: squeeze and excitation; resnet20-wider, resnet56-wider: Table 1's;
        resnetD-narrow: half as wide, for a gater
    resnet164, resnet1001: pre-activation bottlenecks, resnetD-preact at other depths 9n + 2;
        resnet164-se, resnet164-wider: Table 1's
    densenet-bc-L-k: depth L = 6n + 4 and growth rate k
    shake-shake-26-2xWd: two branches, W channels in the first stage
    blind: the same features for every image, for a gater that decides once for all
    timm/NAME: any CNN of timm's; timm/resnet34-wider, 101 and 152: Table 3's
    """

    name: str
    classes: int
    channels: int = 3
    image_size: int = 32

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.image_size, self.image_size
