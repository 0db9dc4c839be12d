"""`gaternet reproduce` on a handful of images: trained once, gone on with, written down."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gaternet.reproduction import training
from gaternet.training.config import Recipe, Sources
from gaternet.training.lock import LOCK, InUseError
from gaternet.training.phases import Options
from gaternet.training.run import Run
from terminal import Terminal

ROWS = ("cifar10/resnet20", "cifar10/resnet20-gated")
TIMES = ("date", "wall_seconds", "command")
PLAIN, GATER, GATED = (
    f"cifar10-resnet20-{name}"
    for name in ("short-1ep-seed2000", "short-1ep-seed1000", "gated-short-1ep-seed0")
)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets: cifar10/ with 140 images of noise for training and 10 for testing."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for split, count in (("train", 14), ("test", 1)):
        for label in range(10):
            place = folder / "cifar10" / split / f"class-{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(images: Path, *more: str) -> list[str]:
    flags = ("--short", "--epochs", "1", "--seeds", "0", "--device", "cpu", "--data", str(images))
    return ["reproduce", "table1", *flags, "--rows", *ROWS, *more]


def result(file: Path) -> dict[str, Any]:
    return {
        name: value for name, value in json.loads(file.read_text()).items() if name not in TIMES
    }


@pytest.fixture(scope="session")
def reproduced(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reproduced")
    command = [sys.executable, "-m", "gaternet", *words(images)]
    subprocess.run(command, cwd=place, check=True, timeout=300)
    return place


def test_every_run_is_trained_and_written_down(reproduced: Path) -> None:
    assert {file.stem for file in (reproduced / "results").iterdir()} == {PLAIN, GATER, GATED}
    page = (reproduced / "docs" / "results.md").read_text()
    errors = {
        name: json.loads((reproduced / "results" / f"{name}.json").read_text())
        for name in (PLAIN, GATER, GATED)
    }
    assert (
        errors[GATED]["command"]
        == "gaternet train cifar10/resnet20-gated-short --epochs 1 --seed 0"
    )
    assert errors[GATED]["pretrain_epochs"] == {"backbone": 1, "gater": 1}
    assert f"{errors[GATED]['test_error_percent']:.2f} %" in page
    assert f"[2000](../results/{PLAIN}.json)" in page


def test_gated_run_is_the_one_that_train_makes(
    reproduced: Path, images: Path, tmp_path: Path, terminal: Terminal
) -> None:
    command = json.loads((reproduced / "results" / f"{GATED}.json").read_text())["command"].split()
    out = tmp_path / "run"
    terminal.succeed(
        *command[1:], "--data", str(images / "cifar10"), "--out", str(out), "--device", "cpu"
    )
    for part, name in (("", GATED), ("backbone", PLAIN), ("gater", GATER)):
        weights = Path("checkpoints", "epoch-0001", "model.safetensors")
        alone = (out / part / weights).read_bytes()
        assert (reproduced / "runs" / name / weights).read_bytes() == alone


def test_gated_run_behind_longer_pre_training_is_the_one_that_train_makes(
    reproduced: Path, images: Path, here: Path, terminal: Terminal
) -> None:
    Path("runs").mkdir()
    longer = words(images, "--rows", ROWS[1], "--pretrain-epochs", "2")
    longer[longer.index("table1")] = "ablations"
    output = terminal.succeed(*longer)
    name = f"{GATED.replace('1ep', '1ep-after-2')}"
    measured = json.loads(Path("results", f"{name}.json").read_text())
    assert measured["pretrain_epochs"] == {"backbone": 2, "gater": 2}
    assert measured["epochs"] == 1
    assert "runs wanted: 3" in output
    command = measured["command"].split()
    data = ("--data", str(images / "cifar10"), "--device", "cpu")
    terminal.succeed(*command[1:], *data, "--out", "again")
    weights = Path("checkpoints", "epoch-0001", "model.safetensors")
    assert ("again" / weights).read_bytes() == ("runs" / Path(name) / weights).read_bytes()


def test_ensemble_averages_what_is_there(
    reproduced: Path, images: Path, here: Path, terminal: Terminal
) -> None:
    Path("runs").symlink_to(reproduced / "runs")
    more = ("--rows", "cifar10/resnet20-ensemble")
    assert "epoch" not in terminal.succeed(*words(images, *more))
    (file,) = Path("results").glob("*ensemble*")
    measured = result(file)
    assert measured["averaged"] == [PLAIN, GATER]
    assert measured["macs_per_image"] == 2 * 40_813_184


@pytest.mark.parametrize("row", ["cifar10/resnet20-ensemble", "cifar10/resnet20-gated"])
def test_what_starts_from_a_run_that_is_gone_is_left_out(
    row: str, reproduced: Path, images: Path, here: Path, terminal: Terminal
) -> None:
    shutil.copytree(reproduced / "results", "results")
    Path("results", f"{GATED}.json").unlink()
    before = Path("results", f"{GATER}.json").read_bytes()
    Path("runs").mkdir()
    (Path("runs") / PLAIN).symlink_to(reproduced / "runs" / PLAIN)
    output = terminal.succeed(*words(images, "--rows", row))
    assert f"runs/{GATER} is gone; put it back" in output
    assert "runs still missing: 1" in output
    assert Path("results", f"{GATER}.json").read_bytes() == before


def test_nothing_is_trained_twice(
    reproduced: Path, images: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.chdir(reproduced)
    page = Path("docs/results.md").read_text()
    output = terminal.succeed(*words(images))
    assert "runs wanted: 3, missing in results: 0" in output
    assert "epoch" not in output
    assert Path("docs/results.md").read_text() == page
    # A finished run whose file was lost is only measured again from its own directory.
    file = Path("results", f"{GATED}.json")
    before = file.read_bytes()
    file.unlink()
    terminal.succeed(*words(images))
    assert file.read_bytes() == before


def test_budget_saves_what_was_begun_and_the_next_call_goes_on(
    reproduced: Path,
    images: Path,
    here: Path,
    terminal: Terminal,
) -> None:
    output = terminal.succeed(*words(images, "--budget", "0"))
    assert "runs still missing: 3; run the same command again" in output
    assert not Path("runs").exists()
    for _ in range(100):
        if "still missing" not in terminal.succeed(*words(images, "--budget", "0.0003")):
            break
    for name in (PLAIN, GATER, GATED):
        assert result(Path("results", f"{name}.json")) == result(
            reproduced / "results" / f"{name}.json"
        )


def test_page_is_not_emptied_where_results_are_called_by_a_wrong_name(
    here: Path, terminal: Terminal
) -> None:
    Path("docs").mkdir()
    Path("docs/results.md").write_text("measured")
    output = terminal.fail(1, "reproduce", "table1", "--budget", "0", "--results", "resluts")
    assert "there is no folder resluts, and docs/results.md would be emptied" in output
    assert Path("docs/results.md").read_text() == "measured"


def test_run_of_another_process_is_passed_over(
    images: Path, here: Path, terminal: Terminal
) -> None:
    held = Path("runs", PLAIN)
    held.mkdir(parents=True)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom gaternet.training.lock import locked\n"
        "with locked(Path(sys.argv[1]), print):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(held)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        output = terminal.succeed(*words(images))
        other.kill()
    # The gated one starts from it and has to wait as well; its gater does not.
    assert {file.stem for file in Path("results").iterdir()} == {GATER}
    assert "runs still missing: 2" in output


def test_run_that_another_process_takes_meanwhile_is_passed_over(
    images: Path, here: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the look at its lock, and before it is held: minutes, where networks are large."""
    real = training.train_or_continue

    def taken(recipe: Recipe, sources: Sources, out: Path, options: Options) -> Run:
        if out.name == PLAIN:
            raise InUseError(f"{out} is in use by process 1")
        return real(recipe, sources, out, options)

    monkeypatch.setattr(training, "train_or_continue", taken)
    output = terminal.succeed(*words(images))
    assert {file.stem for file in Path("results").iterdir()} == {GATER}
    assert "runs still missing: 2" in output


