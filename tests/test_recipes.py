"""Every recipe can be run, and the paper's have the paper's values."""

from dataclasses import replace

import pytest
import torch

from gaternet import backbones, recipes
from gaternet.backbones import BackboneConfig
from gaternet.errors import UsageError
from gaternet.recipes import RECIPES
from gaternet.training.config import Gating, recipe_from_dict, recipe_to_dict
from gaternet.training.schedules import learning_rate

PAPERS = [name for name in RECIPES if name.startswith("cifar") and not name.endswith("-short")]
GATED = [name for name in RECIPES if RECIPES[name].gating]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_be_run_and_survives_a_file(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipe_from_dict(recipe_to_dict(recipe), "config.json") == recipe
    with torch.device("meta"):
        backbones.create(BackboneConfig(recipe.backbone, recipe.data.classes))


@pytest.mark.parametrize("name", GATED)
def test_gated_recipe_is_pretrained_with_its_own_two_networks(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.gating is not None
    assert recipe.pretrain is not None
    backbone, gater = map(recipes.get, recipe.pretrain)
    assert backbone.backbone == recipe.backbone
    assert gater.backbone == recipe.gating.gater
    assert backbone.data == gater.data == recipe.data
    assert backbone.gating is gater.gating is None


def test_paper_s_recipes_are_complete() -> None:
    assert sorted(PAPERS) == sorted(
        f"cifar{classes}/resnet{depth}{kind}"
        for classes in (10, 100)
        for depth in (20, 56)
        for kind in ("", "-gated")
    )


@pytest.mark.parametrize("name", PAPERS)
def test_paper_s_schedule(name: str) -> None:
    recipe = recipes.get(name)
    steps = recipe.epochs * (50_000 // recipe.schedule.batch_size)
    assert steps == pytest.approx(64_000, rel=1e-3)
    rates = [
        learning_rate(recipe.schedule, recipe.optimizer.lr, step / 64_000)
        for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)
    optimizer = recipe.optimizer
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, False, 1e-4)
    augmentation = recipe.augmentation
    assert (augmentation.crop_padding, augmentation.mirror, augmentation.cutout) == (4, True, 0)


@pytest.mark.parametrize("name", [name for name in PAPERS if name in GATED])
def test_paper_s_gating_is_left_as_it_is(name: str) -> None:
    gating = recipes.get(name).gating
    assert gating is not None
    exact = Gating(gater="resnet20", bottleneck=8, anneal_from=1.0, anneal_until=1.0)
    # λ and the opening bias are printed nowhere.
    assert replace(gating, sparsity=0.0, opening_bias=0.0) == exact


def test_unknown_recipe_gives_near_ones() -> None:
    with pytest.raises(UsageError, match=r"'cifar10/resnet20_gated'.*cifar10/resnet20-gated"):
        recipes.get("cifar10/resnet20_gated")
    with pytest.raises(UsageError, match="gaternet recipes list"):
        recipes.get("?")
