"""How the weights of this package's own backbones start (He et al., ICCV 2015)."""

from torch import nn


def he_normal(module: nn.Module) -> None:
    """Set a conv to He-normal (fan-out) weights, a linear layer's bias to 0; leave all else.

    The original codes of all the families here start so, and the authors' too.
    """
    if isinstance(module, nn.Conv2d):
        if module.weight.is_meta:  # a draw of nothing takes its time
            return
        height, width = module.kernel_size
        fan_out = height * width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
