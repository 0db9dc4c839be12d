"""How a device is used: number format, compilation, memory layout."""

import ctypes
import os
import platform
import shutil
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gaternet.data.batches import Loading
from gaternet.errors import UsageError
from gaternet.training.config import Compute
from gaternet.training.processes import ALONE, Processes, local_device

Precision = Literal["float32", "bfloat16"]
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ComputePlan:
    """What `auto` came to on this device."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    memory_format: torch.memory_format
    workers: int
    processes: Processes = ALONE
    note: str = ""

    @property
    def precision(self) -> Precision:
        """The name of `dtype`."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    def in_precision(self, precision: Precision | None) -> "ComputePlan":
        """Return this plan with another number format; None: with its own."""
        return replace(self, dtype=_DTYPES[precision]) if precision else self

    @property
    def autocast(self) -> torch.autocast:
        """A context that computes in `dtype`; a no-op for float32."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)

    @property
    def loading(self) -> Loading:
        """How batches reach this process."""
        return Loading(self.device, self.processes.rank, self.processes.count, self.workers)


def choose_device(name: str) -> torch.device:
    """Return the device `auto`, `cpu`, `cuda` or `cuda:N`; raise UsageError if it is not there."""
    name = local_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported: give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"there is no device {name}: the number of CUDA devices is {torch.cuda.device_count()}"
        )
    return device


def plan(compute: Compute, device: torch.device, processes: Processes = ALONE) -> ComputePlan:
    """Resolve the `auto` settings on `device`.

    Raises UsageError where batch statistics are to be synchronised and there is no GPU.
    """
    if compute.sync_batch_norm and device.type != "cuda":
        raise UsageError("--compute.sync-batch-norm needs GPUs: PyTorch has it for CUDA only")
    note = ""
    wants = compute.compile == "on" or (compute.compile == "auto" and device.type == "cuda")
    if wants and not _has_compiler():
        note, wants = "no C++ compiler with Python's headers: running without torch.compile", False
    bfloat16 = compute.precision == "bfloat16" or (
        compute.precision == "auto" and _fast_bfloat16(device)
    )
    return ComputePlan(
        device,
        torch.bfloat16 if bfloat16 else torch.float32,
        wants,
        torch.channels_last if compute.channels_last else torch.contiguous_format,
        usable_cores() if compute.workers is None else compute.workers,
        processes,
        note,
    )


def keep_freed_memory() -> None:
    """Let the C library keep what one step frees for the next, where it is glibc.

    By default it gives large blocks back to the system and pays for every page again.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def hardware(device: torch.device) -> str:
    """Return the hardware in words: GPU name, or CPU name and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return this process's share of the cores that it may run on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (usable or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _has_compiler() -> bool:
    candidates = (os.environ.get("CXX"), "g++", "clang++", "cl")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return headers and any(shutil.which(name) for name in candidates if name)


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
