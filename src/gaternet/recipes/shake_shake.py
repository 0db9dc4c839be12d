"""Shake-Shake on CIFAR-10: the paper's Table 2, and the same with cutout."""

from dataclasses import replace

from gaternet.data.settings import CIFAR10
from gaternet.recipes.densenet import GATE_DROPOUT, JOINT_RATE
from gaternet.recipes.resnet import GATING
from gaternet.training.config import Optimizer, Recipe, Schedule

EPOCHS = 1800
SCHEDULE = Schedule(batch_size=128, kind="cosine")
OPTIMIZER = Optimizer(lr=0.2, nesterov=True)
"""1,800 epochs in batches of 128, one cosine from 0.2, Nesterov momentum 0.9, weight decay 0.0001
(Gastaldi, 2017, section 2)."""

MORE_EPOCHS = 30
CUTOUT = 16
"""Side of the square that is cut out of CIFAR-10's images (DeVries and Taylor, 2017)."""


def _shake_shake(width: int) -> list[Recipe]:
    title = f"Shake-Shake 26 2x{width}d"
    plain = Recipe(
        name=f"cifar10/shake-shake-26-2x{width}d",
        reproduces=f"Table 2, {title} on CIFAR-10",
        data=CIFAR10,
        backbone=f"shake-shake-26-2x{width}d",
        epochs=EPOCHS,
        schedule=SCHEDULE,
        optimizer=OPTIMIZER,
    )
    gated = replace(
        plain,
        name=f"{plain.name}-gated",
        reproduces=f"Table 2, {title}-Gated on CIFAR-10",
        epochs=EPOCHS + MORE_EPOCHS,
        optimizer=replace(OPTIMIZER, lr=JOINT_RATE),
        gating=replace(GATING, dropout=GATE_DROPOUT),
        pretrain=(plain.name, "cifar10/resnet20"),
    )
    return [plain, gated, *(_with_cutout(recipe) for recipe in (plain, gated))]


def _with_cutout(recipe: Recipe) -> Recipe:
    """The combination that the paper names and does not measure (section 4.2.2)."""
    backbone, *gater = recipe.pretrain or ("",)
    return replace(
        recipe,
        name=f"{recipe.name}-cutout",
        reproduces=f"named in section 4.2.2, not measured there: "
        f"{recipe.reproduces.removeprefix('Table 2, ')}, with cutout",
        augmentation=replace(recipe.augmentation, cutout=CUTOUT),
        pretrain=(f"{backbone}-cutout", *gater) if recipe.pretrain else (),
    )


RECIPES = [recipe for width in (64, 96) for recipe in _shake_shake(width)]
