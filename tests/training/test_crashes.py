"""A run that is killed, wherever it is, ends as one that never was: to the byte."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from small_runs import tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert crashes("three phases", out) == [0]
    return out


def test_run_killed_in_every_phase_ends_as_if_it_never_was(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Ten steps a phase; the fourth process is killed in the gater's, the last in the joint one."""
    kills = [f"step:{n}" for n in (3, 5, 7, 6, 4, 9)]
    ended = crashes("three phases", tmp_path / "run", *kills)
    assert ended == [-signal.SIGKILL] * 6 + [0]
    expected = outcome(undisturbed)
    assert {"result.json", "backbone/result.json", "gater/result.json"} < expected.keys()
    assert "checkpoints/epoch-0002/optimizer.safetensors" in expected
    assert differing(tmp_path / "run", undisturbed) == []


@pytest.mark.parametrize(
    "scenario",
    ["averaged, gates dropped, accumulated", "shake-shake", "dropout of timm", "compiled"],
)
def test_whatever_is_drawn_or_averaged_goes_on(scenario: str, tmp_path: Path) -> None:
    few = ("shake-shake", "dropout of timm")  # two steps an epoch
    kills = ["step:2", "step:2"] if scenario in few else ["step:3", "optimizer:4"]
    assert crashes(scenario, tmp_path / "whole") == [0]
    ended = crashes(scenario, tmp_path / "run", *kills)
    assert ended == [-signal.SIGKILL] * len(kills) + [0]
    assert differing(tmp_path / "run", tmp_path / "whole") == []


@pytest.mark.parametrize("what", ["save_file", "fsync", "rename", "rmdir"])
def test_run_killed_while_it_writes_ends_as_if_it_never_was(
    what: str, undisturbed: Path, tmp_path: Path
) -> None:
    kills = [f"{what}:{n}" for n in (1, 3, 6)]
    ended = crashes("three phases", tmp_path / "run", *kills)
    assert ended == [-signal.SIGKILL] * 3 + [0]
    assert differing(tmp_path / "run", undisturbed) == []
    assert list((tmp_path / "run").rglob(".*")) == []


def test_run_killed_at_random_moments_ends_as_if_it_never_was(
    undisturbed: Path, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    draws = random.Random(seed)
    kills = [f"after:{draws.randrange(1, 400)}" for _ in range(8)]
    ended = crashes("three phases", tmp_path / "run", *kills)
    assert set(ended) <= {0, -signal.SIGKILL}, (seed, ended)
    assert differing(tmp_path / "run", undisturbed) == [], seed