def test_directory_that_a_killed_process_left_empty_is_taken(
    images: Path, here: Path, terminal: Terminal
) -> None:
    Path("runs", PLAIN).mkdir(parents=True)
    Path("runs", PLAIN, LOCK).touch()
    terminal.succeed(*words(images))
    assert PLAIN in {file.stem for file in Path("results").iterdir()}


def test_directory_of_another_run_is_not_taken(
    reproduced: Path,
    images: Path,
    here: Path,
    terminal: Terminal,
) -> None:
    Path("runs").mkdir()
    (Path("runs") / PLAIN).symlink_to(reproduced / "runs" / GATER)
    assert "holds a run with other settings" in terminal.fail(1, *words(images))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rows", "cifar10/resnet20-gatd"), "did you mean cifar10/resnet20-gated"),
        (("--seeds", "1", "1"), "at least one, and each once"),
        (("--budget", "-1"), "--budget -1.0: hours, 0 or more"),
        (("--budget", "nan"), "--budget nan: hours, 0 or more"),
        (("--short", "--rows", "cifar10/resnet164*"), "have no short schedule"),
        (("--epochs", "-2"), "epochs must be"),
        (("--pretrain-epochs", "0"), "--pretrain-epochs 0: at least 1"),
        (("--pretrain-epochs", "30", "--epochs", "5"), "phases have as many epochs each"),
        (("--seeds", "-3000"), "seed must be in"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    more: tuple[str, ...],
    message: str,
    here: Path,
    terminal: Terminal,
) -> None:
    assert message in terminal.fail(2, "reproduce", "table1", *more)
    assert not list(here.iterdir())


def test_what_short_schedules_alone_compare_is_refused_without(
    here: Path, terminal: Terminal
) -> None:
    assert "efficient compares short schedules alone" in terminal.fail(2, "reproduce", "efficient")
    assert not list(here.iterdir())


def test_torchrun_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in terminal.fail(2, "reproduce", "table1")
    assert not list(here.iterdir())
