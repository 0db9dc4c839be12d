"""The command line: help, and what its verbs say."""

import json
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from gaternet import cli
from gaternet.arguments import GatedArguments, parse
from gaternet.data.digits import load_digits
from gaternet.recipes import RECIPES, get
from gaternet.subcommands import COMMANDS, GROUPS
from terminal import Terminal


def test_help_is_fast_and_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from gaternet import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: assert not {'torch', 'timm', 'datasets'} & sys.modules.keys()"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "evaluate", "predict", "recipes", "info"):
        assert command in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert statistics.median(seconds) < 1.0


def test_version(terminal: Terminal) -> None:
    assert terminal.succeed("--version") == f"gaternet {version('gaternet')}\n"


def test_recipe_s_own_help_shows_its_settings(terminal: Terminal) -> None:
    for words in (["{}", "--help"], ["--help", "{}"]):
        plain, gated = (
            terminal.help("train", *(word.format(recipe) for word in words))
            for recipe in ("cifar10/resnet20", "cifar10/resnet20-gated")
        )
        assert "--schedule.batch-size" in plain
        assert "--gating.sparsity" in gated
        assert "--gating.sparsity" not in plain


def test_help_shows_what_can_be_typed(terminal: Terminal) -> None:
    gated = terminal.help("train", "cifar10/resnet20-gated")
    for shown in ("--augmentation.mirror, --augmentation.no-mirror", "--gating.rate FLOAT|none"):
        assert shown in gated
    for command in ("evaluate", "predict", "recipes", "ledger", "import-authors", "train"):
        shown = terminal.help(command)
        assert f"usage: gaternet {command}" in shown
        assert "None" not in gated + shown
        assert "(default: )" not in gated + shown


def test_none_can_be_typed_for_every_optional_setting() -> None:
    recipe = get("cifar10/resnet20-gated")
    words = ["--out", "run", "--gating.gater", "none", "--gating.target-rate", "0.5"]
    arguments = parse(recipe, [*words, "--gating.decides", "layers", "--compute.workers", "None"])
    assert isinstance(arguments, GatedArguments)
    assert (arguments.gating.gater, arguments.gating.target_rate) == (None, 0.5)
    assert arguments.compute.workers is None


@pytest.mark.parametrize(
    "words",
    [
        ["train", "cifar10/resnet20-gated"],
        *([name] for name in COMMANDS),
        *([group, name] for group, (_, commands) in GROUPS.items() for name in commands),
    ],
)
def test_every_argument_says_what_it_is(terminal: Terminal, words: list[str]) -> None:
    texts = terminal.help(*words).split(" --")
    assert len(texts) > (40 if len(words) > 1 and words[0] == "train" else 1)
    assert not [text for text in texts if re.search(r"^\S*\w( \S+)? \(default", text)]


def test_help_breaks_lines_only_where_they_are_full(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["compress", "--help"])
    assert "images: a plain network" in capsys.readouterr().out


def names_of(data: str) -> list[str]:
    """Return the recipes of a data set, those of the paper's tables first."""
    recipes = [recipe for recipe in RECIPES.values() if recipe.data.title == data]
    return [r.name for r in sorted(recipes, key=lambda r: not r.reproduces.startswith("Table"))]


def test_recipes(terminal: Terminal) -> None:
    listed = terminal.succeed("recipes", "list")
    assert [line.split()[0] for line in listed.splitlines() if "/" in line.partition(" ")[0]] == [
        name for data in ("CIFAR-10", "CIFAR-100", "ImageNet", "Digits") for name in names_of(data)
    ]
    assert listed.startswith("Tables and sections are those of the paper (“You Look Twice”")
    assert "cifar100" not in terminal.succeed("recipes", "list", "cifar10/")
    shown = json.loads(terminal.succeed("recipes", "show", "cifar10/resnet20"))
    assert shown["backbone"] == "resnet20"
    assert shown["schedule"]["milestones"] == [0.5, 0.75]
    assert "recipes list" in terminal.fail(2, "recipes", "show")
    assert "contains 'vgg'" in terminal.fail(2, "recipes", "list", "vgg")
    assert "cifar10/resnet20" in terminal.fail(2, "recipes", "show", "cifar10/resnet21")


def test_evaluate_says_what_training_said(terminal: Terminal, gated_run: Path) -> None:
    result = json.loads((gated_run / "result.json").read_text())
    found = json.loads(terminal.succeed("evaluate", gated_run, "--json", "--device", "cpu"))
    evaluation = found["evaluation"]
    assert evaluation["error_percent"] == pytest.approx(result["test_error_percent"], abs=1e-3)
    assert evaluation["top5_error_percent"] == pytest.approx(
        result["test_top5_error_percent"], abs=1e-3
    )
    assert evaluation["gates"] == pytest.approx(result["gates"])
    assert (found["recipe"], found["split"], evaluation["form"]) == (
        "digits/resnet8-gated",
        "test",
        "hard",
    )
    output = terminal.succeed("evaluate", gated_run)
    assert f"{evaluation['error_percent']:.2f} %" in output
    assert "input-dependent" in output


def test_evaluate_forms_splits_and_thresholds(terminal: Terminal, gated_run: Path) -> None:
    def measure(*flags: str) -> dict[str, Any]:
        measured = json.loads(terminal.succeed("evaluate", gated_run, "--json", *flags))
        return dict(measured["evaluation"])

    losses = {form: measure("--gates", form)["loss"] for form in ("hard", "soft", "noisy")}
    assert len(set(losses.values())) == 3
    assert measure("--split", "validation")["images"] == 100
    assert measure("--split", "train")["images"] == 1297
    assert measure("--threshold", "-50")["gates"]["always_on"] == 112
    assert measure("--threshold", "50")["gates"]["always_off"] == 112


def test_predict(terminal: Terminal, gated_run: Path, plain_run: Path, digit: Path) -> None:
    found = json.loads(terminal.succeed("predict", gated_run, digit, digit, "--json"))
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0]["image"] == str(digit)
    assert sorted(found[0]["classes"]) == list("0123456789")
    assert sum(found[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert found[0]["probabilities"] == sorted(found[0]["probabilities"], reverse=True)
    assert [layer["total"] for layer in found[0]["layers"]] == [16, 32, 64]

    from gaternet import load

    test = load_digits("test")
    with torch.no_grad():
        logits, gates = load(gated_run)((test.images[:1] / 255 - 0.3056) / 0.3756)
    assert found[0]["classes"][0] == str(logits.argmax().item())
    assert sum(layer["open"] for layer in found[0]["layers"]) == gates.sum()
    output = terminal.succeed("predict", gated_run, digit)
    assert "stage3.block1.bn2" in output
    assert "stage3" not in terminal.succeed("predict", plain_run, digit)


def test_info(terminal: Terminal) -> None:
    found = json.loads(terminal.succeed("info", "--json"))
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["device"] in ("cpu", "cuda")
    assert found["hardware"] in " ".join(terminal.succeed("info").split())
