"""The command line: every mistake is one line that names it, and nothing is overwritten."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gaternet import cli
from gaternet.data.digits import load_digits
from gaternet.training.trainer import Trainer
from small_runs import tree

QUICK = ["--epochs", "1", "--schedule.batch-size", "128", "--device", "cpu"]
PLAIN = ["train", "digits/resnet8", *QUICK]
GATED = ["train", "digits/resnet8-gated", *QUICK, "--from-scratch"]


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    assert cli.main([*PLAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def gated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "gated"
    assert cli.main([*GATED, "--validation", "100", "--out", str(path)]) == 0
    return path


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    file = tmp_path / "digit.png"
    Image.fromarray(load_digits("test").images[0, 0].numpy()).save(file)
    return file


class Terminal:
    """Runs commands and keeps what they wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def succeed(self, *words: str | Path) -> str:
        self.capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 0
        return self.capsys.readouterr().out

    def fail(self, code: int, *words: str | Path) -> str:
        """Return the one line that a mistake is told in."""
        self.capsys.readouterr()
        assert cli.main([str(word) for word in words]) == code
        out, err = self.capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"gaternet: [^\n]+\n", err)
        return err

    def misuse(self, *words: str | Path) -> str:
        """Return what the parser of arguments says, in one line of words."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        assert stopped.value.code == 2
        out, err = self.capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split())


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


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
    assert statistics.median(seconds) < 1.0


def test_recipe_s_own_help_shows_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, gated in (("cifar10/resnet20", False), ("cifar10/resnet20-gated", True)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", recipe, "--help"])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert "--schedule.batch-size" in out
        assert ("--gating.sparsity" in out) is ("--from-scratch" in out) is gated


def test_recipes(terminal: Terminal) -> None:
    listed = terminal.succeed("recipes", "list")
    assert "cifar10/resnet56-gated" in listed
    assert "digits/resnet8" in listed
    shown = json.loads(terminal.succeed("recipes", "show", "cifar10/resnet20"))
    assert shown["backbone"] == "resnet20"
    assert shown["schedule"]["milestones"] == [0.5, 0.75]
    assert "recipes list" in terminal.fail(2, "recipes", "show")
    assert "recipes show x" in terminal.fail(2, "recipes", "list", "x")
    assert "cifar10/resnet20" in terminal.fail(2, "recipes", "show", "cifar10/resnet21")


def test_mistyped_recipe_gives_near_ones(terminal: Terminal, tmp_path: Path) -> None:
    said = terminal.fail(2, "train", "cifar10/resnet20gated", "--out", tmp_path / "run")
    assert "'cifar10/resnet20gated'" in said
    assert "cifar10/resnet20-gated" in said
    assert "--epochs" not in said


def test_mistyped_flag_gives_near_ones(terminal: Terminal, plain_run: Path, tmp_path: Path) -> None:
    assert "--schedule.batch-size" in terminal.misuse(
        "train", "digits/resnet8", "--out", tmp_path / "run", "--schedule.batchsize", "32"
    )
    assert "--gates" in terminal.misuse("evaluate", plain_run, "--gate", "soft")
    assert "evaluate" in terminal.misuse("evaluat", plain_run)
    assert "--out" in terminal.misuse("train", "digits/resnet8")
    assert not (tmp_path / "run").exists()


def test_plain_recipe_has_no_flags_of_gates(terminal: Terminal, tmp_path: Path) -> None:
    said = terminal.misuse(*PLAIN, "--out", tmp_path / "run", "--gating.sparsity", "1")
    assert "--gating.sparsity" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--validation", "-5"], "validation must not be negative"),
        (["--optimizer.lr", "nan"], "optimizer.lr must be above 0"),
        (["--schedule.accumulate", "3"], "schedule.accumulate must divide"),
        (["--gating.bottleneck", "0"], "gating.bottleneck must be at least 1"),
        (
            ["--gating.anneal-from", "0.9", "--gating.anneal-until", "0.1"],
            "gating.anneal-from ≤ gating.anneal-until",
        ),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_setting_that_cannot_be(
    flags: list[str], words: str, terminal: Terminal, tmp_path: Path
) -> None:
    assert words in terminal.fail(2, *GATED, *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--augmentation.cutout", "-1"], "cutout is -1"),
        (["--epochs", "many"], "many"),
        (["--schedule.kind", "linear"], "cosine"),
    ],
)
def test_value_that_cannot_be(
    flags: list[str], words: str, terminal: Terminal, tmp_path: Path
) -> None:
    assert words in terminal.misuse(*GATED, *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_gater_gives_near_ones(terminal: Terminal, tmp_path: Path) -> None:
    said = terminal.fail(1, *GATED, "--gating.gater", "resnet21", "--out", tmp_path / "run")
    assert re.search(r"did you mean .*resnet20", said)


def test_missing_data(terminal: Terminal, tmp_path: Path, plain_run: Path) -> None:
    missing = tmp_path / "nowhere"
    training = ["train", "cifar10/resnet20", "--out", str(tmp_path / "run")]
    for words in (training, ["evaluate", str(plain_run)]):
        assert str(missing) in terminal.fail(1, *words, "--data", missing)
    assert not (tmp_path / "run").exists()


def test_foreign_data(terminal: Terminal, tmp_path: Path, plain_run: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "a.txt").write_text("dear")
    training = ["train", "cifar10/resnet20", "--out", str(tmp_path / "run")]
    for words in (training, ["evaluate", str(plain_run)]):
        assert str(letters) in terminal.fail(1, *words, "--data", letters)
    said = terminal.fail(
        1, "train", "cifar10/resnet20", "--data", "digits", "--out", tmp_path / "run"
    )
    assert "digits holds images of 1×8×8, cifar10 is 3×32×32" in said
    assert not (tmp_path / "run").exists()


def test_images_of_other_classes_are_not_evaluated(
    terminal: Terminal, tmp_path: Path, plain_run: Path
) -> None:
    data = tmp_path / "letters"
    for split in ("train", "test"):
        for name in "abcdefghij":
            (data / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 100).save(data / split / name / "1.png")
    said = terminal.fail(1, "evaluate", plain_run, "--data", data)
    assert "was trained on: class 0 is a, not 0; give --data" in said


def test_directory_in_use_is_not_overwritten(
    terminal: Terminal, tmp_path: Path, plain_run: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("the only copy")
    for path, words in ((plain_run, "holds a run already"), (tmp_path / "mine", "is not empty")):
        before = tree(path)
        assert words in terminal.fail(1, *PLAIN, "--out", path)
        assert tree(path) == before
    assert "ended already" in terminal.fail(1, *PLAIN, "--out", plain_run, "--resume")
    assert "no such run" in terminal.fail(1, *PLAIN, "--out", tmp_path / "nowhere", "--resume")


def test_resuming_with_other_settings_names_them(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert cli.main([*PLAIN, "--out", str(run)]) == 130
    before = tree(run)
    said = terminal.fail(
        1, *PLAIN, "--out", run, "--resume", "--optimizer.lr", "0.2", "--seed", "3"
    )
    assert "(optimizer.lr 0.1 → 0.2; seed 0 → 3)" in said
    assert tree(run) == before
    terminal.succeed(*PLAIN, "--out", run, "--resume")
    assert (run / "result.json").exists()


def test_evaluate_says_what_training_said(terminal: Terminal, gated_run: Path) -> None:
    result = json.loads((gated_run / "result.json").read_text())
    found = json.loads(terminal.succeed("evaluate", gated_run, "--json", "--device", "cpu"))
    evaluation = found["evaluation"]
    assert evaluation["error_percent"] == pytest.approx(result["test_error_percent"], abs=1e-3)
    assert evaluation["top5_error_percent"] == pytest.approx(
        result["test_top5_error_percent"], abs=1e-3
    )
    assert evaluation["gates"] == pytest.approx(result["gates"])
    assert (found["recipe"], found["split"], found["gate_form"]) == (
        "digits/resnet8-gated",
        "test",
        "hard",
    )
    told = terminal.succeed("evaluate", gated_run)
    assert f"{evaluation['error_percent']:.2f} %" in told
    assert "input-dependent" in told


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


def test_plain_network_has_no_gates_to_choose(terminal: Terminal, plain_run: Path) -> None:
    for flags in (["--gates", "soft"], ["--threshold", "1"]):
        said = terminal.fail(2, "evaluate", plain_run, *flags)
        assert f"{plain_run} is a plain network" in said
    assert "no validation split" in terminal.fail(2, "evaluate", plain_run, "--split", "validation")
    assert "always on" not in terminal.succeed("evaluate", plain_run)


def test_what_is_no_run(terminal: Terminal, tmp_path: Path, digit: Path) -> None:
    for words in (["evaluate", str(tmp_path)], ["predict", str(tmp_path), str(digit)]):
        assert f"{tmp_path} holds no run" in terminal.fail(1, *words)
    assert "no such run" in terminal.fail(1, "evaluate", tmp_path / "nowhere")


def test_corrupt_checkpoint_is_named(terminal: Terminal, plain_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(plain_run, broken)
    file = broken / "checkpoints" / "epoch-0001" / "model.safetensors"
    os.truncate(file, 1000)
    assert f"{file} was truncated or altered" in terminal.fail(1, "evaluate", broken)
    said = terminal.fail(
        1, *GATED[:-1], "--backbone", broken, "--gater", plain_run, "--out", tmp_path / "run"
    )
    assert f"{file} was truncated or altered" in said
    assert not (tmp_path / "run").exists()
    shutil.rmtree(broken / "checkpoints" / "epoch-0001")
    assert "holds no checkpoint yet" in terminal.fail(1, "evaluate", broken)


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
    told = terminal.succeed("predict", gated_run, digit)
    assert "stage3.block1.bn2" in told
    assert "stage3" not in terminal.succeed("predict", plain_run, digit)


def test_images_that_cannot_be_read(
    terminal: Terminal, plain_run: Path, digit: Path, tmp_path: Path
) -> None:
    text, torn = tmp_path / "text.png", tmp_path / "torn.png"
    text.write_text("no image")
    torn.write_bytes(digit.read_bytes()[:50])
    assert f"{tmp_path / 'none.png'} does not exist" in terminal.fail(
        1, "predict", plain_run, tmp_path / "none.png"
    )
    assert f"{text} is no image" in terminal.fail(1, "predict", plain_run, digit, text)
    assert f"{torn} is a corrupt image" in terminal.fail(1, "predict", plain_run, torn, "--json")
    assert "at least one image" in terminal.fail(2, "predict", plain_run)


def test_info(terminal: Terminal) -> None:
    found = json.loads(terminal.succeed("info", "--json"))
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["device"] in ("cpu", "cuda")
    assert found["hardware"] in " ".join(terminal.succeed("info").split())


def test_recipe_comes_first(terminal: Terminal) -> None:
    assert "the recipe comes first" in terminal.fail(2, "train", "--out", "x", "digits/resnet8")
