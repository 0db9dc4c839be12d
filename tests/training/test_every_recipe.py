"""One training step of every CIFAR recipe, as it is but for the size of its batch."""

from dataclasses import replace

import pytest
import torch

from gaternet import recipes
from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.recipes import RECIPES
from gaternet.training.config import BLIND
from gaternet.training.cost import cost
from gaternet.training.phases import build_model
from gaternet.training.trainer import Trainer
from small_runs import EAGER, cpu_plan, with_batches

CIFAR = [name for name in RECIPES if name.startswith("cifar")]
QUICK = [name for name in CIFAR if name.startswith("cifar10/resnet20") and name.endswith("-short")]
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CIFAR]
OTHERS = [name for name in RECIPES if name not in CIFAR]
BATCH = 4


def few_images(classes: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(BATCH) * (classes // BATCH)
    return make_image_set(images, labels, [str(i) for i in range(classes)], "noise")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_model_is_built_and_pays_for_its_gates(name: str) -> None:
    recipe = recipes.get(name)
    found = cost(recipe)
    assert found.parameters > 0
    assert found.training_macs > 0
    assert (found.pretraining_macs > 0) == bool(recipe.pretrain)


@pytest.mark.parametrize("name", CASES)
def test_one_step(name: str) -> None:
    recipe = with_batches(replace(recipes.get(name), compute=EAGER), BATCH, warmup=0.0)
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    trainer.set_stage(0.5)
    trainer.model.train()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    (batch,) = trainer.batches(few_images(recipe.data.classes))
    loss, wrong, opened = trainer.step(*batch)
    assert loss.isfinite()
    assert 0 <= wrong <= BATCH
    assert (0 < opened < BATCH) == (recipe.gating is not None)
    after = dict(trainer.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    still = {name for name in before if torch.equal(before[name], after[name])}
    # Random gates ask no gater, and of a blind one the last biases count alone; whatever else stays
    # where it was has no way to learn.
    if recipe.gating and (recipe.gating.binarizer == "random" or recipe.gating.gater == BLIND):
        still = {name for name in still if not name.startswith("gater.")}
    # Of the two units between a small squeeze and excitation none may be on for so few images.
    dead = {name for name in still if name.endswith("excitation.fc1.bias")}
    assert len(dead) < sum(name.endswith("excitation.fc1.bias") for name in before) or not dead
    assert still - dead == set()
