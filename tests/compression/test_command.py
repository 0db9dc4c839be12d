"""`gaternet compress` on a run that was trained in seconds."""

import json
from pathlib import Path

import pytest
import torch

from gaternet import load
from gaternet.compression import CompressedBackbone, command, read_plan
from gaternet.data.digits import load_digits
from gaternet.model import GaterNet
from gaternet.training.run import open_run
from terminal import Terminal


@pytest.fixture
def compressed(gated_run: Path, terminal: Terminal, tmp_path: Path) -> Path:
    out = tmp_path / "small"
    terminal.succeed("compress", gated_run, "--out", out, "--images", "60", "--tolerance", "20")
    return out


def test_the_smaller_run_is_a_run(
    gated_run: Path, compressed: Path, terminal: Terminal, digit: Path
) -> None:
    small = load(compressed)
    assert isinstance(small.backbone, CompressedBackbone)
    assert read_plan(compressed / "plan.json") == small.backbone.plan
    shown = json.loads(terminal.succeed("evaluate", compressed, "--json"))
    report = json.loads((compressed / "report.json").read_text())
    assert shown["evaluation"]["gates"]["total"] == report["after"]["gates"] == small.gate_count
    before = json.loads(terminal.succeed("evaluate", gated_run, "--json"))
    assert before["evaluation"]["gates"]["total"] == report["before"]["gates"]
    assert json.loads(terminal.succeed("predict", compressed, digit, "--json"))[0]["layers"]


def test_the_report_says_how_equal_and_how_much_smaller(
    gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    words = ("compress", gated_run, "--out", out, "--split", "validation", "--json")
    report = json.loads(terminal.succeed(*words))
    assert report == json.loads((out / "report.json").read_text())
    assert report["recorded"] == 100
    assert report["verification"]["logit_error"] < 1e-5
    assert report["verification"]["flips"] == report["verification"]["rounding_flips"]
    assert report["verification"]["gates"] == 100 * report["after"]["gates"]
    assert report["unseen"]["images"] == 500
    gone = report["removed"] + report["always_on"] + report["unneeded"]
    assert report["before"]["gates"] - report["after"]["gates"] == gone
    plan = read_plan(out / "plan.json")
    assert (plan.split, plan.images, plan.tolerance) == ("validation", 100, 0)


def test_some_images_are_from_all_over_a_split(gated_run: Path, tmp_path: Path) -> None:
    """In a folder one class follows the other: the first images are of few classes."""
    request = command.CompressionRequest(tmp_path, "digits", "train", 60, 0, False, None, "cpu")
    model = load(gated_run)
    assert isinstance(model, GaterNet)
    part = command._Part(open_run(gated_run), request, "test", model)
    labels = torch.cat([labels for _, labels in part])
    whole = load_digits("test").labels
    assert torch.equal(labels, whole[[place * (len(whole) - 1) // 59 for place in range(60)]])


def test_one_mask_leaves_a_plain_run(
    gated_run: Path, terminal: Terminal, digit: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "plain", tmp_path / "again"
    shown = terminal.succeed("compress", gated_run, "--out", out, "--one-mask")
    assert "one mask for all images" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["after"]["gates"] == 0
    assert report["after"]["parameters"] < report["before"]["parameters"] / 2  # no gater
    assert report["verification"]["logit_error"] < 1e-4
    measured = json.loads(terminal.succeed("evaluate", out, "--json"))["evaluation"]
    assert measured["gates"] is None
    expected = 100 * (1 - report["unseen"]["correct"] / report["unseen"]["images"])
    assert measured["error_percent"] == pytest.approx(expected)
    assert json.loads(terminal.succeed("predict", out, digit, "--json"))[0]["layers"] == []
    terminal.succeed("compress", gated_run, "--out", again, "--plan", out / "plan.json")
    assert (again / "report.json").read_text() == (out / "report.json").read_text()


def test_a_plan_serves_again(
    gated_run: Path, compressed: Path, terminal: Terminal, tmp_path: Path
) -> None:
    plan, again = compressed / "plan.json", tmp_path / "again"
    shown = terminal.succeed(
        "compress", gated_run, "--out", again, "--plan", plan, "--images", "60"
    )
    assert (again / "plan.json").read_text() == plan.read_text()
    assert (again / "report.json").read_text() == (compressed / "report.json").read_text()
    assert "max|Δ logits| / max|logits|" in shown


def test_mistakes(
    gated_run: Path, plain_run: Path, compressed: Path, terminal: Terminal, tmp_path: Path
) -> None:
    new, plan = tmp_path / "new", compressed / "plan.json"
    for code, words, message in (
        (1, (plain_run, "--out", new), "has no gater"),
        (1, (gated_run, "--out", compressed), "exists already"),
        (1, (compressed, "--out", new), "compressed already"),
        (1, (gated_run, "--out", new, "--plan", gated_run / "config.json"), "is not a plan"),
        (2, (gated_run, "--out", new, "--plan", plan, "--tolerance", "3"), "leave --tolerance"),
        (2, (gated_run, "--out", new, "--plan", plan, "--one-mask"), "leave --tolerance"),
        (2, (gated_run, "--out", new, "--one-mask", "--tolerance", "3"), "leaves no gate"),
        (2, (gated_run, "--out", new, "--images", "0"), "--images 0"),
        (2, (gated_run, "--out", new, "--tolerance", "-1"), "--tolerance -1"),
        (1, (gated_run, "--out", new, "--images", "5", "--tolerance", "5"), "tolerance 5"),
    ):
        assert message in terminal.fail(code, "compress", *words)
        assert not new.exists()
