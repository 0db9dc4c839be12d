"""Whatever a recipe draws or averages: killed, its run ends as one that never was."""

import signal
from pathlib import Path

import pytest
from killed_runs import crashes, differing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
