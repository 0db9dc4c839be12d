"""What changed before a run goes on is named; what may change, and did, is written down."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gaternet import checkpoint
from gaternet.arguments import lasting
from gaternet.errors import UsageError, UserError
from gaternet.training import compute, loop, phases, run
from gaternet.training.compute import hardware
from gaternet.training.config import Recipe, Resumption, Sources
from gaternet.training.phases import train
from gaternet.training.run import Run, open_run
from gaternet.training.starting import build_model
from gaternet.training.trainer import Trainer
from small_runs import GATED, PLAIN, cpu_plan, few_digits, on_cpu, tree, with_batches
from terminal import Terminal

BEGUN = with_batches(PLAIN, 640)
AUTO = replace(BEGUN, compute=replace(BEGUN.compute, precision="auto"))
DIGITS = Sources("digits")


JOINT = with_batches(replace(GATED, epochs=2), 640)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two epochs that was interrupted in its second one."""
    return interrupted(BEGUN, tmp_path / "run", monkeypatch)


@pytest.fixture
def begun_joint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted while it pre-trained its backbone, in the second epoch."""
    return interrupted(JOINT, tmp_path / "run", monkeypatch)


def interrupted(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    real, done = Trainer.train_epoch, 0

    def train_epoch(*arguments: Any) -> dict[str, float]:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", train_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, DIGITS, out, on_cpu())
    return out


def go_on(out: Path, recipe: Recipe, *allowed: str) -> Run:
    options = replace(on_cpu(), resumption=Resumption(allowed))
    return train(recipe, DIGITS, out, options, resume=True)


def other_images(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(phases, "load", lambda where, data, split, *more: few_digits(1000, "train"))


def other_gaternet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "version", lambda name: "0.0.9")


def other_torch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("torch.__version__", "2.99.0")


def test_result_names_every_machine_that_trained(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hardware(torch.device("cpu"))
    monkeypatch.setattr(loop, "hardware", lambda device: "an abacus")
    finished = go_on(begun, replace(BEGUN, epochs=3), "epochs")
    assert finished.result is not None
    assert finished.result["hardware"] == f"{before}; an abacus"


def test_description_in_other_words_is_no_other_run(begun: Path) -> None:
    """Runs outlive the wording of recipes: what they are called for people is no setting."""
    worded = replace(BEGUN, reproduces="in other words")
    assert worded == BEGUN
    assert go_on(begun, worded).result is not None


@pytest.mark.parametrize(
    ("change", "field"),
    [(other_images, "images"), (other_gaternet, "gaternet"), (other_torch, "torch")],
)
def test_other_data_or_version_is_refused_by_name(
    change: Callable[[pytest.MonkeyPatch], None],
    field: str,
    begun: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tree(begun)
    change(monkeypatch)
    with pytest.raises(UserError, match=rf"\({field} \S+ → \S+\).*--allow-change {field}$"):
        go_on(begun, BEGUN)
    assert tree(begun) == before
    assert go_on(begun, BEGUN, field).result is not None


def test_allowed_changes_go_through_and_are_written_down(begun: Path) -> None:
    other = replace(BEGUN, epochs=3, seed=7)
    with pytest.raises(UserError, match=r"\(seed 0 → 7\).*--allow-change seed$"):
        go_on(begun, other, "epochs")
    finished = go_on(begun, other, "epochs", "seed", "schedule.batch-size")
    assert finished.result is not None
    assert open_run(begun).config.recipe == other
    assert [line["epoch"] for line in finished.metrics()] == [1, 2, 3]
    recorded = finished.result["changes"]
    assert recorded == json.loads((begun / "config.json").read_text())["changes"]
    assert [(c["field"], c["before"], c["now"], c["behind_epoch"]) for c in recorded] == [
        ("epochs", 2, 3, 1),
        ("seed", 0, 7, 1),
    ]


def test_a_run_does_not_end_before_where_it_is(begun: Path) -> None:
    """What belongs to a schedule's end was not done there."""
    before = tree(begun)
    with pytest.raises(UserError, match=r"--epochs 1: .*run has 1 epochs behind it already"):
        go_on(begun, replace(BEGUN, epochs=1), "epochs")
    assert tree(begun) == before


def with_rmsprop(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=replace(recipe.optimizer, kind="rmsprop", nesterov=False))


@pytest.mark.parametrize(
    ("other", "fields", "fault"),
    [
        (
            with_rmsprop(BEGUN),
            ("optimizer.kind", "optimizer.nesterov"),
            "optimizer.safetensors belongs to another optimiser: .* keeps momentum_buffer, and",
        ),
        (with_batches(BEGUN, 640, ema=0.9), ("schedule.ema",), "trained.safetensors is not in"),
        (replace(BEGUN, backbone="resnet14"), ("backbone",), "weights of another model"),
    ],
)
def test_change_that_the_checkpoint_does_not_fit_changes_nothing(
    other: Recipe, fields: tuple[str, ...], fault: str, begun: Path
) -> None:
    before = tree(begun)
    with pytest.raises(UserError, match=fault):
        go_on(begun, other, *fields)
    assert tree(begun) == before
    assert go_on(begun, BEGUN).result is not None


