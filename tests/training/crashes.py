"""Trains a recipe again and again while it is killed; `killed_runs.py` starts it.

    python crashes.py SCENARIO OUT WHAT:N [WHAT:N …]

Each WHAT:N is one process that trains into OUT, goes on where the last one was killed, and ends by
SIGKILL: in the N-th step that it takes (step), when it has called fsync, rename or save_file N
times (these), or N milliseconds behind its first step, sent by another process (after). The last
process is left alone. Processes are forked from this one, which loads PyTorch once and computes
nothing.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gaternet import checkpoint
from gaternet.training.config import Compute, Recipe, Sources
from gaternet.training.phases import train
from gaternet.training.trainer import Trainer
from small_runs import GATED, PLAIN, on_cpu, with_batches

JOINT = with_batches(replace(GATED, epochs=2), 256)
SCRATCH = Sources("digits", from_scratch=True)


def _gating(**settings: Any) -> Recipe:
    assert JOINT.gating is not None
    return replace(JOINT, gating=replace(JOINT.gating, **settings))


def _scheduled(recipe: Recipe, size: int, **settings: Any) -> Recipe:
    return with_batches(replace(recipe, epochs=2), size, **settings)


SCENARIOS: dict[str, tuple[Recipe, Sources]] = {
    "three phases": (JOINT, Sources("digits")),
    "averaged, gates dropped, accumulated": (
        with_batches(_gating(dropout=0.3, ungated=0.3), 256, ema=0.9, accumulate=2),
        SCRATCH,
    ),
    "shake-shake": (
        _scheduled(replace(PLAIN, backbone="shake-shake-26-2x4d"), 640),
        Sources("digits"),
    ),
    "dropout of timm": (
        _scheduled(replace(PLAIN, backbone="timm/ghostnet_050"), 640),
        Sources("digits"),
    ),
    "compiled": (
        replace(JOINT, compute=Compute("float32", "on", False)),
        SCRATCH,
    ),
}


def run(scenario: str, out: Path, *, minutes: float = 1e-9) -> None:
    """Train into `out`, or go on there, with a checkpoint behind every step."""
    recipe, sources = SCENARIOS[scenario]
    options = replace(on_cpu(), checkpoint_minutes=minutes)
    train(recipe, sources, out, options, resume=(out / "config.json").exists())


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killing(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """Return a function that ends the process at the n-th call, half of it done or not begun."""
    done = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        done += 1
        if done == calls:
            if function is checkpoint.save_file:
                Path(arguments[1]).write_bytes(b"half a file")
            _kill()
        return function(*arguments, **named)

    return call


def arrange(what: str, number: int) -> None:
    """Let this process end by SIGKILL."""
    if what == "step":
        Trainer.step = _killing(Trainer.step, number)  # type: ignore[method-assign]
    elif what == "optimizer":
        torch.optim.SGD.step = _killing(torch.optim.SGD.step, number)  # type: ignore[method-assign]
    elif what == "fsync":
        os.fsync = _killing(os.fsync, number)
    elif what == "rename":
        os.rename = _killing(os.rename, number)
    elif what == "rmdir":
        os.rmdir = _killing(os.rmdir, number)
    elif what == "save_file":
        checkpoint.save_file = _killing(checkpoint.save_file, number)
    else:
        raise ValueError(what)


def attempt(scenario: str, out: Path, what: str, number: int) -> int:
    """Train in a process of its own until it is killed; return how it ended."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            if what == "after":
                step = Trainer.step
                Trainer.step = lambda *x: (os.write(tell, b"."), step(*x))[1]  # type: ignore
            elif number:
                arrange(what, number)
            run(scenario, out)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(tell)
    if what == "after" and os.read(told, 1):
        time.sleep(number / 1000)
        os.kill(child, signal.SIGKILL)
    os.close(told)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(scenario: str, out: Path, *kills: str) -> None:
    torch.set_num_threads(1)
    ended = []
    for kill in kills:
        what, _, number = kill.partition(":")
        ended.append(attempt(scenario, out, what, int(number)))
    ended.append(attempt(scenario, out, "nothing", 0))
    print(json.dumps(ended))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
