"""A run that is killed, wherever it is, ends as one that never was: to the byte."""

import random
import signal
from pathlib import Path

import pytest
from killed_runs import crashes, differing, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
    assert set(ended) == {0, -signal.SIGKILL}, (seed, ended)
    assert differing(tmp_path / "run", undisturbed) == [], seed
