"""Run directories, plans and results that were made to do harm, as `test_hostile_models` has it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bounded
from bounded import HUGE, Outcome, a_pipe, assert_refused, open_each, plan_of, sparse
from terminal import Terminal

DEEP = 10**5


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return bounded.edited("config.json", change)


def recipe(**values: object) -> Callable[[Path], None]:
    return edited(lambda config: config["recipe"].update(values))


def data(**values: object) -> Callable[[Path], None]:
    return edited(lambda config: config["recipe"]["data"].update(values))


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def of(content: bytes) -> Callable[[Path], None]:
    """Replace config.json."""
    return lambda run: put(run / "config.json", content)


RUNS: dict[str, tuple[Callable[[Path], None], str]] = {
    "side": (data(image_size=HUGE), "a side has 1 to 4096"),
    "shorter side": (data(shorter_side=HUGE), "a side has 1 to 4096"),
    "classes": (data(classes=0), "0 classes, 1 channels"),
    "epochs": (recipe(epochs="30"), "setting 'epochs': .*valid integer"),
    "half an epoch": (recipe(epochs=1.5), "setting 'epochs': .*valid integer"),
    "true": (recipe(epochs=True), "setting 'epochs': .*valid integer"),
    "seed": (recipe(seed=10**30), "seed must be in"),
    "no recipe": (edited(lambda config: config.update(recipe=3)), "config.json"),
    "workers": (
        edited(lambda config: config["recipe"]["compute"].update(workers=HUGE)),
        "compute.workers must be in",
    ),
    "names": (edited(lambda config: config["data"].update(classes="abc")), "is damaged"),
    "name": (edited(lambda config: config["data"].update(name=[])), "is damaged"),
    "weights": (edited(lambda config: config.update(weights=[1])), "is damaged"),
    "a list": (of(b"[]"), "is damaged"),
    "depth": (of(b'{"recipe":' * DEEP), "more than 32 levels"),
    "no text": (of(b"\xff\xfe"), "not text in UTF-8"),
    "no number": (
        edited(lambda c: c["recipe"].update(seed=float("nan"))),
        "NaN is not allowed in JSON",
    ),
    "infinite mean": (data(mean=[float("inf")]), "Infinity is not allowed in JSON"),
    "a key twice": (of(b'{"data": 1, "data": 2}'), "'data' is there twice"),
    "2 GB": (sparse("config.json", 2**31), "has 2,147,483,648 bytes"),
    "pipe": (a_pipe("config.json"), "is not a file but a pipe"),
}


def planned(**values: object) -> dict[str, Any]:
    """Return a plan whose one point, of four channels, has other values."""
    whole = plan_of("a", 4, 4)
    return whole | {"points": [whole["points"][0] | values]}


PLANS: dict[str, tuple[bytes, str]] = {
    "channels": (json.dumps(planned(channels=10**12)).encode(), "is not a plan: points.0"),
    "blocks of none": (json.dumps(planned(block=0)).encode(), "is not a plan: points.0"),
    "gates twice": (json.dumps(planned(removed=[0, 0], kept=2)).encode(), "not a plan: points.0"),
    "no such gate": (json.dumps(planned(removed=[-1], kept=3)).encode(), "gates go from 0 to 3"),
    "text": (json.dumps(planned(kept="4")).encode(), "is not a plan: points.0.kept"),
    "a list": (b"[]", "is not a plan"),
    "depth": (b"[" * DEEP, "more than 32 levels"),
    "2 GB": (b"", "has 2,147,483,648 bytes"),
}


@pytest.fixture(scope="module")
def runs(gated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("runs")
    for name, (harm, _) in RUNS.items():
        shutil.copytree(gated_run, folder / name, ignore=shutil.ignore_patterns("tensorboard"))
        harm(folder / name)
    setup = f"from gaternet.training.run import open_run as read; read(Path({str(gated_run)!r}))"
    return open_each(setup, {name: folder / name for name in RUNS})


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("plans")
    (folder / "sound.json").write_text(json.dumps(planned()))
    for name, (content, _) in PLANS.items():
        (folder / name).write_bytes(content)
    os.truncate(folder / "2 GB", 2**31)
    setup = (
        "from gaternet.compression.plan import read_plan as read; "
        f"read(Path({str(folder / 'sound.json')!r}))"
    )
    return open_each(setup, {name: folder / name for name in PLANS})


@pytest.mark.parametrize("name", RUNS)
def test_hostile_config_is_refused_in_little_memory(name: str, runs: dict[str, Outcome]) -> None:
    assert_refused(runs[name], RUNS[name][1])


@pytest.mark.parametrize("name", PLANS)
def test_hostile_plan_is_refused_in_little_memory(name: str, plans: dict[str, Outcome]) -> None:
    assert_refused(plans[name], PLANS[name][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["data"]["classes"].append("ten"), "11 classes"),
        (
            lambda config: config["recipe"]["data"].update(
                channels=3, mean=[0.5] * 3, std=[0.5] * 3
            ),
            "images of 3 channels, its model 10 and 1",
        ),
    ],
)
def test_a_run_whose_files_contradict_each_other_is_refused(
    change: Callable[[dict[str, Any]], object],
    message: str,
    gated_run: Path,
    digit: Path,
    terminal: Terminal,
    tmp_path: Path,
) -> None:
    shutil.copytree(gated_run, tmp_path / "run")
    edited(change)(tmp_path / "run")
    assert message in terminal.fail(1, "predict", tmp_path / "run", digit)
    assert message in terminal.fail(1, "evaluate", tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "many"}, "is not a run's result.json: "),
        ({"test_error_percent": "9"}, "error: .* valid number"),
        ({"settings": 3}, "is not a run's result.json: "),
        ({"recipe": {}}, "is not a run's result.json: "),
    ],
)
def test_results_of_wrong_types_are_refused(
    values: dict[str, Any], message: str, terminal: Terminal, tmp_path: Path
) -> None:
    sound = {
        "recipe": "cifar10/resnet20-gated",
        "test_error_percent": 9.0,
        "test_top5_error_percent": None,
        "epochs": 1,
        "pretrain_epochs": None,
        "seed": 0,
        "hardware": "a CPU",
    }
    (tmp_path / "run.json").write_text(json.dumps(sound | values))
    assert re.search(message, terminal.fail(1, "ledger", "--results", tmp_path))