def test_optimiser_that_keeps_nothing_takes_nothing(begun: Path) -> None:
    other = replace(BEGUN, optimizer=replace(BEGUN.optimizer, momentum=0.0, nesterov=False))
    assert go_on(begun, other, "optimizer.momentum", "optimizer.nesterov").result is not None


def test_setting_that_a_part_lacks_may_change_while_it_is_pretrained(begun_joint: Path) -> None:
    before = tree(begun_joint)
    with pytest.raises(UserError, match=r"weights of another model"):
        go_on(begun_joint, replace(JOINT, backbone="resnet14"), "backbone")
    assert tree(begun_joint) == before
    assert JOINT.gating is not None
    other = replace(JOINT, gating=replace(JOINT.gating, sparsity=0.5))
    with pytest.raises(UsageError, match=r"did you mean gating\.sparsity"):
        go_on(begun_joint, other, "gating.sparsty")
    finished = go_on(begun_joint, other, "gating.sparsity")
    assert finished.result is not None
    assert [change["field"] for change in finished.result["changes"]] == ["gating.sparsity"]
    assert open_run(begun_joint).config.recipe == other
    assert open_run(begun_joint / "backbone").config.changes == ()


def test_run_that_is_not_there_or_there_already_is_refused_before_images_are_loaded(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "load", lambda *_: pytest.fail("images were loaded"))
    with pytest.raises(UserError, match="typo holds no run to go on with"):
        go_on(tmp_path / "typo", BEGUN)
    assert not (tmp_path / "typo").exists()
    with pytest.raises(UserError, match="run holds a run already"):
        train(BEGUN, DIGITS, begun, on_cpu())


def test_restored_checkpoint_is_read_for_its_sum_once(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = checkpoint._sha256

    def sha256(file: Path) -> str:
        hashed.append(file.name)
        return real(file)

    monkeypatch.setattr(checkpoint, "_sha256", sha256)
    found = open_run(begun)
    Trainer(build_model(BEGUN), BEGUN, cpu_plan(BEGUN)).restore(found)
    assert sorted(hashed) == sorted(set(hashed))
    assert "optimizer.safetensors" in hashed


def test_unknown_field_is_refused_with_the_near_one(begun: Path) -> None:
    before = tree(begun)
    with pytest.raises(UsageError, match=r"--allow-change sede: .*did you mean seed"):
        go_on(begun, BEGUN, "sede")
    assert tree(begun) == before


def test_run_of_a_version_that_did_not_say_its_torch_goes_on(begun: Path) -> None:
    file = begun / "config.json"
    values = json.loads(file.read_text())
    del values["torch"], values["changes"]
    file.write_text(json.dumps(values))
    assert go_on(begun, BEGUN).result is not None


def test_flags_of_resume_need_it_and_are_no_part_of_the_command(
    terminal: Terminal, tmp_path: Path
) -> None:
    words = ["train", "digits/resnet8", "--out", str(tmp_path / "run")]
    for flags in (["--strict"], ["--allow-change", "seed"]):
        output = terminal.fail(2, *words, *flags)
        assert f"{flags[0]} goes with --resume" in output
    assert "checkpoint-minutes 0 is not" in terminal.fail(2, *words, "--checkpoint-minutes", "0")
    typed = "--resume --allow-change seed epochs --seed 3 --strict --allow_change=x --out run"
    assert lasting(typed.split()) == ["--seed", "3", "--out", "run"]


@pytest.fixture
def begun_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was begun where `auto` is float32; on the next machine it is bfloat16."""
    monkeypatch.setattr(compute, "_fast_bfloat16", lambda device: False)
    out = interrupted(AUTO, tmp_path / "run", monkeypatch)
    monkeypatch.setattr(compute, "_fast_bfloat16", lambda device: True)
    return out


def test_number_format_stays_what_auto_came_to(begun_auto: Path) -> None:
    assert open_run(begun_auto).config.precision == "float32"
    assert compute.plan(AUTO.compute, torch.device("cpu")).precision == "bfloat16"
    result = go_on(begun_auto, AUTO).result
    assert result is not None
    assert result["computed_with"]["precision"] == "float32"
    assert result["changes"] == []


def test_run_of_a_version_that_did_not_say_its_number_format_goes_on(begun_auto: Path) -> None:
    file = begun_auto / "config.json"
    values = json.loads(file.read_text())
    del values["precision"]
    file.write_text(json.dumps(values))
    result = go_on(begun_auto, AUTO).result
    assert result is not None
    assert result["computed_with"]["precision"] == "bfloat16"
