"""A disk that is really full, or a file that may not grow: one line, and nothing is lost."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gaternet import checkpoint
from gaternet.disk import write_file
from gaternet.errors import UserError
from gaternet.training.config import Sources
from gaternet.training.phases import train
from gaternet.training.run import Run, open_run
from gaternet.training.tracking import Board
from small_runs import PLAIN, few_digits, new_run, on_cpu, tree, with_batches

FULL = "cannot write {}: File too large: {} bytes are needed, [0-9,]+ are free there"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = new_run(tmp_path / "run", PLAIN, few_digits(20))
    run.log({"epoch": 1, "loss": 2.0})
    run.save_checkpoint(1, {"model": {"w": torch.ones(4)}}, {"progress": 1})
    return run


def save_too_much(run: Run) -> None:
    run.save_checkpoint(2, {"model": {"w": torch.ones(50_000)}}, {"progress": 2})


def test_checkpoint_that_does_not_fit_leaves_the_one_before(run: Run) -> None:
    before = tree(run.path)
    name = r"\S+epoch-0002"
    fits = (
        rf"cannot write {name}: .*File too large.*: 2\d\d,\d\d\d bytes are needed, [0-9,]+ are free"
    )
    with files_of_at_most(100_000), pytest.raises(UserError, match=fits):
        save_too_much(run)
    assert tree(run.path) == before
    assert checkpoint.newest(run.checkpoints).name == "epoch-0001"
    save_too_much(run)
    assert run.position == (2, 0)


def test_line_of_metrics_that_does_not_fit_is_forgotten(run: Run) -> None:
    kept = run.metrics()
    size = (run.path / "metrics.jsonl").stat().st_size
    with (
        files_of_at_most(size + 20),
        pytest.raises(UserError, match=FULL.format(r"\S+metrics\.jsonl", r"\d+")),
    ):
        run.log({"epoch": 2, "loss": 1.0, "error_percent": 50.0})
    assert (run.path / "metrics.jsonl").stat().st_size > size  # half a line
    assert run.metrics() == kept
    run.rewind(1)
    run.log({"epoch": 2})
    assert [line["epoch"] for line in run.metrics()] == [1, 2]


def test_file_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    write_file(tmp_path / "result.json", "old")
    message = FULL.format(r"\S+result\.json", "1,000")
    with files_of_at_most(100), pytest.raises(UserError, match=message):
        write_file(tmp_path / "result.json", "x" * 1000)
    assert tree(tmp_path) == {"result.json": b"old"}


def epochs_shown(run: Run) -> list[int]:
    shown = EventAccumulator(str(run.path / "tensorboard")).Reload()
    return [event.step for event in shown.Scalars("loss")]


def test_tensorboard_that_cannot_write_says_so_and_is_made_again(run: Run) -> None:
    board = Board(run)
    metrics = {"epoch": 2, "loss": 1.0, "a number with a long name, " * 5: 1.0}
    message = FULL.format(r"\S+tfevents\S+", r"\d+")
    with files_of_at_most(150), pytest.raises(UserError, match=message):
        board.add_epoch(metrics)
    Board(run)
    assert epochs_shown(run) == [1]


def test_run_that_goes_on_shows_every_epoch_once(tmp_path: Path) -> None:
    recipe = with_batches(replace(PLAIN, epochs=2), 640)
    finished = train(recipe, Sources("digits"), tmp_path / "run", on_cpu())
    (finished.path / "result.json").unlink()
    shutil.rmtree(finished.checkpoints / "epoch-0002")
    again = train(recipe, Sources("digits"), tmp_path / "run", on_cpu(), resume=True)
    assert epochs_shown(again) == [1, 2]


TRAIN = ["-m", "gaternet", "train", "digits/resnet8", "--schedule.batch-size", "640"]


@pytest.mark.slow
def test_full_disk_ends_the_run_in_a_line_and_the_run_goes_on(tmp_path: Path) -> None:
    """A file system of 1.9 MB: two checkpoints of 0.6 MB fit, and a third one beside them not."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    mount = ["unshare", "--mount", "sh", "-c"]
    mounts = f'mount -t tmpfs -o size=1900k tmpfs "{disk}"'
    try:
        subprocess.run([*mount, mounts], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    words = [sys.executable, *TRAIN, "--epochs", "4", "--device", "cpu", "--out", str(disk / "run")]
    script = f'{mounts} && "$@"; code=$?; cp -a "{disk}/run" "{kept}"; exit $code'
    done = subprocess.run(
        [*mount, script, "sh", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1
    message = (
        r"gaternet: cannot write \S+epoch-0003: .*No space left on device.*: (\S+) bytes are "
        r"needed, (\S+) are free there\n"
    )
    found = re.fullmatch(message, done.stderr)
    assert found, done.stderr
    needed, free = (int(number.replace(",", "")) for number in found.groups())
    assert free < needed
    assert sorted(path.name for path in (kept / "checkpoints").iterdir()) == [
        "epoch-0001",
        "epoch-0002",
    ]
    assert [line["epoch"] for line in open_run(kept).metrics()] in ([1, 2], [1, 2, 3])
    again = [sys.executable, *TRAIN, "--epochs", "4", "--device", "cpu", "--out", str(kept)]
    done = subprocess.run([*again, "--resume"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (kept / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
