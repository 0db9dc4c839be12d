"""What `auto` comes to, device by device."""

from dataclasses import replace

import pytest
import torch

from gaternet.errors import UsageError
from gaternet.training import compute
from gaternet.training.compute import choose_device, hardware, plan
from gaternet.training.config import Compute

CPU = torch.device("cpu")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.shutil, "which", lambda name: None)


@pytest.mark.usefixtures("compiler")
def test_compiled_on_a_gpu_or_when_asked_for() -> None:
    assert not plan(Compute(), CPU).compile
    assert plan(Compute(compile="on"), CPU).compile
    gpu, float32 = torch.device("cuda"), Compute(precision="float32")
    assert plan(float32, gpu).compile
    assert not plan(replace(float32, compile="off"), gpu).compile


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_runs_eager_and_says_so() -> None:
    chosen = plan(Compute(compile="on"), CPU)
    assert not chosen.compile
    assert "no C++ compiler" in chosen.note
    assert not plan(Compute(), CPU).note


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("fast", [False, True])
def test_precision(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_cpu_flags", lambda: "flags : avx512_bf16" if fast else "flags :")
    assert plan(Compute(), CPU).dtype == (torch.bfloat16 if fast else torch.float32)
    assert plan(Compute(precision="float32"), CPU).dtype == torch.float32
    assert plan(Compute(precision="bfloat16"), CPU).dtype == torch.bfloat16


def test_channels_last_by_default() -> None:
    assert plan(Compute(), CPU).memory_format == torch.channels_last
    assert plan(Compute(channels_last=False), CPU).memory_format == torch.contiguous_format


def test_autocast_computes_in_the_planned_type() -> None:
    layer, images = torch.nn.Linear(2, 2), torch.randn(2, 2)
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        settings = Compute(precision="float32" if precision == "float32" else "bfloat16")
        with plan(settings, CPU).autocast:
            assert layer(images).dtype == expected


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="unknown device 'gpu': give auto"):
        choose_device("gpu")
    with pytest.raises(UsageError, match="'meta' is not supported"):
        choose_device("meta")


def test_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(UsageError, match="no CUDA device here; use --device cpu"):
        choose_device("cuda:1")


def test_hardware_says_processor_and_threads() -> None:
    words = hardware(CPU)
    threads = torch.get_num_threads()
    assert words.endswith(", 1 thread" if threads == 1 else f", {threads} threads")
    assert len(words.split(",")[0]) > 2
