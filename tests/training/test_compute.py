"""What `auto` comes to, device by device."""

import itertools

import pytest
import torch

from gaternet.errors import UsageError
from gaternet.training import compute
from gaternet.training.compute import choose_device, hardware, plan
from gaternet.training.config import Compute

CPU = torch.device("cpu")
LONG = compute.COMPILE_PAYS_AFTER_STEPS


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.shutil, "which", lambda name: None)


@pytest.mark.usefixtures("compiler")
def test_long_runs_are_compiled() -> None:
    assert plan(Compute(), CPU, LONG).compile
    assert not plan(Compute(), CPU, LONG - 1).compile
    assert plan(Compute(compile="on"), CPU, 1).compile
    assert not plan(Compute(compile="off"), CPU, LONG).compile


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_runs_eager_and_says_so() -> None:
    for settings, steps in ((Compute(), LONG), (Compute(compile="on"), 1)):
        chosen = plan(settings, CPU, steps)
        assert not chosen.compile
        assert "no C++ compiler" in chosen.note
    assert not plan(Compute(), CPU, LONG - 1).note
    assert not plan(Compute(compile="off"), CPU, LONG).note


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("fast", [False, True])
def test_precision(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_cpu_flags", lambda: "flags : avx512_bf16" if fast else "flags :")
    assert plan(Compute(), CPU, 1).dtype == (torch.bfloat16 if fast else torch.float32)
    assert plan(Compute(precision="float32"), CPU, 1).dtype == torch.float32
    assert plan(Compute(precision="bfloat16"), CPU, 1).dtype == torch.bfloat16


@pytest.mark.usefixtures("compiler")
def test_channels_last_where_it_is_faster() -> None:
    last, plain = torch.channels_last, torch.contiguous_format
    assert plan(Compute(), CPU, LONG).memory_format == plain
    assert plan(Compute(), CPU, 1).memory_format == last
    for steps, (wish, expected) in itertools.product((1, LONG), (("on", last), ("off", plain))):
        settings = Compute(channels_last="on" if wish == "on" else "off")
        assert plan(settings, CPU, steps).memory_format == expected


def test_autocast_computes_in_the_planned_type() -> None:
    layer, images = torch.nn.Linear(2, 2), torch.randn(2, 2)
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        settings = Compute(precision="float32" if precision == "float32" else "bfloat16")
        with plan(settings, CPU, 1).autocast:
            assert layer(images).dtype == expected


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="unknown device 'gpu': give auto"):
        choose_device("gpu")
    with pytest.raises(UsageError, match="'meta' is not supported"):
        choose_device("meta")


def test_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(UsageError, match="no CUDA device here; use --device cpu"):
        choose_device("cuda:1")


def test_hardware_says_processor_and_threads() -> None:
    words = hardware(CPU)
    assert words.endswith(f", {torch.get_num_threads()} threads")
    assert len(words.split(",")[0]) > 2
