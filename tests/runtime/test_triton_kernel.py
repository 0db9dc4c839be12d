"""The Triton kernels: interpreted, compiled for a GPU that is not there, and run on one that is."""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import triton_cases
from torch import Tensor
from triton_cases import (
    CASES,
    COMPILED_CASES,
    Case,
    Operands,
    computed,
    expected,
    operands_of,
    products_of,
)

from gaternet.evaluation_mode import exact_products
from gaternet.runtime import build, operator
from gaternet.runtime.operator import gated_conv2d, gated_conv2d_reference

pytest.importorskip("triton")

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """On a GPU PyTorch's convs, and so the kernels, round float32 by default."""
    with exact_products():
        yield


def run(*arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, int]]:
    """The interpreted output of each case, and how many products of blocks it took."""
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    run(triton_cases.__file__, str(path), TRITON_INTERPRET="1")
    return torch.load(path)


@pytest.fixture(scope="module")
def interpreted(results: dict[str, tuple[Tensor, int]]) -> dict[str, Tensor]:
    return {name: output for name, (output, _) in results.items()}


def assert_close(case: Case, output: Tensor) -> None:
    wanted = expected(case)
    assert output.dtype == case.dtype
    assert output.shape == wanted.shape
    apart = (output.double().cpu() - wanted).abs().max()
    assert apart <= TOLERANCE[case.dtype] * max(wanted.abs().max().item(), 1e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interpreted_kernels_agree_with_pytorch_and_read_nothing_closed(
    interpreted: dict[str, Tensor], case: Case
) -> None:
    assert_close(case, interpreted[case.name])


@pytest.mark.parametrize("case", [case for case in CASES if case.tile], ids=lambda case: case.name)
def test_only_open_blocks_are_multiplied(
    results: dict[str, tuple[Tensor, int]], case: Case
) -> None:
    assert case.tile is not None
    _, products = results[case.name]
    assert products == products_of(case, case.tile)


def test_closed_filters_are_zero_and_leave_residuals(interpreted: dict[str, Tensor]) -> None:
    by_name = {case.name: case for case in CASES}
    before = {name: operands_of(case).before for name, case in by_name.items()}
    assert not interpreted["all closed"].any()
    closed = "added, all closed"
    assert torch.equal(interpreted[closed], before[closed].relu())
    closed = "added, all closed, no ReLU"
    assert torch.equal(interpreted[closed], before[closed])


def test_images_keep_their_layout(interpreted: dict[str, Tensor]) -> None:
    for name in ("channels first", "3x3"):
        assert interpreted[name].is_contiguous(memory_format=torch.channels_last)
    assert interpreted["added, channels first"].is_contiguous()


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    run(str(Path(__file__).with_name("compile_kernels.py")), TRITON_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("*.cubin"))


def test_what_has_no_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.load_kernels(torch.device("cuda")) is None
    assert "no kernels for mps" in str(build.load_kernels(torch.device("mps")))
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert "Triton was not found" in str(build.load_kernels(torch.device("cuda")))


def test_only_a_gpu_needs_triton() -> None:
    script = (
        "import sys, gaternet.runtime.compiler; assert 'gaternet.runtime.cuda' not in sys.modules"
    )
    run("-c", script)
    for name in ("gaternet::gated_conv2d", "gaternet::gated_conv2d_add_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


def test_without_triton_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "find_spec", lambda name: None)
    monkeypatch.setattr(operator, "_kernels_for_cuda", operator._kernels_for_cuda.__wrapped__)
    given = operands_of(Case("plain")).given
    assert torch.equal(operator._gated_conv2d_on_cuda(*given), gated_conv2d_reference(*given))
    operands = operands_of(Case("added", adds=True))
    y, wanted = operands.before.clone(), operands.before.clone()
    operator._gated_conv2d_add_on_cuda(y, *operands.given)
    operator.gated_conv2d_add_reference(wanted, *operands.given)
    assert torch.equal(y, wanted)


def test_tiles_leave_every_multiprocessor_something_to_do() -> None:
    from gaternet.runtime.cuda import Tile, tile_for

    assert tile_for(16, 56 * 56, 64, 64, 132) == Tile(128, 64, 32)
    # 56² pixels and 64 filters: 98 tiles of 32 × 64 are too few, 98 · 2 of 32 × 32 are enough.
    assert tile_for(1, 56 * 56, 64, 64, 132) == Tile(32, 32, 32)
    assert tile_for(1, 7 * 7, 512, 512, 132) == Tile(16, 16, 32)
    assert tile_for(8, 2, 3, 3, 1) == Tile(16, 16, 16)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", torch.zeros(2, 16, 5, 4, dtype=torch.float64), TypeError, "float64 and weight"),
        ("output_gates", torch.zeros(16), TypeError, "int32"),
        ("x", torch.zeros(2, 17, 5, 4), ValueError, r"weight .* give \(1, 3, 3, 17, 16\)"),
        ("gates", torch.zeros(3, 32), ValueError, r"gates is .*\(3, 32\).* give \(2, 32\)"),
        ("bias", torch.zeros(15), ValueError, r"bias .* give \(16,\)"),
        ("x", torch.zeros(2, 16, 5, 2), ValueError, "smaller than the kernel"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    name: str, value: Tensor, error: type[Exception], message: str
) -> None:
    from gaternet.runtime.cuda import Layer

    names = ("x", "weight", "bias", "gates", "input_gates", "output_gates")
    given = operands_of(Case("fits", kernel=(3, 3))).given
    operands = {**dict(zip(names, given[:6], strict=True)), name: value}
    with pytest.raises(error, match=message):
        Layer(*operands.values(), *given[6:9])


@gpu
@needs_gpu
@pytest.mark.parametrize("case", COMPILED_CASES, ids=lambda case: case.name)
def test_compiled_kernels_agree_with_pytorch(case: Case) -> None:
    assert_close(case, computed(case, "cuda"))


@gpu
@needs_gpu
def test_one_cuda_graph_serves_all_gates() -> None:
    case = Case("captured", 3, 64, 64, (14, 14), (3, 3), padding=(1, 1))
    x, weight, bias, gates, *others = operands_of(case).to("cuda").given
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gated_conv2d(x, weight, bias, gates, *others)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gated_conv2d(x, weight, bias, gates, *others)
    for share in (0.0, 0.3, 1.0):
        gates.copy_(torch.rand_like(gates) < share)
        graph.replay()
        wanted = gated_conv2d_reference(x, weight, bias, gates, *others)
        assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@gpu
@needs_gpu
@pytest.mark.slow
def test_batches_of_more_than_2_to_the_31_elements() -> None:
    case = Case("large", 1, 16, 16, (1024, 1024), stride=(4, 4), dtype=torch.float16)
    one = operands_of(case).to("cuda").given
    x, weight, bias, gates, *others = one
    many = x.expand(129, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    y = gated_conv2d(many, weight, bias, gates.expand(129, -1).contiguous(), *others)
    assert torch.equal(y[-1:], gated_conv2d(*one))


def milliseconds(compute: Callable[[], object]) -> float:
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            compute()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


@gpu
@needs_gpu
def test_half_open_is_faster_than_all_open() -> None:
    def operands(share: float) -> Operands:
        case = Case("3x3", 32, 256, 256, (28, 28), (3, 3), padding=(1, 1), share=share, block=16)
        return operands_of(case).to("cuda")

    half, whole = operands(0.5), operands(1.0)
    assert milliseconds(lambda: gated_conv2d(*half.given)) < 0.7 * milliseconds(
        lambda: gated_conv2d(*whole.given)
    )
