"""The bridge to timm: any of its CNNs by name, as a backbone or as a gater's extractor."""

import re

import timm
from torch import nn

from gaternet import spelling
from gaternet.backbones import resnet_wide
from gaternet.backbones.config import TIMM_PREFIX, BackboneConfig
from gaternet.errors import UserError


def create(config: BackboneConfig, *, pretrained: bool = False) -> nn.Module:
    """Build timm's model `config.name`, with fresh weights or its pre-trained ones.

    A new head comes with the classes of `config` where they are not those of the weights.

    Raises UserError for a name that timm does not know, with the nearest ones, and where there are
    no pre-trained weights or they cannot be loaded.
    """
    name = config.name.removeprefix(TIMM_PREFIX)
    if match := re.fullmatch(resnet_wide.NAME, name):
        return _create_wide(match, config, pretrained)
    _check_name(name)
    if pretrained and not timm.is_model_pretrained(name):
        raise UserError(f"timm {timm.__version__} has no pre-trained weights for {name!r}")
    try:
        return timm.create_model(
            name, pretrained, num_classes=config.classes, in_chans=config.channels
        )
    except Exception as error:
        if not pretrained:
            raise
        # Whatever fails in a download: the HTTP client's own kinds of failure are beyond listing.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the pre-trained weights of {name!r} cannot be loaded ({reason}): check the network, "
            "or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from error


def describe(module: nn.Module) -> BackboneConfig:
    """Return the configuration of a model that `timm.create_model`, or `create` here, made.

    Raises UserError where the module does not say which architecture it is.
    """
    if isinstance(module, resnet_wide.WideResNet):
        return module.describe()
    pretrained = getattr(module, "pretrained_cfg", None)
    if not pretrained or "architecture" not in pretrained:
        raise UserError(
            f"{type(module).__name__} cannot be built again by name: it is neither this package's "
            "nor timm's; save its state_dict() and build it in your own code"
        )
    first = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    return BackboneConfig(
        name=TIMM_PREFIX + pretrained["architecture"],
        classes=int(getattr(module, "num_classes", 0)),
        channels=first.in_channels,
        image_size=pretrained["input_size"][-1],
    )


def knows(name: str) -> bool:
    """Return whether timm has a model of this name, without `timm/`."""
    return timm.is_model(name)


def near_names(name: str) -> list[str]:
    """Return names of timm's models like `name`, as `BackboneConfig` has them."""
    return [TIMM_PREFIX + known for known in spelling.near_names(name, timm.list_models())]


def _create_wide(name: re.Match[str], config: BackboneConfig, pretrained: bool) -> nn.Module:
    if pretrained:
        raise UserError(f"there are no pre-trained weights for {config.name}")
    try:
        return resnet_wide.build(name, config)
    except ValueError as error:
        raise UserError(f"unknown network {config.name!r}: {error}") from None


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        hint = spelling.did_you_mean(name, timm.list_models(), "see timm.list_models()")
        raise UserError(f"timm {timm.__version__} knows no model {name!r}; {hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        known = timm.list_pretrained(f"{architecture}.*")
        hint = f"; there are {', '.join(known)}" if known else ""
        raise UserError(f"timm's {architecture} has no weights tagged {tag!r}{hint}") from None
