"""Where the kernels come from: C++ ones are built at first use and kept in the cache directory."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from gaternet.data.cache import cache_directory

_SOURCES = Path(__file__).parent / "kernels"
_TORCH = Path(torch.__file__).parent
_FLAGS = ("-O3", "-std=c++20", "-march=native", "-fPIC", "-shared", "-fopenmp")


_one_at_a_time = threading.Lock()


def load_kernels(device: torch.device) -> str | None:
    """Make the kernels of a device ready; return why they cannot be had, None where they can."""
    if device.type == "cpu":
        return load_cpu_kernels()
    if device.type != "cuda":
        return f"there are no kernels for {device.type} devices"
    if find_spec("triton") is None:
        return "Triton was not found (it comes with PyTorch on Linux)"
    return None


def load_cpu_kernels() -> str | None:
    """Register the CPU kernels with PyTorch, building them if need be.

    Returns why they are not there, None where they are: without them the operator is computed by
    plain PyTorch, with the same result and no time saved.
    """
    with _one_at_a_time:
        return _load()


@cache
def _load() -> str | None:
    compiler = shlex.split(os.environ.get("CXX", "")) or _found_compiler()
    if not compiler:
        return "no C++ compiler was found (install g++ or clang++, or name one in CXX)"
    library = cache_directory() / "kernels" / f"gated_conv2d-{_fingerprint(compiler)}.so"
    if not _is_whole(library):
        failure = _build(compiler, library)
        if failure is not None:
            return failure
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library} cannot be loaded: {error}"
    return None


def _found_compiler() -> list[str]:
    return [found for found in map(shutil.which, ("g++", "clang++")) if found][:1]


def _is_whole(library: Path) -> bool:
    """Whether a library is there as it was built: loading a damaged one can end the process."""
    try:
        return _checksum(library) == _checksum_file(library).read_text()
    except OSError:
        return False


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _build(compiler: Sequence[str], library: Path) -> str | None:
    """Compile the sources; returns why that failed, None where it did not."""
    print("building the CPU kernels, once on this machine (a quarter of a minute)", file=sys.stderr)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command = _command(compiler, built)
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode == 0:
                # Each whole or not at all. If somebody else's come in between, one more is built.
                checksum = _checksum_file(built)
                checksum.write_text(_checksum(built))
                built.replace(library)
                checksum.replace(_checksum_file(library))
                return None
    except OSError as error:
        return f"{' '.join(compiler)} cannot build the CPU kernels: {error}"
    lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
    return f"{' '.join(compiler)} cannot build the CPU kernels: {lines[0].strip()}"


def _command(compiler: Sequence[str], library: Path) -> list[str]:
    return [
        *(*compiler, *_FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
        *(f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}"),
        *(str(_SOURCES / "gated_conv2d.cpp"), "-o", str(library)),
        *("-ltorch", "-ltorch_cpu", "-lc10"),
    ]


def _fingerprint(compiler: Sequence[str]) -> str:
    """What a built library depends on: sources, flags, compiler, PyTorch, and the processor."""
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    parts = (*_FLAGS, *compiler, torch.__version__, platform.machine(), _processor())
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The processor's instructions, as far as the system tells: what `-march=native` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
