"""The budget of multiply-accumulates: what holds it, and that it is reached without collapsing."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gaternet
from gaternet import recipes
from gaternet.accounting import count_macs
from gaternet.data.augmentation import normalise
from gaternet.data.digits import load_digits
from gaternet.data.settings import DIGITS
from gaternet.errors import UsageError
from gaternet.model import GaterNet
from gaternet.training.budget import WEIGHT, make_budget, threshold_for
from gaternet.training.calibration import calibrate
from gaternet.training.config import Recipe, Sources, check
from gaternet.training.phases import train
from gaternet.training.schedules import budget_share
from gaternet.training.starting import build_model
from gaternet.training.trainer import Trainer
from small_runs import EFFICIENT, PLAIN, a_budget_of, cpu_plan, few_digits, on_cpu, with_batches

SIZE = DIGITS.input_size


def model_of(recipe: Recipe) -> GaterNet:
    model = build_model(recipe)
    assert isinstance(model, GaterNet)
    return model


def digits(split: str) -> Tensor:
    return normalise(load_digits(split).images, DIGITS.mean, DIGITS.std)


def test_target_falls_from_everything_and_then_holds() -> None:
    gating = a_budget_of(0.4).gating
    assert gating is not None
    assert gating.budget_from == 0.3
    found = [budget_share(gating, progress) for progress in (0.0, 0.15, 0.3, 0.99)]
    assert found == pytest.approx([1.0, 0.7, 0.4, 0.4])
    assert budget_share(replace(gating, budget_from=0.0), 0.0) == 0.4
    assert budget_share(replace(gating, budget=None), 0.5) == 1.0


def test_step_pays_for_the_squared_relative_miss() -> None:
    recipe = with_batches(EFFICIENT, 12)
    without = with_batches(a_budget_of(None), 12)
    keys = torch.arange(12)
    losses, opened = [], []
    for each in (recipe, without):
        trainer = Trainer(build_model(each), each, cpu_plan(each))
        trainer.set_stage(0.5)
        trainer.model.train()
        trainer.model.register_forward_hook(lambda m, args, output: opened.append(output.gates))
        batch = few_digits(12)
        losses.append(trainer.step(batch.images, batch.labels, keys)[0].item())
    share = count_macs(model_of(recipe), SIZE).shares(opened[0].double()).mean().item()
    assert torch.equal(opened[0], opened[1])
    assert losses[0] - losses[1] == pytest.approx(WEIGHT * (share / 0.5 - 1) ** 2, rel=1e-4)


def test_every_gate_is_open_at_first_and_the_network_is_the_plain_one() -> None:
    model = model_of(EFFICIENT).eval()
    images = digits("test")
    with torch.no_grad():
        logits, gates = model(images)
        assert gates.mean() == 1.0
        torch.testing.assert_close(logits, model.backbone(images))
        model.train()
        model.backbone.eval()
        assert model(images, keys=torch.arange(len(images))).gates.mean() > 0.9


@pytest.mark.parametrize("name", [n for n in recipes.RECIPES if "-efficient" in n])
def test_gater_of_a_recipe_costs_at_most_3_per_cent(name: str) -> None:
    recipe = recipes.get(name)
    with torch.device("meta"):
        model = build_model(recipe)
    counter = count_macs(model, recipe.data.input_size)
    assert counter.deciding_macs <= 0.03 * counter.backbone_macs


def test_budget_below_what_is_always_needed_is_refused() -> None:
    recipe = a_budget_of(0.05)
    with pytest.raises(UsageError, match=r"--gating\.budget 0\.05 cannot be reached: .* 0\.\d+ of"):
        make_budget(build_model(recipe), recipe)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"budget": 0.0}, r"gating\.budget must be in \(0, 1\]"),
        ({"budget_from": 1.5}, r"gating\.budget-from must be in"),
        ({"block": 0}, r"gating\.block must be at least 1"),
        (
            {"binarizer": "soft", "anneal_from": 1.0, "anneal_until": 1.0},
            r"binarizer soft cannot keep a budget",
        ),
        (
            {"decides": "branches", "gater": None, "input_size": None},
            r"decides branches has one gate for each: .*--gating\.points outer",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    setting: dict[str, object], message: str
) -> None:
    assert EFFICIENT.gating is not None
    with pytest.raises(UsageError, match=message):
        check(replace(EFFICIENT, gating=replace(EFFICIENT.gating, **setting)))  # type: ignore[arg-type]


def test_block_that_does_not_fit_is_refused_with_the_layer() -> None:
    assert EFFICIENT.gating is not None
    recipe = replace(EFFICIENT, gating=replace(EFFICIENT.gating, block=5))
    with pytest.raises(UsageError, match=r"--gating\.block 5 .*`stage1\.block1\.bn1`: 16 channels"):
        build_model(recipe)


def test_threshold_is_where_the_samples_need_the_target() -> None:
    model = model_of(EFFICIENT)
    counter = count_macs(model, SIZE)
    logits = torch.randn(400, model.gate_count, generator=torch.Generator().manual_seed(0))
    for target in (0.3, 0.5, 0.9):
        threshold = threshold_for(counter, logits, target)
        share = counter.shares((logits >= threshold).double()).mean().item()
        assert share == pytest.approx(target, rel=1e-3)


@pytest.mark.parametrize("target", [0.3, 0.42, 0.5, 0.61, 0.9])
def test_threshold_of_one_mask_is_midway_between_two_logits(target: float) -> None:
    """All samples have the same logits: shares are steps, and a threshold on a logit is chance."""
    model = model_of(EFFICIENT)
    counter = count_macs(model, SIZE)
    logits = torch.randn(1, model.gate_count, generator=torch.Generator().manual_seed(0))
    threshold = threshold_for(counter, logits.expand(7, -1), target)
    steps = logits[0].sort().values
    between = [-math.log(11), *((steps[1:] + steps[:-1]) / 2).tolist(), math.log(11)]
    shares = [counter.shares((logits >= edge).double()).item() for edge in between]
    best = min(range(len(between)), key=lambda index: abs(shares[index] - target))
    assert 0 < best < len(between) - 1
    assert threshold == pytest.approx(between[best], abs=1e-5)


def test_batch_norm_is_measured_under_the_gates_of_the_final_threshold() -> None:
    """One that opens a filter behind it would give it to layers that never saw it."""
    assert EFFICIENT.gating is not None
    gating = replace(EFFICIENT.gating, reestimate_batch_norm=True)
    recipe = with_batches(replace(EFFICIENT, gating=gating, pretrain=()), 40)
    model = model_of(recipe)
    trainer = Trainer(model, recipe, cpu_plan(recipe))
    images = few_digits(160)
    calibrate(trainer, images)
    assert abs(model.binarizer.threshold) > 0.1
    batches = [(p / 255 - DIGITS.mean[0]) / DIGITS.std[0] for p, _, _ in trainer.batches(images)]
    reference = copy.deepcopy(model).eval()
    gates = [reference.decide(batch).gates for batch in batches]
    assert any(
        (g != (reference.gate_logits(b) >= 0)).any() for g, b in zip(gates, batches, strict=True)
    )
    inputs: list[Tensor] = []
    watched = reference.backbone.get_submodule("stage3.block1.bn2")
    watched.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    reference.backbone.train()
    with torch.no_grad():
        for batch, chosen in zip(batches, gates, strict=True):
            reference(batch, gates=chosen)
    expected = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    found = model.backbone.get_submodule("stage3.block1.bn2").running_mean
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_threshold_outlives_a_run_that_was_killed_before_its_result(tmp_path: Path) -> None:
    recipe = replace(EFFICIENT, epochs=1, pretrain=())
    run = train(recipe, Sources("digits"), tmp_path / "run", on_cpu())
    before = run.result
    assert before is not None
    model = gaternet.load(run.path)
    assert isinstance(model, GaterNet)
    assert model.binarizer.threshold != 0
    (run.path / "result.json").unlink()
    after = train(recipe, Sources("digits"), tmp_path / "run", on_cpu(), resume=True).result
    assert after is not None
    assert after["gates"] == before["gates"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(PLAIN, epochs=8)
    return train(recipe, Sources("digits"), tmp_path_factory.mktemp("plain") / "run", on_cpu()).path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_budget_is_reached_without_collapsing(seed: int, plain: Path, tmp_path: Path) -> None:
    recipe = replace(EFFICIENT, epochs=10, seed=seed, pretrain=EFFICIENT.pretrain[:1])
    gater = train(
        replace(PLAIN, epochs=5, backbone="resnet8-narrow", seed=seed),
        Sources("digits"),
        tmp_path / "gater",
        on_cpu(),
    )
    run = train(recipe, Sources("digits", plain, gater.path), tmp_path / "run", on_cpu())
    result = run.result
    assert result is not None
    plain_macs = result["gates"]["backbone_macs"]
    assert result["macs_needed_per_image"] / plain_macs == pytest.approx(0.5, rel=0.02)
    assert result["test_error_percent"] < 8
    model = gaternet.load(run.path)
    assert isinstance(model, GaterNet)
    with torch.no_grad():
        gates = model.decide(digits("test")).gates
    assert len(torch.unique(gates, dim=0)) > 20
    assert all(gates[:, columns].any() for columns in model.slices.values())
    with torch.no_grad():
        seen = model.decide(digits("train")).gates.double()
    share = count_macs(model, SIZE).shares(seen).mean().item()
    assert share == pytest.approx(0.5, rel=0.005)


@pytest.mark.parametrize(("bias", "missed"), [(0.0, False), (8.0, True)])
def test_budget_that_no_threshold_meets_is_reported(bias: float, missed: bool) -> None:
    recipe = with_batches(replace(EFFICIENT, pretrain=()), 40)
    model = model_of(recipe)
    trainer = Trainer(model, recipe, cpu_plan(recipe))
    with torch.no_grad():
        model.gater.get_parameter("head.fc2.bias").fill_(bias)
    warning = calibrate(trainer, few_digits(160))
    if not missed:
        assert warning is None
        return
    budget = trainer.budget
    assert budget is not None
    everything = 100 * float(budget.counter.shares(torch.ones(1, model.gate_count)))
    assert warning is not None
    assert warning.startswith(f"warning: the gates leave {everything:.1f} % of the backbone's")
    assert f"not the {100 * budget.final:g} % of --gating.budget" in warning
