"""Paths that the system will not open: told in one line that names them."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import gaternet
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UserError
from small_runs import sign_again
from terminal import PLAIN, Terminal

LONG = "x" * 300
"""Longer than file systems let a name be."""

COMMANDS = {
    "run": ["evaluate", LONG],
    "data": ["evaluate", "RUN", "--data", LONG],
    "exported": ["export", "RUN", "--out", f"{LONG}.pt2"],
    "backbone": [*PLAIN[:1], "digits/resnet8-gated", "--out", "new", "--backbone", LONG],
    "results": ["ledger", "--results", LONG],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_name_that_is_too_long_is_reported(
    name: str, plain_run: Path, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(plain_run) if word == "RUN" else word for word in COMMANDS[name]]
    said = terminal.fail(1, *words)
    assert LONG in said
    assert "File name too long" in said
    assert not list(tmp_path.iterdir())


def test_name_in_a_manifest_that_is_too_long_is_reported(saved: Path) -> None:
    file = saved / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {LONG: {"sha256": "0"}}))
    with pytest.raises(UserError, match=f"{LONG} cannot be read: File name too long"):
        gaternet.load(saved)


def close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all permissions from a file or a folder, in a way that root notices as well."""

    def refusing(name: str) -> Any:
        done = getattr(Path, name)

        def refuse(self: Path, *args: Any, **options: Any) -> Any:
            if path in self.parents or (self == path and name != "stat"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return done(self, *args, **options)

        return refuse

    for name in ("stat", "open", "iterdir"):
        monkeypatch.setattr(Path, name, refusing(name))


@pytest.mark.parametrize("what", ["run", "config.json", "checkpoints", "model.safetensors"])
def test_closed_run_is_reported(
    what: str,
    plain_run: Path,
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    (closed,) = [run] if what == "run" else list(run.rglob(what))[-1:]
    close(closed, monkeypatch)
    said = terminal.fail(1, "evaluate", run)
    assert str(closed) in said
    assert "cannot be read: Permission denied" in said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        gaternet.save(CifarResNet(8), tmp_path / "model")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()} == {0o644}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    gaternet.save(CifarResNet(8), tmp_path / "model")
    sign_again(tmp_path / "model")
    return tmp_path / "model"
