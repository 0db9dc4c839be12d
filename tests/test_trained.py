"""The networks that come with the package: small, whole, and as good as their cards say."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import gaternet
from gaternet import trained
from gaternet.data.augmentation import normalise
from gaternet.model import GatedModel
from gaternet.training.run import open_run
from small_runs import tree
from terminal import QUICK, Terminal

ROOT = Path(__file__).parents[1]
NAMES = ("resnet20-cifar10", "resnet20-gated-cifar10")
PLAIN, GATED = NAMES


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of no run, to type names in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(elsewhere: Path) -> str:
    """Twenty grey images of CIFAR-10's classes, half of them for training."""
    classes = open_run(Path(PLAIN)).config.classes
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            folder = elsewhere / "pictures" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (25 * number,) * 3).save(folder / "1.png")
    return "pictures"


@pytest.mark.parametrize("name", NAMES)
def test_weights_give_the_logits_that_the_run_gave(
    name: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    data = open_run(Path(name)).config.recipe.data
    image = importlib.import_module("ship").known_image(data)
    model = gaternet.load(name)
    assert not model.training
    with torch.inference_mode():
        output = model(normalise(image, data.mean, data.std))
    logits = output.logits if isinstance(model, GatedModel) else output
    assert logits[0].tolist() == pytest.approx(trained.card(name)["known_logits"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_error_is_that_of_the_card(
    name: str, cifar10_dir: Path, terminal: Terminal, elsewhere: Path
) -> None:
    words = ("evaluate", name, "--data", cifar10_dir, "--device", "cpu", "--json")
    found = json.loads(terminal.succeed(*words))
    card = trained.card(name)
    assert found["evaluation"]["images"] == 10_000
    assert round(found["evaluation"]["error_percent"], 3) == card["test_error_percent"]
    assert round(found["evaluation"]["top5_error_percent"], 3) == card["test_top5_error_percent"]
    for kind in ("always_on", "always_off", "mean_open"):
        if card["gates"]:
            assert found["evaluation"]["gates"][kind] == pytest.approx(card["gates"][kind])


def test_names_are_listed(terminal: Terminal) -> None:
    output = terminal.succeed("models")
    assert all(len(line) <= 80 for line in output.splitlines()[: 1 + len(NAMES)])
    for name, row in zip(NAMES, output.splitlines()[1:], strict=False):
        card = trained.card(name)
        assert row.split()[:3] == [name, card["recipe"], str(card["epochs"])]
        assert f"{card['test_error_percent']:.2f} %" in row
    listed = json.loads(terminal.succeed("models", "--json"))
    assert tuple(model["name"] for model in listed) == NAMES
    parameters = sum(p.numel() for p in gaternet.load(PLAIN).parameters())
    assert listed[0]["parameters"] == parameters


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_there_that_evaluating_does_not_need(name: str) -> None:
    folder = trained.FOLDER / name
    (weights,) = folder.glob("checkpoints/*/model.safetensors")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    kept = {"manifest.json", "model.json", "model.safetensors"}
    beside = {str(weights.with_name(file).relative_to(folder)) for file in kept}
    assert files == {"config.json", "result.json", *beside}
    assert sum((folder / file).stat().st_size for file in files) < 3e6
    assert weights.stat().st_size < 1.05 * 4 * trained.card(name)["parameters"]  # float32, no more
    for file in files - {str(weights.relative_to(folder))}:
        # A path on the disk where it was trained says nothing to anybody else.
        assert not re.search(r'["\s=]/', (folder / file).read_text()), file


@pytest.mark.parametrize("name", NAMES)
def test_card_is_a_result_of_the_recipe_that_config_has(name: str) -> None:
    card, recipe = trained.card(name), open_run(trained.FOLDER / name).config.recipe
    named = (card["recipe"], card["seed"], card["epochs"])
    assert named == (recipe.name, recipe.seed, recipe.epochs)
    assert all(card[key] for key in ("hardware", "date", "command", "settings", "wall_seconds"))
    published = [json.loads(file.read_text()) for file in (ROOT / "results").glob("*.json")]
    about = {key: value for key, value in card.items() if key != "known_logits"}
    for result in published:
        same = all(result.get(key) == card[key] for key in ("recipe", "seed", "epochs", "date"))
        if same and "settings" in result:  # not what was found in the run later
            assert about == result


def test_name_goes_where_a_run_is_read(terminal: Terminal, pictures: str) -> None:
    image = next(Path(pictures).rglob("*.png"))
    for name in NAMES:
        (prediction,) = json.loads(terminal.succeed("predict", name, image, "--json"))
        assert len(prediction["classes"]) == 10
        found = json.loads(terminal.succeed("evaluate", name, "--data", pictures, "--json"))
        assert (found["run"], found["evaluation"]["images"]) == (name, 10)
    counted = terminal.succeed("bench", "macs", GATED, "--data", pictures, "--json")
    assert json.loads(counted)["macs"]["images"] == 10
    terminal.succeed("export", PLAIN, "--out", "model.pt2", "--json")
    assert Path("model.pt2").exists()


def test_analysis_stays_out_of_the_package(terminal: Terminal, pictures: str) -> None:
    before = tree(trained.FOLDER / GATED)
    image = next(Path(pictures).rglob("*.png"))
    words = ("analyze", GATED, "--data", pictures, "--no-tsne", "--device", "cpu")
    assert f"{GATED}-analysis/test" in terminal.succeed(*words)
    assert (Path(f"{GATED}-analysis") / "test" / "report.html").exists()
    assert "10 test images" in terminal.succeed("predict", GATED, image, "--explain")
    assert tree(trained.FOLDER / GATED) == before


def test_training_starts_from_a_name(terminal: Terminal, pictures: str) -> None:
    words = ["train", "cifar10/resnet20-gated-short", "--data", pictures, *QUICK]
    words += ["--schedule.batch-size", "10", "--compute.compile", "off"]
    terminal.succeed(*words, "--backbone", PLAIN, "--gater", PLAIN, "--out", "run")
    weights = json.loads(Path("run", "config.json").read_text())["weights"]
    assert weights == {"backbone": PLAIN, "gater": PLAIN}
    said = terminal.fail(1, *words, "--backbone", "resnet20", "--out", "new")
    assert "a network is named with --network; did you mean resnet20-cifar10" in said
    assert f"--backbone {GATED} holds a gated" in terminal.fail(
        1, *words, "--backbone", GATED, "--gater", PLAIN, "--out", "new"
    ).replace(str(trained.FOLDER) + "/", "")


def test_mistyped_name_gives_near_ones(terminal: Terminal, elsewhere: Path) -> None:
    for words in (["evaluate"], ["predict", "x.png"], ["export", "--out", "model.onnx"]):
        said = terminal.fail(1, words[0], "resnet20-gated-cifr10", *words[1:])
        assert "did you mean resnet20-gated-cifar10 or" in said
    assert "did you mean" not in terminal.fail(1, "evaluate", "my-run")


def test_directory_of_that_name_goes_first(
    terminal: Terminal, plain_run: Path, elsewhere: Path
) -> None:
    shutil.copytree(plain_run, PLAIN)
    assert json.loads(terminal.succeed("evaluate", PLAIN, "--json"))["recipe"] == "digits/resnet8"
    assert sum(p.numel() for p in gaternet.load(PLAIN).parameters()) < 200_000
    shutil.rmtree(PLAIN)
    Path(PLAIN).mkdir()
    assert f"{PLAIN} holds no run" in terminal.fail(1, "evaluate", PLAIN)


def test_name_is_no_run_to_go_on_with(terminal: Terminal, elsewhere: Path) -> None:
    words = ("train", "cifar10/resnet20-short", "--data", "x", "--out", PLAIN, "--resume")
    assert f"{PLAIN} holds no run to go on with" in terminal.fail(1, *words)


def test_networks_are_in_the_wheel_and_the_source_distribution(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", source / "src", ignore=left_out)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    code = "from setuptools import build_meta as b; b.build_wheel('..'); b.build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,), (archive,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    wanted = {f"gaternet/trained/{file}" for name in NAMES for file in _files(name)}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(archive) as opened:
        names = {name.partition("/src/")[2] for name in opened.getnames()}
    assert wanted <= names


def _files(name: str) -> list[str]:
    return [f"{name}/{file}" for file in tree(trained.FOLDER / name)]
