"""Whole runs of what is compared with the paper's gates, on the digits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import gaternet
from gaternet.binarizers import GateForm
from gaternet.commands import EvaluationRequest, evaluate_run, predict_images
from gaternet.model import GatedModel
from gaternet.training.calibration import calibrate
from gaternet.training.config import Recipe, Sources
from gaternet.training.phases import build_model, train
from gaternet.training.trainer import Trainer
from small_runs import GATED, PLAIN, cpu_plan, few_digits, on_cpu, with_batches

NO_NOISE = {"anneal_from": 1.0, "anneal_until": 1.0}
RIVALS: dict[str, dict[str, Any]] = {
    "layers": {"decides": "layers", "gater": None},
    "branches": {
        "decides": "branches", "gater": None, "binarizer": "gumbel-sigmoid", "sparsity": 0.0,
        "target_rate": 0.6, **NO_NOISE,
    },
    "soft": {"binarizer": "soft", **NO_NOISE},
    "random": {"binarizer": "random", "rate": 0.7, "sparsity": 0.0, **NO_NOISE},
    "dropout": {"dropout": 0.3},
    "ungated": {"ungated": 0.2},
}  # fmt: skip


def rival(name: str) -> Recipe:
    assert GATED.gating is not None
    gating = replace(GATED.gating, **RIVALS[name])
    return with_batches(replace(GATED, epochs=1, gating=gating, pretrain=()), 128)


@pytest.mark.parametrize("name", RIVALS)
def test_run_is_measured_saved_and_evaluated_alike(name: str, tmp_path: Path) -> None:
    run = train(rival(name), Sources("digits"), tmp_path / "run", on_cpu())
    result = run.result
    assert result is not None
    assert result["gate_form"] == ("soft" if name == "soft" else "hard")
    assert result["gates"]["total"] == (3 if name == "branches" else 112)
    assert ("soft" in run.metrics()[0]["probe"]) == (name != "random")
    measured = evaluate_run(run.path, EvaluationRequest("digits", device="cpu")).evaluation
    assert measured.form == GateForm(result["gate_form"])
    assert measured.error_percent == pytest.approx(result["test_error_percent"], abs=1e-3)
    assert measured.gates is not None
    assert measured.gates.mean_open == pytest.approx(result["gates"]["mean_open"])
    assert isinstance(gaternet.load(run.path), GatedModel)


@pytest.mark.parametrize("name", RIVALS)
def test_whatever_is_trained_gets_a_gradient(name: str) -> None:
    """Several processes wait for every gradient."""
    recipe = rival(name)
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    trainer.set_stage(0.5)
    trainer.model.train()
    batch = next(iter(trainer.batches(few_digits())))
    trainer.objective(*batch)[0].backward()
    without = [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_layers_that_decide_can_be_asked_for_one_image(tmp_path: Path) -> None:
    run = train(rival("layers"), Sources("digits"), tmp_path / "run", on_cpu())
    Image.fromarray(few_digits(1).images[0, 0].numpy()).save(tmp_path / "digit.png")
    (found,) = predict_images(run.path, (tmp_path / "digit.png",), "cpu")
    assert [layer.total for layer in found.layers] == [16, 32, 64]


def test_gate_dropout_grows_with_the_schedule() -> None:
    recipe = rival("dropout")
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    for progress in (0.0, 0.5, 0.9):
        trainer.set_stage(progress)
        assert isinstance(trainer.model, GatedModel)
        assert float(trainer.model.dropout.rate) == pytest.approx(0.3 * progress)


def test_training_shows_images_to_the_whole_backbone() -> None:
    recipe = rival("ungated")
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    trainer.set_stage(0.0)
    assert isinstance(trainer.model, GatedModel)
    assert trainer.model.ungated.share == 0.2


@pytest.mark.parametrize("name", ["layers", "dropout"])
def test_what_only_training_draws_has_no_part_in_batch_norm_measured_again(name: str) -> None:
    recipe = with_batches(rival(name), 40)
    found = []
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        model = build_model(recipe)
        assert isinstance(model, GatedModel)
        model.dropout.set_rate(share)
        model.ungated.set_share(share)
        calibrate(Trainer(model, recipe, cpu_plan(recipe)), few_digits(160))
        found.append(dict(model.named_buffers()))
    for buffer in (name for name in found[0] if name.endswith("running_mean")):
        assert torch.equal(found[0][buffer], found[1][buffer]), buffer


def test_control_trains_the_plain_network_on(tmp_path: Path) -> None:
    """It starts from a trained backbone, its own or a given one, and ends as a plain network."""
    first = with_batches(replace(PLAIN, epochs=1), 128)
    control = replace(first, name="digits/resnet8-control", pretrain=("digits/resnet8",))
    own = train(control, Sources("digits"), tmp_path / "own", on_cpu())
    assert own.result is not None
    assert own.result["pretrain_epochs"] == {"backbone": 20}
    given = Sources("digits", backbone=own.path / "backbone")
    again = train(control, given, tmp_path / "given", on_cpu())
    weights = [
        (run.path / "checkpoints/epoch-0001/model.safetensors").read_bytes() for run in (own, again)
    ]
    assert weights[0] == weights[1]
    started = gaternet.load(own.path / "backbone").state_dict()
    ended = gaternet.load(own.path).state_dict()
    assert started.keys() == ended.keys()
