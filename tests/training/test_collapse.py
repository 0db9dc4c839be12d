"""Gates that all close or all open: told once, with what to change, and nothing becomes NaN."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gaternet.binarizers import GateForm
from gaternet.gate_points import GatePoint
from gaternet.model import GatedModel, GaterNet
from gaternet.training.collapse import MANY_STEPS, WARNING, collapse_warning
from gaternet.training.config import Gating, Recipe
from gaternet.training.evaluation import evaluate
from gaternet.training.loop import Probe, fit
from gaternet.training.phases import build_model
from gaternet.training.progress import reporting
from gaternet.training.run import Run
from gaternet.training.trainer import Trainer
from small_runs import (
    EFFICIENT,
    GATED,
    PLAIN,
    cpu_plan,
    few_digits,
    new_run,
    quiet,
    shown,
    tiny_gated,
    with_batches,
)


def gated(**settings: Any) -> Recipe:
    assert GATED.gating is not None
    gating = replace(GATED.gating, **settings)
    return with_batches(replace(GATED, epochs=7, gating=gating), 8, warmup=0.0)


def lines(*shares: float) -> list[dict[str, Any]]:
    return [{"open_share": share} for share in shares]


def run_of(recipe: Recipe, path: Path) -> tuple[Run, Trainer, str]:
    """Train on 20 batches an epoch; return what was shown, too."""
    torch.manual_seed(0)
    images, console = few_digits(160), quiet()
    run = new_run(path, recipe, images)
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    probe = Probe(few_digits(20), "training sample")
    with reporting(recipe.name, 20 * recipe.epochs, recipe.epochs, console) as reporter:
        fit(trainer, images, probe, run, reporter)
    return run, trainer, shown(console)


def numbers_in(values: Any) -> list[float]:
    if isinstance(values, dict):
        return [number for value in values.values() for number in numbers_in(value)]
    return [float(values)] if isinstance(values, int | float) else []


@pytest.mark.parametrize(
    ("settings", "state", "advice"),
    [
        (
            {"sparsity": 1000.0, "opening_bias": -3.0},
            "closed",
            "lower --gating.sparsity (now 1000), raise --gating.opening-bias (now -3), "
            "or lower --optimizer.lr (now 0.05)",
        ),
        (
            {"sparsity": 0.0, "opening_bias": 30.0},
            "open",
            "raise --gating.sparsity (now 0), lower --gating.opening-bias (now 30), "
            "or lower --optimizer.lr (now 0.05)",
        ),
    ],
)
def test_collapse_is_reported_once_and_nothing_becomes_nan(
    settings: dict[str, float], state: str, advice: str, tmp_path: Path
) -> None:
    run, trainer, output = run_of(gated(**settings), tmp_path / "run")
    metrics = run.metrics()
    warning = f"practically all gates have been {state} for {MANY_STEPS} steps: {advice}"
    assert [line.get(WARNING) for line in metrics].count(f"warning: {warning}") == 1
    assert output.count(warning) == 1
    assert all(math.isfinite(number) for line in metrics for number in numbers_in(line))
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    hard = metrics[-1]["probe"]["hard"]["gates"]
    assert hard["mean_open"] == (hard["total"] if state == "open" else 0)


def test_gates_that_work_are_not_warned_of(tmp_path: Path) -> None:
    run, _, output = run_of(gated(), tmp_path / "run")
    assert "warning" not in output
    assert not any(WARNING in line for line in run.metrics())


def test_many_steps_in_a_row_are_asked_for() -> None:
    recipe = gated()
    assert collapse_warning(recipe, MANY_STEPS // 4, lines(0, 0, 0)) is None
    assert collapse_warning(recipe, MANY_STEPS // 4, lines(0, 0, 0, 0))
    assert collapse_warning(recipe, MANY_STEPS // 4, lines(0, 0.1, 0, 0)) is None
    assert collapse_warning(recipe, MANY_STEPS // 4, lines(0.5, 1, 1, 1, 1))
    assert collapse_warning(recipe, MANY_STEPS * 9, lines(0.5, 0.9995))
    assert collapse_warning(recipe, MANY_STEPS * 9, lines(0.5, 0.99)) is None
    assert collapse_warning(recipe, MANY_STEPS * 9, [{WARNING: "told", **lines(1)[0]}]) is None


def test_networks_without_gates_that_learn_are_not_warned_of() -> None:
    always = Gating(gater=None, binarizer="random", rate=1.0)
    assert collapse_warning(replace(GATED, gating=always), 100, lines(1, 1)) is None
    assert collapse_warning(PLAIN, 100, [{}]) is None


def closed_in(model: GaterNet, points: tuple[GatePoint, ...]) -> GaterNet:
    """Let the gater close every gate of some gate points, whatever the image."""
    assert model.gater.head is not None
    head = model.gater.head[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        for point in points:
            columns = model.slices[point.name]
            head.weight[columns] = 0.0
            head.bias[columns] = -30.0
    return model


@pytest.mark.parametrize("layers", [1, None], ids=["one layer", "all layers"])
def test_closed_layers_are_evaluated(layers: int | None) -> None:
    torch.manual_seed(0)
    model = tiny_gated().eval()
    points = model.points[:layers]
    closed = sum(point.gates for point in points)
    found = evaluate(closed_in(model, points), few_digits(90), PLAIN.data, cpu_plan(PLAIN))
    assert math.isfinite(found.loss)
    assert found.gates is not None
    assert found.gates.always_off >= closed
    if layers is None:
        assert found.gates.mean_open == 0
        # What is left is the network of its shortcuts.
        with torch.no_grad():
            images = few_digits(90).images / 255
            images = (images - PLAIN.data.mean[0]) / PLAIN.data.std[0]
            loss = nn.functional.cross_entropy(
                model(images, gates=torch.zeros(model.gate_count)).logits, few_digits(90).labels
            )
        assert found.loss == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("recipe", [GATED, EFFICIENT], ids=["gated", "on a budget"])
def test_step_under_closed_gates_is_finite(recipe: Recipe) -> None:
    torch.manual_seed(0)
    recipe = with_batches(recipe, 16)
    model = build_model(recipe)
    assert isinstance(model, GaterNet)
    trainer = Trainer(closed_in(model, model.points), recipe, cpu_plan(recipe))
    trainer.set_stage(0.9)
    model.train()
    for batch in trainer.batches(few_digits(64)):
        loss, _, opened = trainer.step(*batch)
        assert math.isfinite(float(loss))
        assert float(opened) == 0
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert isinstance(trainer.evaluated, GatedModel)
    for form in GateForm:
        found = evaluate(model, few_digits(20), recipe.data, trainer.plan, form)
        assert math.isfinite(found.loss)
