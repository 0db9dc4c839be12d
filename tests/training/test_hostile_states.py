"""Training states that are damaged, made by hand, or another run's: refused in one line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gaternet
from gaternet.errors import UserError
from gaternet.training.config import Sources
from gaternet.training.phases import train
from small_runs import PLAIN, on_cpu, sign_again, tree, with_batches

RECIPE = with_batches(PLAIN, 640)
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, Sources("digits"), tmp_path_factory.mktemp("runs") / "run", on_cpu()).path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run that was killed before its result was measured."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def progress(**values: Any) -> Change:
    def change(state: Path) -> None:
        file = state / "progress.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def slots(change: Callable[[dict[str, Tensor]], object]) -> Change:
    def edit(state: Path) -> None:
        tensors = load_file(state / "optimizer.safetensors")
        change(tensors)
        save_file(tensors, state / "optimizer.safetensors")

    return edit


def within(images: int, *sums: list[float]) -> dict[str, Any]:
    return {"images": images, "sums": list(sums), "seconds": 1.0}


STATES: dict[str, tuple[Change, str]] = {
    "nothing": (lambda state: (state / "progress.json").write_text("{}"), "epoch: Field required"),
    "a list": (lambda state: (state / "progress.json").write_text("[]"), "is not the prog"),
    "half an epoch": (progress(epoch=1.5), "epoch: .*valid integer"),
    "another epoch": (progress(epoch=1), "belongs to another checkpoint than epoch-0002"),
    "steps of an epoch": (progress(within=within(640, [1, 2, 3, 4])), "another checkpoint than"),
    "names": (progress(skipped="abc"), "skipped: "),
    "updates": (progress(averaged_updates=-1), "less than nothing"),
    "more": (progress(alien=1), "alien: "),
    "no progress": (lambda state: (state / "progress.json").unlink(), "progress.json is not in"),
    "no threshold": (
        lambda state: (state / "model.json").write_text("{}"),
        "model.json: not a model of this version: backbone",
    ),
    "an alien's slot": (
        slots(lambda found: found.update({"alien.momentum_buffer": torch.zeros(3)})),
        "no alien is trained here",
    ),
    "another shape": (
        slots(lambda found: found.update({name: torch.zeros(3) for name in found})),
        r"has shape \(3,\) there and",
    ),
    "another optimiser": (
        slots(lambda found: found.update({"fc.bias.square_avg": torch.zeros(10)})),
        "of fc.bias it keeps momentum_buffer, square_avg, and this one momentum_buffer",
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_state_is_refused_and_nothing_is_changed(state: str, run: Path) -> None:
    change, message = STATES[state]
    change(run / "checkpoints" / "epoch-0002")
    sign_again(run / "checkpoints" / "epoch-0002")
    before = tree(run)
    with pytest.raises(UserError, match=message) as refused:
        train(RECIPE, Sources("digits"), run, on_cpu(), resume=True)
    assert str(run) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert tree(run) == before


@pytest.mark.parametrize("values", [within(0, [1, 2, 3, 4]), within(640), within(640, [1, 2, 3])])
def test_progress_within_an_epoch_is_refused(values: dict[str, Any], run: Path) -> None:
    state = run / "checkpoints" / "epoch-0002-step-000001"
    shutil.copytree(run / "checkpoints" / "epoch-0002", state)
    progress(within=values)(state)
    sign_again(state)
    with pytest.raises(UserError, match=r"step-000001/progress\.json is not the progress of"):
        train(RECIPE, Sources("digits"), run, on_cpu(), resume=True)


def test_file_that_cannot_be_read_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(UserError, match=r"epoch-0002/\w+\.\w+ cannot be read: Input/output error"):
        gaternet.load(run)
