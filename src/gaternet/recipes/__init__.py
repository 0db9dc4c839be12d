"""Values only: every recipe is a `Recipe`, found by its name.

DATASET/MODEL is a plain network; -wider, -se and -gated are the paper's other rows; -control and
-gated-… are comparisons beyond the paper; -efficient is gated to save multiply-accumulates; -short
at the end is a schedule a tenth as long.
"""

from gaternet.errors import UsageError
from gaternet.recipes import (
    comparisons,
    densenet,
    digits,
    efficient,
    imagenet,
    resnet,
    shake_shake,
)
from gaternet.spelling import did_you_mean
from gaternet.training.config import Recipe, check

PAPER = (*resnet.TABLE1, *densenet.RECIPES, *shake_shake.RECIPES, *imagenet.RECIPES)
_TRAINED = {recipe.name: recipe for recipe in (*PAPER, *resnet.SHORTENED)}
_GATED = [recipe for recipe in _TRAINED.values() if recipe.gating]
_VARIED = [r for r in _GATED if r.name.startswith(("cifar10/resnet20-", "cifar10/resnet56-"))]
_RESNET101 = next(recipe for recipe in _GATED if recipe.name == "imagenet/resnet101-gated")

_ALL = (
    *PAPER,
    *resnet.SHORTENED,
    *(comparisons.control(recipe) for recipe in _GATED),
    *(comparisons.vary(r, variant) for r in _VARIED for variant in comparisons.VARIANTS),
    *(comparisons.from_scratch(r, _TRAINED[r.pretrain[0]]) for r in _VARIED),
    comparisons.vary(_RESNET101, comparisons.CONVNET_AIG),
    *(
        comparisons.smaller(recipe, f"resnet{depth}", f"ResNet-{depth}")
        for recipe in (*resnet.TABLE1, *resnet.SHORTENED)
        if recipe.name in ("cifar10/resnet20", "cifar10/resnet20-short")
        for depth in comparisons.SMALLER_GATERS
    ),
    *efficient.RECIPES,
    *digits.RECIPES,
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def get(name: str) -> Recipe:
    """Return the recipe called `name`; raise UsageError with the nearest names if there is none."""
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES, "see `gaternet recipes list`", likeness=0.4)
        raise UsageError(f"unknown recipe {name!r}; {hint}")
    return check(RECIPES[name])


def describe_length(recipe: Recipe) -> str:
    """Return the phases of a recipe and their epochs in words."""
    own = f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}"
    if not recipe.pretrain:
        return own
    before = " and ".join(f"{get(n).epochs} of {n}" for n in recipe.pretrain)
    return f"{own}, after {before} where these are not given"
