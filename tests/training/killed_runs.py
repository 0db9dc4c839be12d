"""Runs that are killed by `crashes.py`, and what they came to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from small_runs import tree

HERE = Path(__file__).parent
TIMES = ("seconds", "images_per_second", "wall_seconds", "date")


def crashes(scenario: str, out: Path, *kills: str) -> list[int]:
    """Return how the processes ended that trained into `out`: -9 where killed."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(HERE / "crashes.py"), scenario, str(out), *kills],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert ended[-1] == 0, done.stderr
    return ended


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES}


def outcome(run: Path) -> dict[str, Any]:
    """Return what a run and those within it came to, file by file, but times."""
    found: dict[str, Any] = {}
    for name, content in tree(run).items():
        if name.endswith("metrics.jsonl"):
            found[name] = [timeless(json.loads(line)) for line in content.splitlines()]
        elif name.endswith("result.json"):
            found[name] = timeless(json.loads(content))
        elif "tensorboard" not in name:
            found[name] = content
    return found


def differing(ours: Path, theirs: Path) -> list[str]:
    found, expected = outcome(ours), outcome(theirs)
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))
