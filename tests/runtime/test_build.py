"""Kernels that cannot be built or loaded: a reason in one line, and the right results without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gaternet.runtime import build

COMPUTE = """
import sys, torch
from torch import nn
from gaternet.gate_points import GatePoint
from gaternet.runtime import compile_backbone
torch.manual_seed(0)
torch.set_num_threads(1)
branch = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten())
images, gates = torch.randn(2, 3, 6, 6), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
compiled = compile_backbone(branch.eval(), [GatePoint("0", 16, 8)], images, gates)
open_filters = (gates.repeat_interleave(8, 1)[..., None, None] * branch[0](images)).relu()
expected = branch[3](branch[2](open_filters))
torch.testing.assert_close(compiled(images, gates), expected.detach())
print(compiled.report.slow_because)
"""


def load() -> str | None:
    """Load the kernels as if for the first time in this process."""
    return build._load.__wrapped__()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATERNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_compiler(folder: Path, output: Path) -> Path:
    """Return a compiler that always makes the same file, and keeps a log of its calls."""
    script = folder / "compiler"
    script.write_text(
        f'#!/bin/sh\necho call >> {folder}/calls\nwhile [ "$1" != -o ]; do shift; done\n'
        f'cp {output} "$2"\n'
    )
    script.chmod(0o755)
    return script


def compute(**environment: str) -> str:
    """Return why another process computes without kernels; it checks its results itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPUTE],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def check_reason(reason: str | None, begins: str, holds: str = "") -> None:
    assert reason is not None
    assert reason.startswith(begins)
    assert holds in reason
    assert "\n" not in reason


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    check_reason(load(), "no C++ compiler was found", "CXX")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("compiler", "holds"),
    [
        ("false", "no message"),
        ("/nowhere/g++", "/nowhere/g++"),
        ("false --all 'a b'", "no message"),
    ],
)
def test_with_a_compiler_that_fails(
    compiler: str, holds: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    check_reason(load(), compiler.split()[0], holds)
    assert not list((cache / "kernels").iterdir())


def test_what_the_compiler_says_is_passed_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\necho 'In file:\nx.h:1: fatal error: no such header' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    check_reason(load(), str(script), "x.h:1: fatal error: no such header")


def test_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    monkeypatch.setenv("CXX", "false")
    check_reason(load(), "false cannot build the CPU kernels", str(cache))


def test_library_that_cannot_be_loaded_is_built_once_and_a_damaged_one_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    output.write_text("no library")
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, output)))

    def calls() -> int:
        return (tmp_path / "calls").read_text().count("call")

    for _ in range(2):
        check_reason(load(), str(cache), "cannot be loaded")
        assert calls() == 1
    (library,) = (cache / "kernels").glob("*.so")
    library.write_text("no lib")
    check_reason(load(), str(cache), "cannot be loaded")
    assert calls() == 2
    assert library.read_text() == "no library"


@pytest.mark.parametrize("part", ["CXX", "flags", "sources"])
def test_what_is_built_otherwise_is_another_library(
    part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = build._fingerprint(["g++"])
    match part:
        case "CXX":
            assert build._fingerprint(["clang++"]) != before
        case "flags":
            monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
            assert build._fingerprint(["g++"]) != before
        case "sources":
            (tmp_path / "gated_conv2d.cpp").write_text("int x;")
            monkeypatch.setattr(build, "_SOURCES", tmp_path)
            assert build._fingerprint(["g++"]) != before


def test_plain_pytorch_computes_what_no_kernel_does(cache: Path) -> None:
    check_reason(compute(GATERNET_CACHE=str(cache), CXX="false"), "false cannot build", "")


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_processes_that_build_at_once(cache: Path, tmp_path: Path) -> None:
    (built,) = (path for path in torch.ops.loaded_libraries if "gated_conv2d" in path)
    environment = {"GATERNET_CACHE": str(cache), "CXX": str(fake_compiler(tmp_path, Path(built)))}
    command = [sys.executable, "-c", COMPUTE]
    both = [
        subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["None", "None"]
    assert sorted(path.suffix for path in (cache / "kernels").iterdir()) == [".sha256", ".so"]
    assert compute(**environment) == "None"
