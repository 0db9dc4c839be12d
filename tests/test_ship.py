"""How a run becomes a network of the package, and which do not."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gaternet
from gaternet import trained
from gaternet.errors import UserError
from small_runs import tree
from terminal import Terminal

NAME = "resnet8-digits"


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("ship")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where networks are put, in place of the package's own folder."""
    folder = tmp_path / "trained"
    folder.mkdir()
    monkeypatch.setattr(trained, "FOLDER", folder)
    return folder


def published(run: Path, folder: Path, **changes: Any) -> Path:
    """Write a run's results as they are published, with no directory of this machine."""
    result = json.loads((run / "result.json").read_text())
    file = folder / f"{run.name}.json"
    file.write_text(json.dumps(result | {"command": f"gaternet train --out {run.name}"} | changes))
    return file


@pytest.mark.parametrize("kind", ["plain_run", "gated_run"])
def test_run_is_found_by_its_name(
    kind: str,
    ship: ModuleType,
    package: Path,
    terminal: Terminal,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = request.getfixturevalue(kind)
    result = published(run, tmp_path)
    ship.main(run, result, NAME, package)
    monkeypatch.chdir(tmp_path)
    before, after = (
        json.loads(terminal.succeed("evaluate", name, "--json"))["evaluation"]
        for name in (str(run), NAME)
    )
    assert after == before
    card = json.loads((package / NAME / "result.json").read_text())
    logits = card.pop("known_logits")
    assert card == json.loads(result.read_text())
    here, there = gaternet.load(NAME).state_dict(), gaternet.load(run).state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert len(logits) == 10


def test_better_run_takes_the_place(
    ship: ModuleType, package: Path, plain_run: Path, gated_run: Path, tmp_path: Path
) -> None:
    for run in (gated_run, plain_run):
        ship.main(run, published(run, tmp_path), NAME, package)
    assert trained.card(NAME)["recipe"] == "digits/resnet8"
    assert not [file for file in tree(package) if not file.startswith(f"{NAME}/")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", "digits/resnet14"),
        ("seed", 1),
        ("epochs", 300),
        ("test_error_percent", 0.5),
        ("command", None),
        ("command", "gaternet train --out /home/me/run"),
        ("command", "/usr/bin/gaternet train"),
        ("command", "gaternet train --out=~/run"),
        ("command", "gaternet train --data root:/home/me"),
        ("command", r"gaternet train --out C:\run"),
    ],
)
def test_result_of_another_run_or_machine_is_refused(
    key: str, value: Any, ship: ModuleType, package: Path, plain_run: Path, tmp_path: Path
) -> None:
    result = published(plain_run, tmp_path, **{key: value})
    with pytest.raises(UserError, match=f"{result.name}.*\\b{key}"):
        ship.main(plain_run, result, NAME, package)
    assert not tree(package)


def test_run_that_has_not_ended_is_refused(
    ship: ModuleType, package: Path, plain_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="has not finished training"):
        ship.main(run, published(plain_run, tmp_path), NAME, package)
    assert not tree(package)


def test_network_that_is_too_large_is_refused(
    ship: ModuleType,
    package: Path,
    plain_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert ship.MAX_BYTES == 3e6
    result = published(plain_run, tmp_path)
    ship.main(plain_run, result, NAME, package)
    before = tree(package)
    monkeypatch.setattr(ship, "MAX_BYTES", 100_000)
    with pytest.raises(UserError, match="at most 100,000 go in"):
        ship.main(plain_run, result, NAME, package)
    assert tree(package) == before


def test_name_that_is_a_path_is_refused(ship: ModuleType, package: Path, plain_run: Path) -> None:
    for name in ("../x", "Resnet", "a b", ""):
        with pytest.raises(UserError, match="--name"):
            ship.main(plain_run, plain_run / "result.json", name, package)
