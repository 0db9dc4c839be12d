"""What a recipe costs, before anything is trained."""

from dataclasses import dataclass

import torch

from gaternet import recipes
from gaternet.training.config import Recipe
from gaternet.training.result import macs_per_image
from gaternet.training.starting import build_model

STEP_MACS = 3
"""A training step in forwards: the backward computes two products for each of the forward's."""


@dataclass(frozen=True)
class Cost:
    """Counted, not measured; multiply-accumulates include the gater's, and every filter's."""

    parameters: int
    macs_per_image: int
    """One forward of one image."""
    training_macs: int
    """All epochs of this recipe's own phase."""
    pretraining_macs: int
    """What comes before it, where no trained networks are given."""


def cost(recipe: Recipe) -> Cost:
    """Count what training `recipe` takes, on the meta device."""
    with torch.device("meta"):
        model = build_model(recipe)
    macs, _ = macs_per_image(model, recipe.data)
    before = [cost(recipes.get(name)) for name in recipe.pretrain]
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs_per_image=macs,
        training_macs=STEP_MACS * macs * recipe.data.training_images * recipe.epochs,
        pretraining_macs=sum(c.training_macs + c.pretraining_macs for c in before),
    )
