"""NaN and Inf: nothing is learnt from them, nothing kept, and where they began is said."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from poisoned_sample import Where, poison, with_poison
from torch import Tensor, nn

import gaternet
from gaternet import cli
from gaternet.data.settings import Augmentation
from gaternet.errors import UserError
from gaternet.randomness import permutation
from gaternet.training import trainer as training
from gaternet.training.config import Optimizer, Recipe
from gaternet.training.divergence import Sentinel, backward, check_finite
from gaternet.training.loop import Probe, fit
from gaternet.training.phases import build_model
from gaternet.training.run import Run
from gaternet.training.trainer import Trainer
from small_runs import GATED, Silent, cpu_plan, few_digits, new_run, with_batches

AS_IT_IS = Augmentation(crop_padding=0, mirror=False)
RECIPE = with_batches(replace(GATED, epochs=2, augmentation=AS_IT_IS), 8)
RMSPROP = replace(RECIPE, optimizer=Optimizer(kind="rmsprop", lr=0.01, momentum=0.9))
LAYER = "stage2.block1.conv1"
POISONED = 41


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def poisoned_trainer(recipe: Recipe, where: Where) -> Trainer:
    torch.manual_seed(5)
    model = build_model(recipe)
    poison(model, LAYER, where)
    return Trainer(model, recipe, cpu_plan(recipe))


@pytest.mark.parametrize("recipe", [RECIPE, RMSPROP], ids=["sgd", "rmsprop"])
@pytest.mark.parametrize(
    ("where", "begins"),
    [
        ("forward", "the loss became nan in epoch 1, step {}, first in the output of backbone."),
        (
            "backward",
            "gradients became infinite or NaN in epoch 1, step {}, first in the gradient of "
            "backbone.",
        ),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_layer_is_named_and_no_step_is_taken(
    recipe: Recipe, where: Where, begins: str, accumulate: int
) -> None:
    recipe = with_batches(recipe, 8, accumulate=accumulate)
    images = with_poison(few_digits(160), POISONED)
    bad = permutation(recipe.seed, 0, 160).tolist().index(POISONED) // 8
    assert 1 < bad < 15
    trainer = poisoned_trainer(recipe, where)
    with pytest.raises(UserError) as caught:
        trainer.train_epoch(images, Silent())
    message = str(caught.value)
    assert message.startswith(begins.format(bad + 1) + LAYER)
    assert "--optimizer.lr" in message
    # The weights are those of the same run up to the step before.
    other = poisoned_trainer(recipe, where)
    other.model.train()
    for step, batch in zip(range(bad), other.batches(images), strict=False):
        other.set_stage(step / 20 / recipe.epochs)
        other.step(*batch)
    for name, weight in weights_of(other).items():
        assert torch.equal(weight, weights_of(trainer)[name]), name


def test_steps_without_a_fault_are_those_of_the_optimizer_alone() -> None:
    torch.manual_seed(0)
    watched = nn.Linear(5, 3)
    alone = copy.deepcopy(watched)
    first, second = (
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=True) for m in (watched, alone)
    )
    sentinel = Sentinel(first, torch.device("cpu"))
    for _ in range(3):
        x = torch.randn(4, 5)
        backward(watched(x).square().mean(), 0.3)
        (alone(x).square().mean() * 0.3).backward()
        sentinel.step()
        second.step()
        first.zero_grad()
        second.zero_grad()
    assert sentinel.held_steps() == 0
    assert torch.equal(watched.weight, alone.weight)


def test_loss_that_overflows_alone_is_seen_in_the_gradients() -> None:
    weight = nn.Parameter(torch.ones(2))
    loss = weight.sum() + torch.tensor(float("inf"))
    (finite,) = torch.autograd.grad(loss, weight, retain_graph=True)
    assert finite.isfinite().all()
    backward(loss, 1.0)
    assert weight.grad is not None
    assert weight.grad.isnan().all()


def run_of(tmp_path: Path, recipe: Recipe) -> tuple[Run, Trainer, Probe]:
    images = few_digits(160)
    run = new_run(tmp_path / "run", recipe, images)
    return run, poisoned_trainer(recipe, "forward"), Probe(few_digits(20), "training sample")


def test_checkpoint_before_is_kept_and_good(tmp_path: Path) -> None:
    run, trainer, probe = run_of(tmp_path, RECIPE)
    fit_one = replace(RECIPE, epochs=1)
    trainer.recipe = fit_one
    fit(trainer, few_digits(160), probe, run, Silent())
    trainer.recipe = RECIPE
    with pytest.raises(UserError, match=f"in epoch 2, step .*backbone.{LAYER}"):
        fit(trainer, with_poison(few_digits(160), POISONED), probe, run, Silent())
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0001"]
    assert [line["epoch"] for line in run.metrics()] == [1]
    loaded = gaternet.load(run.path)
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())


def test_running_statistics_that_overflow_are_not_kept(tmp_path: Path) -> None:
    """Inf in BatchNorm's running variance leaves loss and gradients finite."""
    run, trainer, probe = run_of(tmp_path, RECIPE)
    norm = trainer.model.get_submodule("backbone.stage2.block1.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.fill_(float("inf"))
    with pytest.raises(UserError, match=r"backbone\.stage2\.block1\.bn1\.running_var holds NaN"):
        fit(trainer, few_digits(160), probe, run, Silent())
    assert not run.has_checkpoint


def test_large_but_finite_values_are_kept() -> None:
    check_finite({"model": {"weight": torch.full((4,), 3e38), "count": torch.tensor(7)}})


@pytest.mark.parametrize("place", ["weights", "scale"])
def test_bad_weights_are_named(place: str) -> None:
    torch.manual_seed(0)
    model = build_model(RECIPE)
    value = float("nan") if place == "weights" else 3e38
    conv = model.get_submodule(f"gater.extractor.{LAYER}")
    with torch.no_grad():
        next(conv.parameters()).fill_(value)
    trainer = Trainer(model, RECIPE, cpu_plan(RECIPE))
    name = f"gater.extractor.{LAYER}"
    expected = f"{name}.weight" if place == "weights" else f"the output of {name}"
    with pytest.raises(UserError, match=f"epoch 1, step 1, first in {expected}. That"):
        trainer.train_epoch(few_digits(160), Silent())


def test_rare_looks_find_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    images = with_poison(few_digits(160), POISONED)
    messages = set()
    for every in (1, 3, 1000):
        monkeypatch.setattr(training, "READ_EVERY", every)
        with pytest.raises(UserError) as caught:
            poisoned_trainer(RECIPE, "forward").train_epoch(images, Silent())
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_run_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["train", "digits/resnet8", "--epochs", "2", "--device", "cpu", "--out", str(out)]
    assert cli.main([*words, "--optimizer.lr", "1e30"]) == 1
    errors = capsys.readouterr().err
    assert re.fullmatch(r"gaternet: [^\n]+ epoch 1, step \d+, first in [^\n]+\n", errors)
    assert not list((out / "checkpoints").iterdir())
