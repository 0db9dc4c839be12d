"""Processes of a run that die, hang or diverge, and runs that go on with more or fewer of them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_rank import AT, LAYER
from test_processes import HERE, torchrun

import gaternet
from small_runs import tree

pytestmark = pytest.mark.slow

SCRIPT = str(HERE / "faulty_rank.py")
WORDS = ["train", "digits/resnet8-gated", "--from-scratch", "--epochs", "3", "--device", "cpu"]


def environment(rank: int, port: int) -> dict[str, str]:
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }


def start_two(fault: str, tmp_path: Path) -> list[subprocess.Popen[str]]:
    """Start two processes that nothing but each other looks after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, SCRIPT, fault, str(tmp_path / "steps"), *WORDS]
    return [
        subprocess.Popen(
            [*words, "--out", str(tmp_path / "run")],
            env=environment(rank, port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def told_by(process: subprocess.Popen[str], seconds: float = 200) -> str:
    """Return the one line that a process ended with; warnings of PyTorch's own are left out."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("gaternet: ")]
    return line


def has_good_checkpoint(run: Path) -> bool:
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-0001"]
    state = gaternet.load(run).state_dict()
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.mark.parametrize("fault", ["kill", "stop", "stop-behind"])
def test_the_others_end_when_one_is_lost(fault: str, tmp_path: Path) -> None:
    left, lost = start_two(fault, tmp_path)
    try:
        line = told_by(left)
    finally:
        lost.kill()
        lost.communicate()
    assert re.match("gaternet: another process .* has ended .* or has not answered for 20 ", line)
    assert "--resume" in line
    assert has_good_checkpoint(tmp_path / "run")


def test_all_processes_stop_at_the_step_at_which_one_overflows(tmp_path: Path) -> None:
    lines = [told_by(process) for process in start_two("overflow", tmp_path)]
    assert lines[0] == lines[1]
    epoch, step = AT
    assert f"the loss became nan in epoch {epoch + 1}, step {step + 1}, first in" in lines[0]
    assert f"the output of backbone.{LAYER} in process 1. That step was not taken" in lines[0]
    assert has_good_checkpoint(tmp_path / "run")


def without_times(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def test_torchrun_restarts_a_run_that_ends_as_if_undisturbed(tmp_path: Path) -> None:
    """It is the first process that is killed, and leaves its lock behind."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = torchrun(SCRIPT, "none", str(tmp_path / "whole-steps"), *WORDS, "--out", str(whole))
    assert done.returncode == 0, done.stderr
    restarted = torchrun(
        *("--max-restarts", "1", SCRIPT, "kill-first", str(tmp_path / "steps"), *WORDS),
        *("--out", str(broken)),
    )
    assert restarted.returncode == 0, restarted.stderr
    assert "gaternet/training" not in restarted.stderr  # no traceback of ours
    expected = tree(whole / "checkpoints" / "epoch-0003")
    assert tree(broken / "checkpoints" / "epoch-0003") == expected
    assert without_times(broken) == without_times(whole)
    results = [json.loads((run / "result.json").read_text()) for run in (whole, broken)]
    assert results[0]["test_error_percent"] == results[1]["test_error_percent"]


def test_restart_of_a_run_that_had_ended_is_no_error(tmp_path: Path) -> None:
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "gaternet", *WORDS[:3], "--epochs", "1", "--device", "cpu"]
    words += ["--out", str(tmp_path / "run")]
    subprocess.run(words, env=alone, check=True, capture_output=True)
    before = tree(tmp_path / "run")
    again = alone | {"TORCHELASTIC_RESTART_COUNT": "1"}
    subprocess.run(words, env=again, check=True, capture_output=True)
    assert tree(tmp_path / "run") == before
    assert subprocess.run(words, env=alone, check=False, capture_output=True).returncode == 1
    other = subprocess.run([*words, "--seed", "1"], env=again, check=False, capture_output=True)
    assert other.returncode == 1
    assert b"holds a run with other settings" in other.stderr


def steps_of(record: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Return what the steps of a launch were made of, all its processes together."""
    steps: dict[tuple[int, int], dict[str, Any]] = {}
    for rank in range(len(list(record.parent.glob(f"{record.name}-?.jsonl")))):
        for line in (record.parent / f"{record.name}-{rank}.jsonl").read_text().splitlines():
            part = json.loads(line)
            place = part.pop("epoch"), part.pop("step")
            if place in steps:
                for name in ("keys", "labels", "images"):
                    steps[place][name] += part[name]
                assert steps[place]["lr"] == part["lr"]
            else:
                steps[place] = part
    return steps


def launch(ranks: int, fault: str, record: Path, out: Path, *more: str) -> int:
    words = [SCRIPT, fault, str(record), *WORDS, "--out", str(out), *more]
    if ranks == 2:
        return torchrun(*words).returncode
    alone = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *words], env=os.environ | alone, capture_output=True, check=False
    ).returncode


def test_two_then_one_then_two_processes_see_the_samples_of_one(tmp_path: Path) -> None:
    """Killed in epoch 2, begun again there alone, told to end within it, gone on with by two.

    What is the same is which samples every step has, in which order, and what is drawn for them.
    Weights are not: BatchNorm sees the batch in as many parts as there are processes.
    """
    records = [tmp_path / name for name in ("first", "second", "third", "undisturbed")]
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    assert launch(2, "kill", records[0], out) != 0
    assert launch(1, "end", records[1], out, "--resume") == 128 + signal.SIGTERM
    assert launch(2, "none", records[2], out, "--resume") == 0
    assert launch(1, "none", records[3], undisturbed) == 0
    first, second, third, whole = (steps_of(record) for record in records)
    steps = len(whole) // 3
    # The kill's own step is not whole: one process alone had come to it.
    first.pop(AT, None)
    assert set(first) == {place for place in whole if place < AT}
    assert set(second) == {(1, step) for step in range(AT[1] + 1)}
    assert set(third) == {place for place in whole if place > AT}
    assert set(whole) == {(epoch, step) for epoch in range(3) for step in range(steps)}
    for launched in (first, second, third):
        for place, made_of in launched.items():
            assert made_of == whole[place], place
