"""Gates that save multiply-accumulates: inner layers too, in blocks, on a budget, a cheap gater."""

from dataclasses import replace

from gaternet.data.settings import CIFAR10
from gaternet.recipes import imagenet, resnet
from gaternet.recipes.comparisons import ONE_MASK, Variant, smaller, vary
from gaternet.training.config import Gating, Optimizer, Recipe

BUDGET = 0.5
"""Of the plain backbone's multiply-accumulates."""

OTHER_BUDGETS = tuple(
    Variant(f"budget-{percent}", f"a budget of {percent} %", {"budget": percent / 100})
    for percent in (35, 70)
)

GATING = Gating(
    gater="resnet8-narrow",
    points="both",
    block=8,
    bottleneck=16,
    input_size=16,
    budget=BUDGET,
    opening_bias=2.0,
    anneal_from=0.4,
    anneal_until=0.7,
    reestimate_batch_norm=True,
)
"""Every gate starts open, noise closes 3 % of them for a start. The last third of the schedule has
the gates of evaluation, so that the budget is met by what is evaluated."""

OPTIMIZER = Optimizer(lr=0.05, nesterov=True, weight_decay=5e-4)

GATERS = {20: "resnet8-narrow", 56: "resnet8"}
"""Backbone's depth → its gater's network, 2 and 3 % of its multiply-accumulates at 16×16 pixels."""

IMAGENET_GATER = "resnet10t"
IMAGENET_SIDE = 64
"""2 % of a ResNet-50's multiply-accumulates."""


def _on_cifar(plain: Recipe) -> Recipe:
    """Return the efficient form of a plain ResNet's recipe, of the same length."""
    depth = int(plain.backbone.removeprefix("resnet"))
    short = "-short" if plain.name.endswith("-short") else ""
    return replace(
        plain,
        name=f"{plain.name.removesuffix('-short')}-efficient{short}",
        reproduces=f"not in the paper: ResNet-{depth} on {CIFAR10.title} with gates that halve "
        "its multiply-accumulates",
        gating=replace(GATING, gater=GATERS[depth]),
        optimizer=OPTIMIZER,
        schedule=resnet.SHORT,
        pretrain=(plain.name, f"{CIFAR10.name}/{GATERS[depth]}{short}"),
    )


def _with_budgets(efficient: Recipe) -> list[Recipe]:
    """Return the recipe, one mask for all images in its place, and both with other budgets."""
    found = [efficient, vary(efficient, ONE_MASK)]
    return found + [vary(each, budget) for each in found for budget in OTHER_BUDGETS]


def _on_imagenet() -> list[Recipe]:
    plain = imagenet.resnet(
        "resnet50", "timm/resnet50", "not in the paper: ResNet-50 on ImageNet, plain"
    )
    gater = imagenet.resnet(
        IMAGENET_GATER,
        f"timm/{IMAGENET_GATER}",
        "not in the paper: a small gater's pre-training, ResNet-10-T on ImageNet",
    )
    efficient = replace(
        plain,
        name=f"{plain.name}-efficient",
        reproduces="not in the paper: ResNet-50 on ImageNet with gates that halve its "
        "multiply-accumulates",
        gating=replace(
            GATING,
            gater=gater.backbone,
            block=16,
            bottleneck=imagenet.BOTTLENECK,
            input_size=IMAGENET_SIDE,
        ),
        pretrain=(plain.name, gater.name),
    )
    return [plain, gater, efficient]


_PLAIN = [
    recipe
    for recipe in (*resnet.TABLE1, *resnet.SHORTENED)
    if recipe.data is CIFAR10
    and recipe.gating is None
    and recipe.backbone in ("resnet20", "resnet56")
]
RECIPES = [
    *(
        smaller(recipe, f"resnet{depth}-narrow", f"ResNet-{depth} of half the width")
        for recipe in _PLAIN
        if recipe.backbone == "resnet20"
        for depth in (8, 20)
    ),
    *(each for recipe in _PLAIN for each in _with_budgets(_on_cifar(recipe))),
    *_on_imagenet(),
]
