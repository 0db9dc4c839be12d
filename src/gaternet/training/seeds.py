"""Several runs of one recipe at once, which differ in their seed: `gaternet train … --seeds`.

Each is a process and a run directory of its own, OUT/seed-N, that `gaternet train --seed N` would
have made with as many threads (sums of another number of them differ in their last bits); it goes
on with --resume like any other. Images that are held in memory are decoded once, and mapped by all
processes from the one file that they are cached in.
"""

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from types import FrameType

from gaternet.arguments import RESUMING, SEVERAL, without
from gaternet.data.sources import load
from gaternet.errors import UsageError, UserError
from gaternet.training.compute import choose_device, usable_cores
from gaternet.training.config import Recipe, Sources, check
from gaternet.training.processes import refuse_torchrun
from gaternet.training.reopening import differences, in_words
from gaternet.training.run import RunConfig, open_run
from gaternet.training.starting import choose_start

AT_ONCE_ON_GPU = 4
"""Runs that share one GPU unless the user says how many: a small network leaves most of it idle,
and the memory of each is its own. Not measured."""

ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Several:
    """Which runs are wanted.

    typed: the words behind `gaternet train`, the recipe first
    at_once: how many run at the same time; None: as many as there are cores, on a GPU
        `AT_ONCE_ON_GPU` at most
    """

    seeds: tuple[int, ...]
    out: Path
    typed: tuple[str, ...]
    device: str = "auto"
    at_once: int | None = None

    def path(self, seed: int) -> Path:
        """Return the directory of one of the runs."""
        return self.out / f"seed-{seed}"

    def command(self, seed: int) -> list[str]:
        """Return the words that train one of them, or go on with it."""
        path = self.path(seed)
        begun = "--resume" in self.typed and (path / "config.json").exists()
        words = without(self.typed, *SEVERAL, "--out", *(() if begun else RESUMING))
        return [*words, "--seed", str(seed), "--out", str(path)]


def train_several(recipe: Recipe, sources: Sources, several: Several) -> list[float]:
    """Train the runs, several at once; return and print their test errors.

    SIGINT and SIGTERM are handed on to all of them, and end this process when they have ended.

    Raises UsageError for seeds that cannot be, UserError where a run failed or has ended with other
    settings.
    """
    _check(recipe, several)
    # So that they are decoded, or refused, once; all runs find those in memory in the cache.
    images, _ = (
        load(sources.data, recipe.data, split, recipe.data.image_size, sources.on_bad_image)
        for split in ("train", recipe.data.test_split)
    )
    weights = choose_start(recipe, sources).origins()
    config = RunConfig(recipe, images.name, images.fingerprint, images.classes, weights)
    wanted = [seed for seed in several.seeds if not _ended(several, seed, config)]
    at_once = _at_once(several, len(wanted))
    children = _Children(_shared(at_once))
    with children.handing_signals_on(), ThreadPoolExecutor(at_once) as pool:
        codes = list(pool.map(lambda s: children.run(several.command(s), f"seed {s}"), wanted))
    if children.received:
        sys.exit(128 + children.received)
    failed = [str(seed) for seed, code in zip(wanted, codes, strict=True) if code]
    if failed:
        raise UserError(
            f"the runs of these seeds failed, their messages are above: {', '.join(failed)}"
        )
    errors = [_test_error(several.path(seed)) for seed in several.seeds]
    print(f"{recipe.name}: {describe(errors)}; {several.out}")
    return errors


def describe(errors: Sequence[float]) -> str:
    """Return test errors in per cent as their mean, standard deviation and values."""
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    values = ", ".join(f"{error:.2f}" for error in errors)
    return f"test error {statistics.mean(errors):.2f}{spread} % ({values})"


def _at_once(several: Several, wanted: int) -> int:
    on_gpu = choose_device(several.device).type == "cuda"
    most = min(usable_cores(), AT_ONCE_ON_GPU) if on_gpu else usable_cores()
    return max(1, min(wanted, several.at_once or most))


def _shared(at_once: int) -> dict[str, str]:
    """Return the environment of processes that each have their share of the cores, for threads and
    for workers: as torchrun's have it."""
    threads = max(1, usable_cores() // at_once)
    return {"OMP_NUM_THREADS": str(threads)} | os.environ | {"LOCAL_WORLD_SIZE": str(at_once)}


@dataclass
class _Children:
    """Processes whose lines are shown, each behind its name."""

    environment: dict[str, str]
    received: int = 0
    """The signal that told this process to end."""
    running: set[subprocess.Popen[str]] = field(default_factory=set)
    handing_on: RLock = field(default_factory=RLock)
    """So that a child that is started as the signal comes gets it, and gets it once."""

    def run(self, words: Sequence[str], name: str) -> int:
        """Run `gaternet train` with these words; return its exit code."""
        if self.received:
            return 0
        with subprocess.Popen(
            [sys.executable, "-m", "gaternet", "train", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C in a terminal reaches this process alone, which hands it on.
            start_new_session=True,
        ) as child:
            with self.handing_on:
                self.running.add(child)
                if self.received:
                    child.send_signal(self.received)
            assert child.stdout is not None
            for line in child.stdout:
                print(f"{name}: {line}", end="", flush=True)
        with self.handing_on:
            self.running.discard(child)
        return child.returncode

    @contextmanager
    def handing_signals_on(self) -> Iterator[None]:
        """Hand signals that end a process on to all that run."""

        def hand_on(number: int, _: FrameType | None) -> None:
            with self.handing_on:
                self.received = number
                for child in tuple(self.running):
                    child.send_signal(number)

        before: list[Callable[[int, FrameType | None], object] | int | None]
        before = [signal.signal(number, hand_on) for number in ENDING]
        try:
            yield
        finally:
            for number, handler in zip(ENDING, before, strict=True):
                signal.signal(number, handler)


def _check(recipe: Recipe, several: Several) -> None:
    refuse_torchrun("--seeds starts processes of its own")
    if any(word.partition("=")[0] == "--seed" for word in several.typed):
        raise UsageError("--seed and --seeds: give one of them")
    if several.at_once is not None and several.at_once < 1:
        raise UsageError(f"--at-once {several.at_once}: at least 1")
    if len(set(several.seeds)) < len(several.seeds):
        raise UsageError(f"--seeds {' '.join(map(str, several.seeds))}: one of them comes twice")
    for seed in several.seeds:
        check(replace(recipe, seed=seed))
        if "--resume" not in several.typed and (several.path(seed) / "config.json").exists():
            raise UserError(
                f"{several.path(seed)} holds a run already: give another --out, or --resume"
            )


def _ended(several: Several, seed: int, config: RunConfig) -> bool:
    """Whether one of the runs has ended; raise UserError where it was not the one that is wanted.

    One that has not ended compares for itself.
    """
    path = several.path(seed)
    if not (path / "config.json").exists() or (run := open_run(path)).result is None:
        return False
    changed = differences(run.config, replace(config, recipe=replace(config.recipe, seed=seed)))
    # Whatever computed it, it is the same run.
    if other := {name: pair for name, pair in changed.items() if name not in config.versions}:
        raise UserError(
            f"{path} has ended with other settings ({in_words(other)}): give the same ones, or "
            "another --out"
        )
    return True


def _test_error(path: Path) -> float:
    result = open_run(path).result
    assert result is not None
    return float(result["test_error_percent"])
