"""What benchmarks say of themselves, and what they refuse."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_published_command_is_the_one_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    publish = importlib.import_module("report").publish
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--data", "a folder"])
    publish({"ratio": 1.5}, torch.device("cpu"), tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["command"] == "python benchmarks/x.py --data 'a folder'"
    assert found["ratio"] == 1.5
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    publish({}, torch.device("cpu"), None)
    command = json.loads(capsys.readouterr().out)["command"]
    words = "torchrun --standalone --nproc-per-node 2 benchmarks/x.py --data 'a folder'"
    assert command == words


def test_one_process_is_not_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    two_processes = importlib.import_module("two_processes")
    with pytest.raises(SystemExit, match="--nproc-per-node 2"):
        two_processes.main(two_processes.Settings("digits/resnet8-gated", "digits"))
