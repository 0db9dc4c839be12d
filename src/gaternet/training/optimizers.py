"""The optimisers of the recipes, and what they keep of every parameter."""

import torch
from timm.optim import RMSpropTF
from torch import Tensor, nn

from gaternet.training.config import Optimizer


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters that need gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.kind == "rmsprop":
        # TensorFlow's: ε within the root, squares that start at 1. With ε = 1 that matters.
        return RMSpropTF(
            parameters,
            lr=settings.lr,
            alpha=0.9,
            eps=1.0,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def slots_of(settings: Optimizer) -> dict[str, torch.Size | None]:
    """Return what an optimiser keeps of every parameter: slot → shape; None: the parameter's.

    As a step of it shows, with a parameter of its own.
    """
    one = nn.ParameterList([torch.zeros(2)])
    parameter = one[0]
    parameter.grad = torch.zeros(2)
    optimizer = make_optimizer(one, settings)
    optimizer.step()
    return {
        slot: None if value.shape == parameter.shape else value.shape
        for slot, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }
