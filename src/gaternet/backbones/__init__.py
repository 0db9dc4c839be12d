"""Plain CNNs that know nothing about gates, one family a file, and their names."""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gaternet.errors import UserError

if TYPE_CHECKING:
    from torch import nn

TIMM_PREFIX = "timm/"
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)


@dataclass(frozen=True)
class BackboneConfig:
    """A CNN by name: `resnet20` … `resnet110`, with `-identity` for the parameter-free shortcut,
    or `timm/NAME`. `classes=0` is the form without a classifier, an extractor for a gater."""

    name: str
    classes: int
    channels: int = 3
    image_size: int = 32


def names() -> tuple[str, ...]:
    """Return the names of this package's own backbones."""
    plain = [f"resnet{depth}" for depth in CIFAR_DEPTHS]
    return (*plain, *(f"{name}-identity" for name in plain))


def create(config: BackboneConfig) -> "nn.Module":
    """Build the CNN that `config` names, with fresh weights.

    Raises UserError for an unknown name, with the nearest ones.
    """
    if config.name.startswith(TIMM_PREFIX):
        from gaternet.backbones import timm

        return timm.create(config)
    if config.name not in names():
        near = difflib.get_close_matches(config.name, names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise UserError(f"unknown backbone {config.name!r}; {hint} (timm/NAME takes any timm CNN)")
    from gaternet.backbones import resnet_cifar

    depth, _, option = config.name.removeprefix("resnet").partition("-")
    return resnet_cifar.CifarResNet(
        int(depth),
        config.classes,
        channels=config.channels,
        shortcut="identity" if option else "projection",
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
