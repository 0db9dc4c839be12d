"""A checkpoint that was truncated or altered on the disk: found before use, and passed over."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import gaternet
import gaternet.cli
from gaternet import checkpoint
from gaternet.errors import DamagedCheckpointWarning, UserError
from gaternet.training.config import Resumption, Sources
from gaternet.training.phases import train
from gaternet.training.run import Run
from small_runs import PLAIN, on_cpu, tree, with_batches
from terminal import Terminal

RECIPE = with_batches(PLAIN, 640)
DIGITS = Sources("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE, DIGITS, tmp_path_factory.mktemp("runs") / "run", on_cpu()).path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of two epochs that was killed before its result was measured."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def damage(run: Path, epoch: int, how: Callable[[Path], None] = flip_a_bit) -> None:
    how(run / "checkpoints" / f"epoch-{epoch:04d}" / "optimizer.safetensors")


def go_on(run: Path, *, strict: bool = False) -> Run:
    options = replace(on_cpu(), resumption=Resumption(strict=strict))
    return train(RECIPE, DIGITS, run, options, resume=True)


@pytest.mark.parametrize("how", [truncate, flip_a_bit, Path.unlink])
def test_resumed_run_goes_back_one_and_ends_the_same(
    how: Callable[[Path], None], run: Path, finished: Path
) -> None:
    damage(run, 2, how)
    message = r"epoch-0002/optimizer\.safetensors (was|is) .*; going back to epoch-0001"
    with pytest.warns(DamagedCheckpointWarning, match=message):
        again = go_on(run)
    for epoch in (1, 2):
        name = f"epoch-{epoch:04d}"
        expected = tree(finished / "checkpoints" / name)
        assert tree(again.checkpoints / name) == expected
    assert [line["epoch"] for line in again.metrics()] == [1, 2]


def test_strict_refuses_and_changes_nothing(run: Path) -> None:
    damage(run, 2)
    before = tree(run)
    with pytest.raises(UserError, match=r"epoch-0002.* altered.*; without --strict"):
        go_on(run, strict=True)
    with pytest.raises(UserError, match=r"epoch-0002.* altered"):
        gaternet.load(run, strict=True)
    assert tree(run) == before


def test_none_left_is_said(run: Path) -> None:
    damage(run, 1)
    damage(run, 2)
    before = tree(run)
    for use in (go_on, gaternet.load):
        with pytest.raises(UserError, match=r"epoch-0002.*no earlier checkpoint is left: remove"):
            use(run)
    assert tree(run) == before
    shutil.rmtree(run / "checkpoints")
    assert go_on(run).result is not None


def test_readers_of_a_run_go_back_one_too(run: Path, terminal: Terminal) -> None:
    damage(run, 2)
    before = tree(run)
    with pytest.warns(DamagedCheckpointWarning, match="going back to epoch-0001"):
        loaded = gaternet.load(run)
    expected = checkpoint.read_tensors(run / "checkpoints" / "epoch-0001", "model")
    assert all(tensor.equal(expected[name]) for name, tensor in loaded.state_dict().items())
    terminal.succeed("evaluate", run, "--json", "--device", "cpu")
    assert tree(run) == before


def test_command_tells_the_damage_in_a_line(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage(run, 2)
    assert gaternet.cli.main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    err = capfd.readouterr().err
    assert err.startswith(f"gaternet: warning: {run}/checkpoints/epoch-0002/optimizer.safetensors")
    assert err.endswith("; going back to epoch-0001\n")
    assert err.count("\n") == 1


def test_checkpoint_within_an_epoch_is_newer_than_the_epoch_s(tmp_path: Path) -> None:
    for name in ("epoch-0002", "epoch-0010", "epoch-0002-step-000100", "epoch-0002-step-000020"):
        (tmp_path / name).mkdir()
    for other in (".epoch-0011.7.partial", "epoch-0012-old", "epoch-x"):
        (tmp_path / other).mkdir()
    assert [path.name for path in checkpoint.finished(tmp_path)] == [
        "epoch-0002",
        "epoch-0002-step-000020",
        "epoch-0002-step-000100",
        "epoch-0010",
    ]
    assert checkpoint.position(tmp_path / "epoch-0002-step-000100") == (2, 100)
    assert checkpoint.name_of(2, 100) == "epoch-0002-step-000100"
    assert checkpoint.name_of(2) == "epoch-0002"
