"""`gaternet bench train`: the ratios, the table, the JSON, and what it refuses."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gaternet import recipes, training_pace
from gaternet.data.digits import load_digits
from gaternet.data.settings import Augmentation
from gaternet.training import tracking
from gaternet.training.config import Recipe
from gaternet.training.run import Run
from gaternet.training.starting import build_model
from gaternet.training.trainer import Trainer
from gaternet.training_pace import PaceRequest, measure_pace, plain_recipes
from gaternet.training_rounds import Pieces
from small_runs import GATED, PLAIN, Silent, cpu_plan
from terminal import Terminal

REQUEST = PaceRequest(rounds=2, steps=3, threads=None, device="cpu")
NAMES = ("step_ratio", "epoch_ratio", "checkpoint_share", "memory_ratio", "loop_ratio")

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
"""The usual loop forks its workers."""


def slowed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> dict[str, float]:
    """Return the median ratios where parts of the work take so many seconds more."""

    def slow(owner: type, name: str, pause: float) -> None:
        action = getattr(owner, name)

        def slower(*given: object, **named: object) -> object:
            time.sleep(pause)
            return action(*given, **named)

        monkeypatch.setattr(owner, name, slower)

    for name, pause in seconds.items():
        owner = {"save_checkpoint": Run, "add_epoch": tracking.Board}[name]
        slow(owner, name, pause)
    found = measure_pace(recipe, "digits", REQUEST)
    return {name: ratio.median for name, ratio in found.ratios.items()}


def test_json_has_every_ratio_and_its_interval(terminal: Terminal) -> None:
    words = ("digits/resnet8-gated", "--rounds", "3", "--steps", "2", "--device", "cpu", "--json")
    found = json.loads(terminal.succeed("bench", "train", *words))
    for name in NAMES:
        low, high = found[f"{name}_interval"]
        assert 0 < low <= found[name] <= high, name
    assert found["images_per_second"] > 0
    assert found["hardware"]
    assert found["missing"] == {}
    # ReLU outputs and inputs of BatchNorms are there twice, gated outputs come on top.
    assert 1 < found["memory_ratio"] < 1.15


def test_table_says_what_was_measured(terminal: Terminal) -> None:
    words = ("digits/resnet8-gated", "--rounds", "1", "--steps", "1", "--device", "cpu")
    shown = terminal.succeed("bench", "train", *words)
    for name in NAMES:
        assert name in shown
    assert "images/s" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_what_a_checkpoint_takes_is_in_its_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = slowed(GATED, monkeypatch)
    after = slowed(GATED, monkeypatch, save_checkpoint=1.0)
    assert after["checkpoint_share"] > 2 * before["checkpoint_share"]
    assert after["checkpoint_share"] > 0.3
    assert after["epoch_ratio"] < 2


def test_what_logging_takes_is_in_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    after = slowed(GATED, monkeypatch, add_epoch=1.0)
    assert after["epoch_ratio"] > 3


def test_pieces_are_those_of_whole_epochs() -> None:
    images = load_digits("train")
    pieces = Pieces(build_model(GATED), GATED, cpu_plan(GATED), 4)
    pieces.supply = pieces.endless(images)
    whole = Trainer(build_model(GATED), GATED, cpu_plan(GATED))
    labels = [labels for _, labels, _ in whole.batches(images)]
    found = [labels for _ in range(2) for _, labels, _ in pieces.batches(images)]
    assert all(a.equal(b) for a, b in zip(found, labels, strict=False))
    assert len(found) == 8
    steps = whole.steps_per_epoch(images)
    for _ in range(2 * steps // 4):  # goes on with the next epoch
        assert pieces.train_epoch(images, Silent())["loss"] > 0


def test_plain_networks_train_as_the_gated_one_does() -> None:
    gated = recipes.get("cifar10/resnet20-efficient-short")
    found = plain_recipes(gated)
    assert list(found) == ["backbone", "gater"]
    assert gated.gating is not None
    for plain in found.values():
        assert plain.gating is None
        assert (plain.optimizer, plain.compute) == (gated.optimizer, gated.compute)
    assert found["gater"].backbone == gated.gating.gater
    assert found["gater"].data.image_size == (gated.gating.input_size or 32)
    assert list(plain_recipes(recipes.get("cifar10/resnet20-gated-local"))) == ["backbone"]


def test_a_gater_that_sees_smaller_images_is_measured_on_those() -> None:
    assert GATED.gating is not None
    small = replace(GATED, gating=replace(GATED.gating, input_size=4))
    found = measure_pace(small, "digits", REQUEST)
    assert found.saved_megabytes["gater"] < found.saved_megabytes["backbone"] / 2


def test_whatever_cannot_be_compared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cutout = replace(GATED, augmentation=Augmentation(1, False, cutout=2))
    found = measure_pace(with_cutout, "digits", REQUEST)
    assert "crops and mirrors only" in found.missing["loop_ratio"]
    assert "loop_ratio" not in found.ratios
    monkeypatch.setattr(training_pace, "USUAL_LOOP", Path("not there"))
    assert "checkout" in measure_pace(GATED, "digits", REQUEST).missing["loop_ratio"]


def test_mistakes_are_named(terminal: Terminal) -> None:
    assert "has no gates" in terminal.fail(2, "bench", "train", PLAIN.name)
    assert "--rounds 0" in terminal.fail(2, "bench", "train", GATED.name, "--rounds", "0")
    assert "--threads 0" in terminal.fail(2, "bench", "train", GATED.name, "--threads", "0")
    nowhere = ("bench", "train", GATED.name, "--data", "/not/there", "--device", "cpu")
    assert "/not/there" in terminal.fail(1, *nowhere)
