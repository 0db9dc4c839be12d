"""`gaternet train … --seeds`: ordinary runs, at once; what ends one, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gaternet import checkpoint, cli
from gaternet.arguments import SEVERAL, without
from gaternet.training.compute import plan, usable_cores
from gaternet.training.config import Sources
from gaternet.training.phases import train
from gaternet.training.seeds import (
    AT_ONCE_ON_GPU,
    Several,
    _at_once,
    _Children,
    _shared,
    describe,
)
from small_runs import PLAIN, on_cpu, tree
from terminal import Terminal

WORDS = ("digits/resnet8-gated", "--epochs", "1", "--from-scratch", "--device", "cpu")
EAGER = (
    *("--compute.precision", "float32", "--compute.compile", "off"),
    "--compute.no-channels-last",
)


def training(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "gaternet", "train", *(str(word) for word in words)]


@pytest.mark.slow
def test_runs_are_those_that_each_seed_makes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "several"
    several = (*WORDS, "--seeds", "3", "4", "--out", out)
    (out / "seed-3").mkdir(parents=True)
    (out / "seed-3" / "notes.txt").write_text("mine")
    assert cli.main([str(word) for word in ("train", *several)]) == 1
    printed = terminal.capsys.readouterr()
    assert "messages are above: 3" in printed.err
    assert "seed 3: gaternet: " in printed.out
    assert "seed 4: epoch 1/1" in printed.out
    with one_thread():
        terminal.succeed("train", *WORDS, "--seed", "4", "--out", tmp_path / "alone")
    for name in ("model", "optimizer"):
        found, expected = (
            load_file(checkpoint.newest(path / "checkpoints") / f"{name}.safetensors")
            for path in (out / "seed-4", tmp_path / "alone")
        )
        assert found.keys() == expected.keys()
        assert all(found[key].equal(expected[key]) for key in found)
    # The other one is trained, and this one not again.
    before = (out / "seed-4" / "result.json").stat().st_mtime_ns
    (out / "seed-3" / "notes.txt").unlink()
    shown = terminal.succeed("train", *several, "--resume")
    results = [json.loads((out / f"seed-{seed}" / "result.json").read_text()) for seed in (3, 4)]
    assert [result["seed"] for result in results] == [3, 4]
    errors = [result["test_error_percent"] for result in results]
    assert describe(errors) in shown.splitlines()[-1]
    assert (out / "seed-4" / "result.json").stat().st_mtime_ns == before
    # Nothing is left to do.
    assert terminal.succeed("train", *several, "--resume").splitlines() == shown.splitlines()[-1:]


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_ended_run_of_other_settings_is_no_part_of_the_mean(
    tmp_path: Path, terminal: Terminal
) -> None:
    out = tmp_path / "out"
    recipe = replace(PLAIN, epochs=1, seed=7)
    train(recipe, Sources("digits"), out / "seed-7", on_cpu())
    before = tree(out)
    words = ("train", PLAIN.name, "--seeds", "7", "--out", out, "--resume", "--device", "cpu")
    same = ("--epochs", "1", *EAGER)
    assert "test error" in terminal.succeed(*words, *same)
    found = terminal.fail(1, *words, *same, "--epochs", "3", "--optimizer.lr", "0.25")
    assert f"{out / 'seed-7'} has ended with other settings (epochs 1 → 3; optimizer.lr " in found
    assert " → 0.25): give the same ones, or another --out" in found
    assert tree(out) == before


@pytest.mark.slow
def test_signal_reaches_every_run(tmp_path: Path) -> None:
    words = training(*WORDS, "--epochs", "1000", "--seeds", "0", "1", "--out", tmp_path / "out")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        begun = next(line for line in parent.stdout if ": epoch 1/" in line)
        assert begun.startswith("seed ")
        parent.send_signal(signal.SIGTERM)
        parent.stdout.read()
        assert parent.wait(timeout=60) == 128 + signal.SIGTERM
    marker = str(tmp_path / "out").encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert marker not in (process / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue


def test_run_that_is_being_started_when_the_signal_comes_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []

    class Started(subprocess.Popen[str]):
        def __init__(self, words: list[str], **named: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)  # the main thread takes it meanwhile
            while not children.received:
                time.sleep(0.01)
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **named)

        def send_signal(self, sig: int) -> None:
            told.append(sig)
            super().send_signal(sig)

    monkeypatch.setattr(subprocess, "Popen", Started)
    children = _Children(dict(os.environ))
    began = time.monotonic()
    with children.handing_signals_on(), ThreadPoolExecutor(1) as pool:
        assert list(pool.map(lambda seed: children.run([], seed), ["0"])) == [-signal.SIGTERM]
    assert told == [signal.SIGTERM]
    assert time.monotonic() - began < 30


def test_runs_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    sixteen = Several(tuple(range(16)), Path("out"), (), "cpu")
    assert _at_once(sixteen, 16) == 12
    assert _at_once(sixteen, 0) == 1
    assert _at_once(replace(sixteen, at_once=3), 16) == 3
    assert _at_once(replace(sixteen, at_once=3), 2) == 2
    shared = _shared(3)
    assert shared["OMP_NUM_THREADS"] == "4"
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    assert usable_cores() == plan(PLAIN.compute, torch.device("cpu")).workers == 4
    monkeypatch.setattr("gaternet.training.seeds.choose_device", lambda _: torch.device("cuda"))
    assert _at_once(sixteen, 16) == AT_ONCE_ON_GPU


def test_mistakes_are_named(tmp_path: Path, terminal: Terminal) -> None:
    words = ("train", *WORDS, "--out", tmp_path / "out")
    assert "give one of them" in terminal.fail(2, *words, "--seeds", "0", "1", "--seed", "2")
    assert "--at-once goes with --seeds" in terminal.fail(2, *words, "--at-once", "2")
    assert "--at-once 0" in terminal.fail(2, *words, "--seeds", "0", "1", "--at-once", "0")
    assert "comes twice" in terminal.fail(2, *words, "--seeds", "5", "5")
    assert "seed must be in" in terminal.fail(2, *words, "--seeds", "-1", "0")
    (tmp_path / "out" / "seed-0").mkdir(parents=True)
    (tmp_path / "out" / "seed-0" / "config.json").write_text("{}")
    assert "holds a run already" in terminal.fail(1, *words, "--seeds", "0", "1")


def test_torchrun_is_refused(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = terminal.fail(2, "train", *WORDS, "--seeds", "0", "1", "--out", tmp_path / "out")
    assert "without torchrun" in found


def test_words_of_one_run(tmp_path: Path) -> None:
    typed = (
        "a/b",
        "--out",
        "x",
        "--lr",
        "-1",
        "--seeds",
        "0",
        "--at-once=2",
        "--resume",
        "--out=y",
    )
    assert without(typed, *SEVERAL, "--out") == ["a/b", "--lr", "-1", "--resume"]
    several = Several((0, 1), tmp_path, typed)
    assert several.command(1) == [
        *("a/b", "--lr", "-1", "--seed", "1"),
        *("--out", str(tmp_path / "seed-1")),
    ]
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "config.json").touch()
    assert "--resume" in several.command(1)
    assert "--resume" not in several.command(0)


def test_mean_and_deviation() -> None:
    assert describe([9.0, 10.0, 11.0]) == "test error 10.00 ± 1.00 % (9.00, 10.00, 11.00)"
    assert describe([9.5]) == "test error 9.50 % (9.50)"
