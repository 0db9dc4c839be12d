"""A Python pickle in place of any file that a user can give: told by name, and never run."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gaternet
from gaternet.errors import UserError
from gaternet.given_files import describe_pickle
from small_runs import sign_again, tree
from terminal import Terminal

GATED = ("train", "digits/resnet8-gated", "--device", "cpu")
KINDS = ("text", "protocol 2", "protocol 5", "torch", "legacy torch")


class Exploit:
    """What a pickle may do when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def pickled(kind: str, made: Path) -> bytes:
    """Return a pickle that makes a file when it is loaded."""
    exploit = Exploit(made)
    if kind.endswith("torch"):
        buffer = io.BytesIO()
        torch.save(exploit, buffer, _use_new_zipfile_serialization=kind == "torch")
        return buffer.getvalue()
    return pickle.dumps(exploit, {"text": 0, "protocol 2": 2, "protocol 5": 5}[kind])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made-by-the-pickle"


@pytest.fixture
def exploit(made: Path) -> bytes:
    return pickled("protocol 5", made)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_it_would_run_it(kind: str, made: Path) -> None:
    content = pickled(kind, made)
    torch.load(io.BytesIO(content), weights_only=False) if "torch" in kind else pickle.loads(
        content
    )
    assert made.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_reported(kind: str, made: Path) -> None:
    assert "Python pickle, which can run any code" in str(describe_pickle(pickled(kind, made)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"{}",
        b'{"a": 1}',
        b"[1.5]",
        b"(dear)",
        b"P6 1 1 255 abc",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_none_is_not_called_one(content: bytes) -> None:
    assert describe_pickle(content) is None


def in_place_of(name: str) -> Callable[[Path, Path, bytes], list[str | Path]]:
    """Give the run with a file of it replaced, its manifest signed again where it lists it."""

    def words(file: Path, run: Path, content: bytes) -> list[str | Path]:
        copy = file.parent / "copy"
        shutil.copytree(run, copy)
        newest = sorted((copy / "checkpoints").iterdir())[-1]
        replaced = copy / name if (copy / name).exists() else newest / name
        replaced.write_bytes(content)
        if replaced.parent == newest and name != "manifest.json":
            sign_again(newest)
        return ["export", copy, "--out", file.parent / "model.pt2"]

    return words


def data_of(*parts: str) -> Callable[[Path, Path, bytes], list[str | Path]]:
    """Train on a folder in which a pickle lies."""

    def words(file: Path, run: Path, content: bytes) -> list[str | Path]:
        place = file.parent.joinpath("data", *parts)
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
        out = file.parent / "new"
        return [*GATED, "--from-scratch", "--out", out, "--data", file.parent / "data"]

    return words


def results_of(file: Path, run: Path, content: bytes) -> list[str | Path]:
    (file.parent / "results").mkdir()
    shutil.copy(file, file.parent / "results" / "run.json")
    return ["ledger", "--results", file.parent / "results"]


Words = Callable[[Path, Path, bytes], list[str | Path]]

ENTRIES: dict[str, Words] = {
    "evaluate": lambda file, run, _: ["evaluate", file],
    "predict a run": lambda file, run, _: ["predict", file, file],
    "predict an image": lambda file, run, _: ["predict", run, file],
    "compress": lambda file, run, _: ["compress", file, "--out", file.parent / "new"],
    "plan": lambda f, run, _: ["compress", run, "--out", f.parent / "new", "--plan", f],
    "export": lambda file, run, _: ["export", file, "--out", file.parent / "model.pt2"],
    "export of a run": lambda f, run, _: [
        *("export", run, "--run", f, "--out", f.parent / "model.pt2")
    ],
    "bench macs": lambda file, run, _: ["bench", "macs", file],
    "bench latency": lambda file, run, _: ["bench", "latency", file],
    "import-authors": lambda f, run, _: ["import-authors", f, "--out", f.parent / "new"],
    "backbone": lambda f, run, _: [*GATED, "--out", f.parent / "new", "--backbone", f],
    "gater": lambda f, run, _: [*GATED, "--out", f.parent / "new", "--gater", f],
    "data": lambda f, run, _: [*(*GATED, "--from-scratch", "--out", f.parent / "new", "--data", f)],
    "data of CIFAR's own archive": data_of("cifar-10-batches-py", "data_batch_1"),
    "data in parquet": data_of("train.parquet"),
    "data in images": data_of("train", "ants", "ant.png"),
    "results": results_of,
    "config.json": in_place_of("config.json"),
    "manifest.json": in_place_of("manifest.json"),
    "model.json": in_place_of("model.json"),
    "model.safetensors": in_place_of("model.safetensors"),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_in_refuses_it(
    entry: str, gated_run: Path, made: Path, exploit: bytes, terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(exploit)
    words = ENTRIES[entry](file, gated_run, exploit)
    before = tree(tmp_path)
    message = terminal.fail(1, *words)
    assert "Python pickle" in message
    assert "can run any code when it is loaded" in message
    assert not made.exists()
    assert tree(tmp_path) == before


def test_python_says_so_too(exploit: bytes, made: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(exploit)
    with pytest.raises(UserError, match=r"model\.pth is a Python pickle.*; give the directory"):
        gaternet.load(tmp_path / "model.pth")
    assert not made.exists()
