"""Plain CNNs that know nothing about gates, one family a file, and their names."""

import re
from collections.abc import Callable

from torch import nn

from gaternet.backbones import blind, densenet_bc, resnet_cifar, resnet_preact, shake_shake
from gaternet.backbones.config import TIMM_PREFIX, BackboneConfig
from gaternet.errors import UserError
from gaternet.spelling import near_names

__all__ = ["TIMM_PREFIX", "BackboneConfig", "create", "describe", "usual_names"]

Builder = Callable[[re.Match[str], BackboneConfig], nn.Module]

FAMILIES: dict[str, Builder] = {
    resnet_preact.NAME: resnet_preact.build,
    resnet_cifar.NAME: resnet_cifar.build,
    densenet_bc.NAME: densenet_bc.build,
    shake_shake.NAME: shake_shake.build,
    blind.NAME: blind.build,
}
"""Regular expression → what builds the names that match it; the first that matches counts."""

_OWN = (
    resnet_cifar.CifarResNet,
    resnet_preact.PreactResNet,
    densenet_bc.DenseNetBC,
    shake_shake.ShakeShake,
    blind.Blind,
)


def usual_names() -> tuple[str, ...]:
    """Return the names of this package's own backbones at usual sizes; others follow suit."""
    return (
        *resnet_cifar.USUAL_NAMES,
        *resnet_preact.USUAL_NAMES,
        *densenet_bc.USUAL_NAMES,
        *shake_shake.USUAL_NAMES,
    )


def create(config: BackboneConfig, *, pretrained: bool = False) -> nn.Module:
    """Build the CNN that `config` names, with fresh weights, or `pretrained` on ImageNet.

    Raises UserError for an unknown name, with the nearest ones, and where there are no pre-trained
    weights for it or they cannot be loaded.
    """
    if config.name.startswith(TIMM_PREFIX):
        from gaternet.backbones import timm

        return timm.create(config, pretrained=pretrained)
    if pretrained:
        raise UserError(
            f"there are no pre-trained weights for {config.name}: only {TIMM_PREFIX}NAME has some"
        )
    for pattern, build in FAMILIES.items():
        if match := re.fullmatch(pattern, config.name):
            try:
                return build(match, config)
            except ValueError as error:
                raise UserError(_unknown(config.name, f" ({error})")) from None
    raise UserError(f"{_unknown(config.name)} (timm/NAME takes any timm CNN)")


def is_name(name: str) -> bool:
    """Return whether `create` may know a CNN of this name: one of a family's, or timm's."""
    if any(re.fullmatch(pattern, name) for pattern in FAMILIES):
        return True
    from gaternet.backbones import timm

    return timm.knows(name.removeprefix(TIMM_PREFIX))


def depth_of(name: str) -> int | None:
    """Return how many layers a name of this package's own states; None: it states none."""
    found = (re.fullmatch(pattern, name) for pattern in FAMILIES)
    named = next((match.groupdict() for match in found if match), {})
    return int(named["depth"]) if "depth" in named else None


def describe(module: nn.Module) -> BackboneConfig:
    """Return the configuration that builds a CNN of this architecture again.

    Raises UserError where it is not known: neither this package's nor timm's.
    """
    if isinstance(module, _OWN):
        return module.describe()
    from gaternet.backbones import timm

    return timm.describe(module)


def _unknown(name: str, reason: str = "") -> str:
    from gaternet.backbones import timm

    near = near_names(name, usual_names())
    if timm.knows(name) or not near:
        near = timm.near_names(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "see gaternet.backbones.usual_names()"
    return f"unknown network {name!r}{reason}; {hint}"
