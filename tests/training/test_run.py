"""A run directory: what it holds, what it refuses, what it survives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gaternet import checkpoint
from gaternet.errors import UserError
from gaternet.training.run import KEPT_CHECKPOINTS, Run, RunConfig, create_run, open_run
from small_runs import GATED, PLAIN, few_digits, new_run, tree


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "run", PLAIN, few_digits(20))


def test_run_opens_as_it_was_created(tmp_path: Path) -> None:
    weights = {"backbone": "fresh", "gater": "/runs/r20"}
    config = RunConfig(GATED, "digits", "0123456789abcdef", ("zero", "one"), weights)
    create_run(tmp_path / "deep" / "run", config)
    opened = open_run(tmp_path / "deep" / "run")
    assert opened.config == config
    assert opened.metrics() == []
    assert opened.result is None
    assert not opened.has_checkpoint


def test_empty_directory_may_become_a_run(tmp_path: Path) -> None:
    new_run(tmp_path, PLAIN, few_digits(20))
    assert open_run(tmp_path).config.recipe == PLAIN


def test_directory_in_use_is_refused_and_stays(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("the only copy")
    before = tree(tmp_path)
    for path, message in (
        (run.path, "run holds a run already; choose another --out, or .* --resume"),
        (tmp_path / "mine", "mine is not empty; choose another --out"),
        (tmp_path / "mine" / "thesis.tex", r"thesis\.tex is a file; choose another --out"),
        (tmp_path / "mine" / "thesis.tex" / "run", "cannot write .*: Not a directory"),
    ):
        with pytest.raises(UserError, match=message):
            new_run(path, PLAIN, few_digits(20))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"data": {}}', '{"data": "digits", "recipe": {}}'],
)
def test_damaged_config_is_named(content: str, run: Run) -> None:
    (run.path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        open_run(run.path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run: it has no config\.json"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="nowhere: there is no such run directory"):
        open_run(tmp_path / "nowhere")


def checkpoint_of(run: Run, epoch: int) -> None:
    run.save_checkpoint(epoch, {"model": {"w": torch.full((2,), float(epoch))}}, {"progress": 1})


def test_last_checkpoints_are_kept(run: Run) -> None:
    for epoch in range(1, 5):
        checkpoint_of(run, epoch)
    assert KEPT_CHECKPOINTS == 2
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == ["epoch-0003", "epoch-0004"]


def test_what_was_just_written_is_kept_though_larger_batches_are_fewer_steps(run: Run) -> None:
    weights = {"model": {"w": torch.ones(2)}}
    run.save_checkpoint(5, weights, {}, step=120)
    run.save_checkpoint(5, weights, {}, step=61)
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0005-step-000061"]


def test_half_written_checkpoint_is_none(run: Run) -> None:
    (run.checkpoints / ".epoch-0001.7.partial").mkdir()
    assert not run.has_checkpoint
    checkpoint_of(run, 1)
    assert run.has_checkpoint


def lines(*epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "loss": 1 / epoch} for epoch in epochs]


def test_rewind_forgets_later_epochs_and_torn_lines(run: Run) -> None:
    for line in lines(1, 2, 3):
        run.log(line)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 4, "lo')
    assert run.metrics() == lines(1, 2, 3)
    run.rewind(2)
    run.log(lines(3)[0])
    assert run.metrics() == lines(1, 2, 3)
    run.rewind(0)
    assert run.metrics() == []


def test_result_is_written_whole(run: Run) -> None:
    run.finish({"test_error_percent": 1.5})
    assert open_run(run.path).result == {"test_error_percent": 1.5}
    assert json.loads((run.path / "result.json").read_text()) == run.result
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "result.json",
    ]


def test_disk_that_refuses_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    run.finish({"old": 1})
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left"):
        run.log({"epoch": 1})
    with pytest.raises(UserError, match=r"cannot write .*result\.json: No space left"):
        run.finish({"new": 1})
    monkeypatch.undo()
    assert run.result == {"old": 1}


def test_checkpoints_that_a_killed_process_did_not_come_to_remove_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run", PLAIN, few_digits())
    weights = {"model": {"w": torch.ones(2)}}
    run.save_checkpoint(0, weights, {}, step=5)
    with monkeypatch.context() as patch:
        patch.setattr("gaternet.training.run.remove_directory", lambda _: None)
        run.save_checkpoint(1, weights, {})
        run.save_checkpoint(1, weights, {}, step=7)
    open_run(run.path).settle()
    names = [path.name for path in checkpoint.finished(run.checkpoints)]
    assert names == ["epoch-0001", "epoch-0001-step-000007"]
