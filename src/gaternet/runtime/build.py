"""Where the kernels come from: C++ ones are built at first use and kept in the cache directory."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from gaternet.data.cache import cache_directory

_SOURCES = Path(__file__).parent / "kernels"
_TORCH = Path(torch.__file__).parent
_FLAGS = ("-O3", "-std=c++20", "-march=native", "-fPIC", "-shared", "-fopenmp")


def load_kernels(device: torch.device) -> str | None:
    """Make the kernels of a device ready; return why they cannot be had, None where they can."""
    if device.type == "cpu":
        return load_cpu_kernels()
    if device.type != "cuda":
        return f"there are no kernels for {device.type} devices"
    if find_spec("triton") is None:
        return "Triton was not found (it comes with PyTorch on Linux)"
    return None


@cache
def load_cpu_kernels() -> str | None:
    """Register the CPU kernels with PyTorch, building them if need be.

    Returns why they are not there, None where they are: without them the operator is computed by
    plain PyTorch, with the same result and no time saved.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no C++ compiler was found (install g++ or clang++, or name one in CXX)"
    library = cache_directory() / "kernels" / f"gated_conv2d-{_fingerprint(compiler)}.so"
    if not library.exists():
        failure = _build(compiler, library)
        if failure is not None:
            return failure
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library} cannot be loaded: {error}"
    return None


def _build(compiler: str, library: Path) -> str | None:
    """Compile the sources; the library appears whole or not at all."""
    partial = library.with_name(f".{library.name}.{os.getpid()}.partial")
    command = [
        *(compiler, *_FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
        *(f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}"),
        *(str(_SOURCES / "gated_conv2d.cpp"), "-o", str(partial)),
        *("-ltorch", "-ltorch_cpu", "-lc10"),
    ]
    print("building the CPU kernels, once on this machine (about a minute)", file=sys.stderr)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            partial.replace(library)
            return None
    except OSError as error:
        return f"{compiler} cannot build the CPU kernels: {error}"
    finally:
        partial.unlink(missing_ok=True)
    lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
    return f"{compiler} cannot build the CPU kernels: {lines[0].strip()}"


def _fingerprint(compiler: str) -> str:
    """What a built library depends on: sources, flags, compiler, PyTorch, and the processor."""
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    parts = (*_FLAGS, compiler, torch.__version__, platform.machine(), _processor())
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The processor's instructions, as far as the system tells: what `-march=native` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
