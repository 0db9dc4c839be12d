"""Values only: every recipe is a `Recipe`, found by its name."""

import difflib

from gaternet.errors import UsageError
from gaternet.recipes import cifar, digits
from gaternet.training.config import Recipe, check

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*cifar.RECIPES, *digits.RECIPES)}


def get(name: str) -> Recipe:
    """Return the recipe called `name`; raise UsageError with the nearest names if there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `gaternet recipes list`"
        raise UsageError(f"unknown recipe {name!r}; {hint}")
    return check(RECIPES[name])
