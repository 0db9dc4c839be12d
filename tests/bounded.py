"""A child process that opens hostile files one after the other and measures what each costs it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MEMORY = 200 * 2**20
SECONDS = 40.0  # on a core that others use as well
HUGE = 10**9

_CHILD = """
import json, re, resource, sys, time
from pathlib import Path
from gaternet.errors import UserError

def bytes_of(what):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(what + r":\\s+(\\d+) kB", status)[1])

{setup}
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
for name, path in json.loads(sys.stdin.read()).items():
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began, kind = bytes_of("VmRSS"), time.monotonic(), "none"
    try:
        message = str(read(Path(path)))
    except UserError as error:
        kind, message = "UserError", str(error)
    except BaseException as error:
        kind, message = type(error).__name__, str(error)
    seconds = time.monotonic() - began
    print(json.dumps([name, kind, message, seconds, bytes_of("VmHWM") - before]), flush=True)
"""


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Return what changes the values of the JSON file `name` of a folder."""

    def harm(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return harm


@dataclass(frozen=True)
class Outcome:
    """What became of one file: the kind of the error and its message, seconds, bytes of memory."""

    kind: str
    message: str
    seconds: float
    memory: int
    """What it took at its peak, above what the process had before."""


def open_each(setup: str, files: Mapping[str, Path], seconds: float = 240) -> dict[str, Outcome]:
    """Return what becomes of each file under `read`, a function of a path that `setup` defines.

    `setup` is Python; it should open a sound file first, so that imports are not counted.
    """
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak of each")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(setup=setup)],
        input=json.dumps({name: str(file) for name, file in files.items()}),
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {name: Outcome(*rest) for name, *rest in lines}
    assert found.keys() == files.keys(), done.stderr[-2000:]
    return found


def assert_refused(outcome: Outcome, message: str) -> None:
    """Check the error, that it is one line, and that little memory and time went into it."""
    __tracebackhide__ = True
    assert outcome.kind == "UserError", outcome
    assert re.search(message, outcome.message), outcome
    assert "\n" not in outcome.message
    assert outcome.memory < MEMORY, outcome
    assert outcome.seconds < SECONDS, outcome


def sparse(name: str, size: int) -> Callable[[Path], None]:
    """Make a file of a directory as long as that, without taking room."""
    return lambda directory: os.truncate(directory / name, size)


def a_pipe(name: str) -> Callable[[Path], None]:
    """Put a pipe, which blocks who reads it, in a file's place."""

    def harm(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return harm


def plan_of(name: str, channels: int, kept: int) -> dict[str, Any]:
    """Return a compression plan for one gate point."""
    one = {"name": name, "channels": channels, "block": 1, "kept": kept}
    gone: dict[str, list[int]] = {"removed": [], "always_on": [], "unneeded": []}
    return {
        "model": "0",
        "images": 1,
        "split": None,
        "tolerance": 0,
        "kept_whole": {},
        "points": [one | gone],
    }
