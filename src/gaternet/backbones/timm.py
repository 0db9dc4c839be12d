"""The bridge to timm: any of its CNNs by name, as a backbone or as a gater's extractor."""

import difflib

import timm
from torch import nn

from gaternet.backbones import TIMM_PREFIX, BackboneConfig
from gaternet.errors import UserError


def create(config: BackboneConfig) -> nn.Module:
    """Build timm's model `config.name` with fresh weights.

    Raises UserError for a name that timm does not know, with the nearest ones.
    """
    name = config.name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"timm {timm.__version__} knows no model {name!r}{hint}")
    return timm.create_model(name, num_classes=config.classes, in_chans=config.channels)


def describe(module: nn.Module) -> BackboneConfig:
    """Return the configuration of a model that `timm.create_model` made.

    Raises UserError where the module does not say which architecture it is.
    """
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
