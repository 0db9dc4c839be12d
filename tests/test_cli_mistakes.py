"""Every mistake is one line that names it and says what to do, and nothing is overwritten."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gaternet import cli, recipes
from gaternet.arguments import applied, parse
from gaternet.errors import UsageError
from gaternet.training.config import Sources
from gaternet.training.starting import choose_start
from gaternet.training.trainer import Trainer
from small_runs import tree
from terminal import GATED, PLAIN, Terminal


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
    assert "did you mean evaluate?" in terminal.fail(2, "evaluat", plain_run)
    assert "see gaternet evaluate --help" in terminal.misuse(
        "evaluate", plain_run, "--threshold", "x"
    )
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
        (["--gating.decides", "layers"], "give --gating.gater none"),
        (["--gating.gater", "none"], "give --gating.gater, such as resnet20"),
        (["--gating.binarizer", "random"], "needs --gating.rate in (0, 1]"),
        (["--gating.rate", "0.5"], "give --gating.rate none"),
        (["--schedule.milestones", "0.5"], "give --schedule.milestones with no value"),
        (["--schedule.decays", "3"], "give --schedule.decays 0"),
        (["--schedule.kind", "exponential"], "needs --schedule.decays"),
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
    assert said == (
        "gaternet: --gating.gater: unknown network 'resnet21' (depth 21 is not 6n + 2 with n ≥ 1 "
        "(8, 14, 20, … 56, …)); did you mean resnet20 or resnet26 or resnet14?\n"
    )


@pytest.mark.parametrize("flag", ["--network", "--gating.gater"])
def test_network_that_cannot_take_the_images(flag: str, terminal: Terminal, tmp_path: Path) -> None:
    network = "timm/vit_tiny_patch16_224"
    said = terminal.fail(1, *GATED, flag, network, "--out", tmp_path / "run")
    assert f"{flag} {network}: the network cannot take images of 1×8×8 (Input height" in said
    assert not (tmp_path / "run").exists()


def test_network_without_places_for_gates(terminal: Terminal, tmp_path: Path) -> None:
    flags = ["--network", "timm/vit_tiny_patch16_224", "--device", "cpu"]
    said = terminal.fail(1, "train", "imagenet/resnet34-gated", *flags, "--out", tmp_path / "run")
    assert "--network timm/vit_tiny_patch16_224 cannot be gated" in said


def test_corrupt_training_image_is_named(terminal: Terminal, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "0123456789":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 100).save(tmp_path / "data" / split / name / "1.png")
    for split, hint in (("test", ""), ("train", ", or train with --on-bad-image skip")):
        bad = tmp_path / "data" / split / "4" / "1.png"
        bad.write_bytes(bad.read_bytes()[:40])
        said = terminal.fail(1, *PLAIN, "--data", tmp_path / "data", "--out", tmp_path / "run")
        assert f"{bad} is " in said
        assert f"{hint} (split {split})\n" in said
    assert not (tmp_path / "run").exists()


def test_network_in_place_of_a_run(terminal: Terminal, tmp_path: Path) -> None:
    for flag, meant in (("--gater", "--gating.gater"), ("--backbone", "--network")):
        said = terminal.fail(1, *GATED[:-1], flag, "resnet20", "--out", tmp_path / "run")
        assert f"{flag} resnet20: there is no such run directory" in said
        assert f"named with {meant}" in said
    said = terminal.fail(1, *GATED[:-1], "--gater", tmp_path / "r20", "--out", tmp_path / "run")
    assert said.endswith(f"--gater {tmp_path / 'r20'}: there is no such run directory\n")


def test_missing_data(terminal: Terminal, tmp_path: Path, plain_run: Path) -> None:
    missing = tmp_path / "nowhere"
    training = ["train", "cifar10/resnet20", "--out", str(tmp_path / "run")]
    for words in (training, ["evaluate", str(plain_run)]):
        assert str(missing) in terminal.fail(1, *words, "--data", missing)
    assert not (tmp_path / "run").exists()


def test_hub_that_cannot_be_reached(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    said = terminal.fail(1, "train", "cifar10/resnet20", "--out", tmp_path / "run")
    assert "(no route to host): give a folder of the images with --data" in said
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
    assert "digits holds images of 1×8×8, cifar10 is 3×32×32: give other data, or a recipe" in said
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
    said = terminal.fail(1, *PLAIN, "--out", tmp_path / "nowhere", "--resume")
    assert "leave --resume out to begin" in said


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


def test_plain_network_has_no_gates_to_choose(terminal: Terminal, plain_run: Path) -> None:
    for flags in (["--gates", "soft"], ["--threshold", "1"]):
        said = terminal.fail(2, "evaluate", plain_run, *flags)
        assert f"{plain_run} is a plain network" in said
    for threshold in ("nan", "inf"):
        said = terminal.fail(2, "evaluate", plain_run, "--threshold", threshold)
        assert f"--threshold {threshold} is not a finite number" in said
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


def test_images_that_cannot_be_read(
    terminal: Terminal, plain_run: Path, digit: Path, tmp_path: Path
) -> None:
    text, torn = tmp_path / "text.png", tmp_path / "torn.png"
    text.write_text("no image")
    torn.write_bytes(digit.read_bytes()[:50])
    assert f"{tmp_path / 'none.png'} does not exist" in terminal.fail(
        1, "predict", plain_run, tmp_path / "none.png"
    )
    assert f"{text} is not an image" in terminal.fail(1, "predict", plain_run, digit, text)
    assert f"{torn} is a corrupt image" in terminal.fail(1, "predict", plain_run, torn, "--json")
    assert "at least one image" in terminal.fail(2, "predict", plain_run)


def test_recipe_comes_first(terminal: Terminal) -> None:
    assert "the recipe comes first" in terminal.fail(2, "train", "--out", "x", "digits/resnet8")


def test_decider_can_be_changed_by_flags() -> None:
    """Without a gater none is pre-trained; a gater that no recipe is named for must be given."""
    local = recipes.get("cifar10/resnet20-gated-local")
    flags = ["--gating.decides", "layers", "--gating.gater", "none", "--out", "run"]
    gated = recipes.get("cifar10/resnet20-gated")
    changed = applied(gated, parse(gated, flags))
    assert (changed.gating, changed.pretrain) == (local.gating, local.pretrain)
    flags = ["--gating.decides", "gater", "--gating.gater", "resnet20", "--out", "run"]
    changed = applied(local, parse(local, flags))
    with pytest.raises(UsageError, match="names no recipe to pre-train its gater with"):
        choose_start(changed, Sources("cifar10"))
