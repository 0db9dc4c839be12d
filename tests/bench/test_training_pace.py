"""`gaternet bench train`: the ratios, the table, the JSON, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gaternet import recipes
from gaternet.bench import training_pace, training_rounds
from gaternet.bench.training_pace import PaceRequest, measure_pace, plain_recipes
from gaternet.bench.training_rounds import Pieces
from gaternet.data.digits import load_digits
from gaternet.data.settings import Augmentation
from gaternet.errors import UserError
from gaternet.model import GaterNet
from gaternet.training.run import Run
from gaternet.training.starting import build_model
from gaternet.training.trainer import Trainer
from small_runs import GATED, PLAIN, Silent, cpu_plan
from terminal import Terminal

REQUEST = PaceRequest(rounds=2, steps=3, threads=None, device="cpu")
NAMES = (
    *("step_ratio", "epoch_ratio", "data_share", "logging_share", "checkpoint_share"),
    *("memory_ratio", "loop_ratio"),
)

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
"""The usual loop forks its workers."""


class Clock:
    """In place of `time`: it goes on by what is said of a function whenever that is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def charge(
        self, patch: pytest.MonkeyPatch, owner: object, name: str, seconds: Callable[..., float]
    ) -> None:
        action = getattr(owner, name)

        def charged(*given: object, **named: object) -> object:
            self.now += seconds(*given, **named)
            return action(*given, **named)

        patch.setattr(owner, name, charged)


def test_json_has_every_ratio_and_its_interval(terminal: Terminal) -> None:
    words = ("digits/resnet8-gated", "--rounds", "6", "--steps", "2", "--device", "cpu", "--json")
    found = json.loads(terminal.succeed("bench", "train", *words))
    for name in NAMES:
        low, high = found[f"{name}_interval"]
        assert 0 < low <= found[name] <= high, name
    assert found["images_per_second"] > 0
    assert found["hardware"]
    assert found["missing"] == {}
    # ReLU outputs and inputs of BatchNorms are there twice, gated outputs come on top.
    assert 1 < found["memory_ratio"] < 1.15


def test_checkpoints_are_written_where_runs_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not among temporary files, which lie in memory on many systems."""
    monkeypatch.chdir(tmp_path)
    written: list[Path] = []
    monkeypatch.setattr(Run, "save_checkpoint", lambda run, *_, **__: written.append(run.path))
    measure_pace(GATED, "digits", replace(REQUEST, rounds=1, steps=1))
    assert {path.parents[1] for path in written} == {tmp_path}
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match=r"cannot write .*gone: No such file or directory"):
        measure_pace(GATED, "digits", REQUEST)


def test_batches_that_workers_made_ahead_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DataLoader's workers hold two each."""
    pieces: list[int] = []
    monkeypatch.setattr(training_rounds.Contest, "_usual", lambda _, steps: pieces.append(steps))
    several = replace(GATED, compute=replace(GATED.compute, workers=3))
    measure_pace(several, "digits", replace(REQUEST, rounds=1))
    assert pieces == [2 * 3, REQUEST.steps] * 2


def test_table_says_what_was_measured(terminal: Terminal) -> None:
    words = ("digits/resnet8-gated", "--rounds", "1", "--steps", "1", "--device", "cpu")
    shown = terminal.succeed("bench", "train", *words)
    for name in NAMES:
        assert name in shown
    assert "images/s" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_everything_is_counted_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(training_rounds, "time", clock)
    clock.charge(
        monkeypatch,
        Trainer,
        "step",
        lambda trainer, *_: 2 if trainer.model.__class__ is GaterNet else 1,
    )
    clock.charge(monkeypatch, training_pace.Board, "add_epoch", lambda *_: 12)
    clock.charge(monkeypatch, Run, "save_checkpoint", lambda *_, **__: 20)
    clock.charge(monkeypatch, training_rounds, "probe_metrics", lambda *_: 30)
    clock.charge(monkeypatch, training_rounds.Contest, "_usual", lambda _, steps: 18 * steps)
    found = measure_pace(GATED, "digits", REQUEST)
    ratios = {name: ratio.median for name, ratio in found.ratios.items()}
    assert ratios["step_ratio"] == pytest.approx(2 / (1 + 1))
    # A piece is three steps and what the end of an epoch costs.
    assert ratios["epoch_ratio"] == pytest.approx((3 * 2 + 12) / (3 * 2))
    epoch = (3 * 2 + 12) / 3 * (len(load_digits("train")) // found.batch_size)
    assert ratios["data_share"] == 0
    assert ratios["logging_share"] == pytest.approx(12 / epoch)
    assert ratios["checkpoint_share"] == pytest.approx(20 / (epoch + 20))
    assert ratios["probe_share"] == pytest.approx(30 / (epoch + 30))
    assert ratios["loop_ratio"] == pytest.approx(18 / 6)
    assert found.images_per_second.median == pytest.approx(found.batch_size / 6)
    assert found.milliseconds["gated"] == pytest.approx(2000)


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
    assert GATED.gating is not None
    for other in (
        replace(GATED, optimizer=replace(GATED.optimizer, label_smoothing=0.1)),
        replace(GATED, gating=replace(GATED.gating, target_rate=0.5)),
        replace(GATED, gating=replace(GATED.gating, budget=0.5)),
    ):
        reason = training_pace._usual_loop(other, load_digits("train"), cpu_plan(other))[1]
        assert "loss is cross entropy" in reason["loop_ratio"]
    monkeypatch.setattr(training_pace, "USUAL_LOOP", Path("not there"))
    assert "checkout" in measure_pace(GATED, "digits", REQUEST).missing["loop_ratio"]


def test_mistakes_are_named(terminal: Terminal) -> None:
    assert "has no gates" in terminal.fail(2, "bench", "train", PLAIN.name)
    assert "--rounds 0" in terminal.fail(2, "bench", "train", GATED.name, "--rounds", "0")
    assert "--threads 0" in terminal.fail(2, "bench", "train", GATED.name, "--threads", "0")
    nowhere = ("bench", "train", GATED.name, "--data", "/not/there", "--device", "cpu")
    assert "/not/there" in terminal.fail(1, *nowhere)
