"""The demonstration, the whole way."""

import json
import shlex
from pathlib import Path

import pytest

from gaternet import cli


@pytest.mark.slow
def test_demo_trains_well_and_its_gates_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--device", "cpu"]) == 0
    result = json.loads((out / "gated" / "result.json").read_text())
    plain = json.loads((out / "gated" / "backbone" / "result.json").read_text())
    assert result["test_error_percent"] <= 3
    assert plain["test_error_percent"] <= 3
    assert result["gates"]["always_off"] > 0
    assert result["gates"]["input_dependent"] > 0
    assert (out / "gated" / "analysis" / "test" / "report.html").stat().st_size > 1e6
    shown = capsys.readouterr().out
    for words in ("plain backbone", "gated model", "test error", "parameters", "with gater"):
        assert words in shown
    assert f"{result['test_error_percent']:.2f} %" in shown
    assert f"{result['macs_per_image']:,}" in shown

    # What it says to type next works, and a second demonstration trains nothing again.
    typed = [shlex.split(line) for line in shown.splitlines() if line.startswith("  ")]
    typed = [words for words in typed if words[0].endswith("gaternet")]
    assert len(typed) == 5
    for command in typed[:4]:
        assert cli.main(command[1:]) == 0
    capsys.readouterr()
    assert cli.main(["demo", "--out", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("trained before") == 1
