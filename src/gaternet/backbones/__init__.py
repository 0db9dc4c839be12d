"""Plain CNNs that know nothing about gates, one family a file, and their names."""

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gaternet.errors import UserError

if TYPE_CHECKING:
    from torch import nn

TIMM_PREFIX = "timm/"
_OWN = re.compile(r"resnet(\d+)(-identity)?")
_USUAL_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 110)


@dataclass(frozen=True)
class BackboneConfig:
    """A CNN by name: `resnetD` with D = 6n + 2, `resnetD-identity` with the parameter-free
    shortcut, or `timm/NAME`. `classes=0` leaves the classifier out: an extractor for a gater."""

    name: str
    classes: int
    channels: int = 3
    image_size: int = 32


def usual_names() -> tuple[str, ...]:
    """Return the names of this package's own backbones at usual depths; any 6n + 2 will do."""
    plain = [f"resnet{depth}" for depth in _USUAL_DEPTHS]
    return (*plain, *(f"{name}-identity" for name in plain))


def create(config: BackboneConfig) -> "nn.Module":
    """Build the CNN that `config` names, with fresh weights.

    Raises UserError for an unknown name, with the nearest ones.
    """
    if config.name.startswith(TIMM_PREFIX):
        from gaternet.backbones import timm

        return timm.create(config)
    own = _OWN.fullmatch(config.name)
    if own is None or int(own[1]) < 8 or int(own[1]) % 6 != 2:
        near = difflib.get_close_matches(config.name, usual_names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give resnetD with D = 6n + 2"
        raise UserError(f"unknown backbone {config.name!r}; {hint} (timm/NAME takes any timm CNN)")
    from gaternet.backbones import resnet_cifar

    return resnet_cifar.CifarResNet(
        int(own[1]),
        config.classes,
        channels=config.channels,
        shortcut="identity" if own[2] else "projection",
        image_size=config.image_size,
    )


def describe(module: "nn.Module") -> BackboneConfig:
    """Return the configuration that builds a CNN of this architecture again.

    Raises UserError where it cannot be told: neither this package's nor timm's.
    """
    from gaternet.backbones import resnet_cifar, timm

    if isinstance(module, resnet_cifar.CifarResNet):
        return module.describe()
    return timm.describe(module)
