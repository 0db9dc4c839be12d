"""`runtime.compile` and `compile_backbone` against the masked model, and what they refuse."""

import copy
import pickle
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowered_networks import ordinary, random_gates
from torch import Tensor, nn

from gaternet import LocalGaterNet, UserError
from gaternet.analysis import GateRecord
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.binarizers import GateForm, ImprovedSemHash
from gaternet.compression import compress
from gaternet.gate_points import GatePoint, find_gate_points
from gaternet.gater import Gater
from gaternet.graph import trace
from gaternet.model import GaterNet
from gaternet.runtime import compile, compile_backbone
from gaternet.runtime.compiled import CompiledBackbone, masked_backbone
from gaternet.runtime.compiler import TOLERANCE
from gaternet.runtime.forms import own_gates
from gaternet.verification import relative_error, verify
from small_networks import SIZE, ResidualNet, conv

pytestmark = pytest.mark.usefixtures("kernels")

SIDE = 8
ACCURATE = 1e-5


def images_of(batch: int, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def gated_model(backbone: nn.Module | None = None, **options: Any) -> GaterNet:
    torch.manual_seed(0)
    backbone = backbone or CifarResNet(8, widths=(16, 16, 32), image_size=SIDE)
    extractor = CifarResNet(8, classes=0, widths=(4, 4, 4), image_size=SIDE)
    gater = Gater(extractor, bottleneck=4, input_size=options.pop("glance", None))
    model = GaterNet(backbone, gater, input_size=(3, SIDE, SIDE), **options)
    ordinary(model)
    nn.init.normal_(last_bias(model))  # some gates open, some not
    return model.eval()


def last_bias(model: GaterNet) -> Tensor:
    assert model.gater.head is not None
    layer = model.gater.head[-1]
    assert isinstance(layer, nn.Linear)
    return layer.bias


@pytest.fixture(scope="module")
def model() -> GaterNet:
    return gated_model()


@pytest.mark.parametrize("glance", [None, 4])
def test_model_and_compiled_agree_and_flip_no_gate_but_by_rounding(glance: int | None) -> None:
    model = gated_model(glance=glance)
    compiled = compile(model, images_of(4))
    for batch in (1, 4, 9, 33):
        result = verify(model, compiled, images_of(batch, seed=batch))
        assert result.agrees(ACCURATE), result
        assert result.gates == batch * model.gate_count
    _, gates = compiled(images_of(5))
    assert 0.1 < gates.mean() < 0.9
    assert compiled.report.masked_because is None
    assert compiled.gate_logits.report.masked_because is None
    assert [layer.name for layer in compiled.report.layers][:2] == ["conv", "stage1.block1.conv1"]


@torch.no_grad()
def test_a_linear_layer_keeps_the_faster_form() -> None:
    """Of 32 MB of weights one nearly closed image reads 2 MB; 16 open ones share all of them."""
    torch.manual_seed(0)
    backbone = nn.Sequential(conv(3, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 256, 2048))
    point, gates = GatePoint("0", 16), torch.eye(16)[:1]
    for images, opened, skips in ((1, gates, True), (16, torch.ones(16, 16), False)):
        examples = images_of(images, side=16)
        compiled = compile_backbone(backbone, [point], examples, opened)
        choice = compiled.report.layers[-1]
        assert choice.name == "3"
        assert choice.skips == skips
        assert choice.gated_ms is not None
        assert choice.dense_ms is not None
        assert (choice.gated_ms < choice.dense_ms) == skips
        expected = masked_backbone(backbone.eval(), [point])(examples, opened)
        assert relative_error(compiled(examples, opened), expected) <= ACCURATE


def test_threshold_may_be_moved_afterwards(model: GaterNet) -> None:
    compiled = compile(model)
    compiled.binarizer.threshold = 0.7
    moved = copy.deepcopy(model)
    moved.binarizer.threshold = 0.7
    assert verify(moved, compiled, images_of(6)).agrees(ACCURATE)
    assert verify(model, compiled, images_of(6)).flips > 0
    assert model.binarizer.threshold == 0.0


@pytest.mark.parametrize("block", [1, 8, 16])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_given_gates(block: int, rate: float) -> None:
    backbone = CifarResNet(8, widths=(16, 16, 32), image_size=SIDE)
    points = find_gate_points(trace(backbone), "both", block)
    model = gated_model(backbone, points=points)
    compiled = compile(model)
    gates = random_gates(5, model.gate_count, rate)
    for given in (gates, gates.bool(), gates[0], gates.double()):
        assert verify(model, compiled, images_of(5), given).logit_error <= ACCURATE


def test_a_backbone_takes_gates_of_any_dtype() -> None:
    backbone = CifarResNet(8, widths=(16, 16, 32), image_size=SIDE).eval()
    points = find_gate_points(trace(backbone), "both", 8)
    images, gates = images_of(3), random_gates(3, sum(point.gates for point in points), 0.5)
    compiled = compile_backbone(backbone, points, images, gates.bool())
    for given in (gates.bool(), gates.long(), gates.double()):
        assert torch.equal(compiled(images, given), compiled(images, gates))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_gpu_skips_and_agrees(model: GaterNet) -> None:
    model, images = model.cuda(), images_of(6).cuda()
    compiled = compile(model, images)
    assert compiled.report.masked_because is None
    assert compiled.report.slow_because is None
    assert verify(model, compiled, images).agrees(1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_form_of_a_model_runs_on_a_gpu(model: GaterNet) -> None:
    found = own_gates(model.cuda(), None, images_of(6).cuda().split(2))
    assert not found.missing
    for form in found.ready:
        form.run()


def test_gates_that_cannot_be_run_are_refused(model: GaterNet) -> None:
    compiled = compile(model)
    count = model.gate_count
    for shape in ((3, count), (2, count - 1), (count + 1,), (1, 2, count), ()):
        with pytest.raises(ValueError, match=f"for 2 images and {count} gates"):
            compiled(images_of(2), torch.ones(shape))
    for value in (0.5, 2.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="0 or 1"):
            compiled(images_of(2), torch.full((count,), value))


def test_models_that_cannot_be_compiled_are_refused(model: GaterNet) -> None:
    with pytest.raises(UserError, match=r"`backbone.*float64: the kernels compute in float32"):
        compile(copy.deepcopy(model).double())
    half = copy.deepcopy(model)
    half.gater.half()
    with pytest.raises(UserError, match=r"`gater.*float16"):
        compile(half)
    local = LocalGaterNet(CifarResNet(8, image_size=SIDE))
    with pytest.raises(UserError, match="LocalGaterNet decides on its gates layer by layer"):
        compile(local)


class SoftSemHash(ImprovedSemHash):
    form = GateForm.SOFT


def test_soft_gates_are_refused_even_where_they_happen_to_be_whole() -> None:
    model = gated_model(binarizer=SoftSemHash())
    with pytest.raises(UserError, match=r"SoftSemHash.* gives gates between 0 and 1"):
        compile(model)
    nn.init.constant_(last_bias(model), 50.0)
    with pytest.raises(UserError, match="gives gates between 0 and 1"):
        compile(model)


def test_the_model_itself_stays_as_it_is(model: GaterNet) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    model.train()
    compiled = compile(model)
    assert model.training
    assert not any(module.training for module in compiled.modules())
    model.eval()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert verify(model, copy.deepcopy(model), images_of(2)).agrees(0.0)


def test_compressed_model_compiles() -> None:
    model = gated_model()
    with torch.no_grad():
        gates = torch.ones(6, model.gate_count)
        gates[:, ::3] = 0
        gates[:3, 1::3] = 0
    record = GateRecord(np.packbits(gates.bool().numpy(), axis=1), model.slices)
    small = compress(model, record)
    compiled = compile(small, images_of(3))
    assert compiled.report.masked_because is None
    assert verify(small, compiled, images_of(7)).agrees(ACCURATE)


# Anything around it: autocast, gradients, copies, threads, sizes of batches and images.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(model: GaterNet, dtype: torch.dtype) -> None:
    images = images_of(3)
    with torch.autocast("cpu", dtype=dtype):
        compiled = compile(model, images)
        inside = compiled(images)
    outside = compile(model, images)(images)
    assert inside.logits.dtype == torch.float32
    assert torch.equal(inside.gates, outside.gates)
    torch.testing.assert_close(inside.logits, outside.logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_not_computed_and_not_in_the_way(model: GaterNet) -> None:
    compiled = compile(model)
    images = images_of(2).requires_grad_()
    assert torch.is_grad_enabled()
    logits, gates = compiled(images)
    assert not logits.requires_grad
    assert not gates.requires_grad
    with torch.inference_mode():
        inference = compile(model)(images)
    torch.testing.assert_close(inference.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(images).logits, logits, rtol=0, atol=0)


def copies(model: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]


def test_copies_and_pickles_compute_the_same(model: GaterNet) -> None:
    compiled = compile(model)
    expected = compiled(images_of(3))
    for other in copies(compiled):
        found = other(images_of(3))
        assert torch.equal(found.logits, expected.logits)
        assert other.report == compiled.report
    gates = random_gates(3, model.gate_count, 0.5)
    masked = masked_backbone(copy.deepcopy(compiled.gater.extractor), ())
    plain = masked(images_of(3), gates[:, :0])
    for other in copies(masked):
        assert torch.equal(other(images_of(3), gates[:, :0]), plain)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_that_are_no_multiple_of_a_chunk(threads: int) -> None:
    backbone = ordinary(ResidualNet())
    points = find_gate_points(trace(backbone, SIZE))
    gates = random_gates(11, 12, 0.5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = compile_backbone(backbone, points, images_of(4), gates[:4])
        expected = masked_backbone(backbone, points)(images_of(11), gates)
        for chunk in (1, 2, 4, 5, 11, 12):
            report = type(compiled.report)(chunk=chunk, image_size=compiled.report.image_size)
            parts = CompiledBackbone(compiled.body, report)(images_of(11), gates)
            assert relative_error(parts, expected.detach()) <= ACCURATE
        assert compiled(images_of(0), gates[:0]).shape == (0, 5)
    finally:
        torch.set_num_threads(before)


def test_images_of_another_size_are_refused(model: GaterNet) -> None:
    compiled = compile(model)
    with pytest.raises(ValueError, match=r"compiled for \(N, 3, 8, 8\): compile it again"):
        compiled(images_of(2, side=16))
    at_16 = compile(model, images_of(2, side=16))
    assert verify(model, at_16, images_of(3, side=16)).agrees(ACCURATE)


def test_examples_must_fit(model: GaterNet) -> None:
    backbone, points = ResidualNet(), [GatePoint("0", 4)]
    for images in (images_of(0), images_of(1)[0]):
        with pytest.raises(ValueError, match="example images are"):
            compile_backbone(backbone, points, images, torch.ones(len(images), 4))
    with pytest.raises(ValueError, match=r"example gates are \(2, 3\), not \(2, 4\)"):
        compile_backbone(backbone, points, images_of(2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="0 or 1"):
        compile_backbone(backbone, points, images_of(2), torch.full((2, 4), 0.5))


def in_threads(work: Callable[[int], bool], count: int = 4) -> bool:
    equal = [False] * count

    def run(n: int) -> None:
        equal[n] = work(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return all(equal)


def test_threads_do_not_see_each_other(model: GaterNet) -> None:
    compiled = compile(model, images_of(4))
    batches = [images_of(n + 2, seed=n) for n in range(4)]
    alone = [compiled(images).logits for images in batches]

    def work(n: int) -> bool:
        return all(torch.equal(compiled(batches[n]).logits, alone[n]) for _ in range(20))

    assert in_threads(work)


# What cannot be lowered runs masked.


class Head(nn.Module):
    """A conv, an activation, something that each of those below does otherwise, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fc = conv(3, 16), nn.Linear(16, 5)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.between(self.norm(self.first(x)).relu()).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Branching(Head):
    def between(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x * 2


class WithConstant(Head):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.tensor([2.0])


class BatchStatistics(Head):
    def __init__(self) -> None:
        super().__init__()
        self.whitening = nn.BatchNorm2d(16, track_running_stats=False)

    def between(self, x: Tensor) -> Tensor:
        return self.whitening(x)


class FixedBatch(Head):
    """Python asks for the size of the batch: in a trace that is a constant."""

    def between(self, x: Tensor) -> Tensor:
        return torch.stack([2 * x[n] for n in range(x.shape[0])])


class UnderAnotherName(Head):
    """`+=` changes what another name stands for, and a trace does not know of it."""

    def between(self, x: Tensor) -> Tensor:
        y = x
        y += 1.0
        return x * 2


class Dictionary(Head):
    def forward(self, x: Tensor) -> Any:
        return {"out": self.fc(self.norm(self.first(x)).mean((2, 3)))}


@torch.fx.wrap
def only_plain_layout(x: Tensor) -> Tensor:
    """An operation of somebody's own that asks for more than a trace shows."""
    if not x.is_contiguous():
        raise RuntimeError("give me contiguous feature maps")
    return x * 2


class NeedsLayout(Head):
    def between(self, x: Tensor) -> Tensor:
        return only_plain_layout(x)


MASKED = {
    Branching: "Branching cannot be traced at .*`return x if x.sum\\(\\) > 0",
    WithConstant: "`_tensor_constant0` is a constant that the forward makes",
    BatchStatistics: "`whitening` normalises by statistics of the batch",
    FixedBatch: r"its outputs would have other shapes: logits are \(2, 5\), not \(5, 5\)",
    UnderAnotherName: "its outputs would differ from the masked by",
    Dictionary: "it returns a dict, not tensors",
    NeedsLayout: r"lowered, it does not run: give me contiguous .*\(While executing .*only_plain",
}


@pytest.mark.parametrize("kind", MASKED)
def test_what_cannot_be_lowered_runs_masked_and_says_why(
    kind: type[Head], capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = ordinary(kind())
    points = [GatePoint("norm", 16, 4)]
    gates = random_gates(4, 4, 0.5)
    compiled = compile_backbone(backbone, points, images_of(4), gates)
    reason = compiled.report.masked_because
    assert reason is not None
    assert re.search(MASKED[kind], reason), reason
    found = compiled(images_of(4), gates)
    assert compiled.report.layers == ()
    expected = masked_backbone(backbone, points)(images_of(4), gates)
    if isinstance(expected, dict):
        found, expected = found["out"], expected["out"]
    assert torch.equal(found, expected)
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err + captured.out
    for other in copies(compiled):
        again = other(images_of(4), gates)
        assert torch.equal(again["out"] if isinstance(again, dict) else again, found)


def test_masked_it_is_as_safe_for_threads() -> None:
    backbone = ordinary(Branching())
    gates = [random_gates(3, 4, 0.5, seed) for seed in range(4)]
    compiled = compile_backbone(backbone, [GatePoint("norm", 16, 4)], images_of(3), gates[0])
    assert compiled.report.masked_because is not None
    alone = [compiled(images_of(3), given) for given in gates]

    def work(n: int) -> bool:
        return all(torch.equal(compiled(images_of(3), gates[n]), alone[n]) for _ in range(50))

    assert in_threads(work)


def test_a_gater_that_cannot_be_lowered_runs_as_it_is() -> None:
    class Extractor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).mean((2, 3))
            return x if x.isfinite().all() else torch.zeros_like(x)

    torch.manual_seed(0)
    gater = Gater(Extractor(), bottleneck=4, features=4)
    model = GaterNet(CifarResNet(8, image_size=SIDE), gater, input_size=(3, SIDE, SIDE)).eval()
    compiled = compile(model)
    assert compiled.report.masked_because is None
    assert compiled.gate_logits.report.masked_because is not None
    assert verify(model, compiled, images_of(5)).agrees(ACCURATE)


class Views(Head):
    """What images in another layout would break: `view` of a feature map."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.norm(self.first(x)), 2)
        return self.fc(x.view(x.size(0), -1)[:, :16])


@torch.no_grad()
def test_masked_images_keep_their_layout() -> None:
    class Undecided(Views):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    for kind in (Views, Undecided):
        backbone, gates = ordinary(kind()), random_gates(3, 16, 0.5)
        compiled = compile_backbone(backbone, [GatePoint("norm", 16)], images_of(3), gates)
        assert (compiled.report.masked_because is None) == (kind is Views)
        expected = masked_backbone(backbone, [GatePoint("norm", 16)])(images_of(3), gates)
        assert relative_error(compiled(images_of(3), gates), expected) <= TOLERANCE


def test_an_error_of_the_backbone_itself_is_no_matter_of_compiling() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        compile_backbone(
            nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(7, 2)),
            [GatePoint("0", 4)],
            images_of(2),
            torch.ones(2, 4),
        )


class Maps(Head):
    """Feature maps of several sizes, as `features_only` has them."""

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.first(x)).relu()
        return [x, (F.max_pool2d(x, 2), x.mean((2, 3)))]


@torch.no_grad()
def test_lists_of_feature_maps() -> None:
    backbone, gates = ordinary(Maps()), random_gates(7, 16, 0.5)
    compiled = compile_backbone(backbone, [GatePoint("norm", 16)], images_of(7), gates)
    assert compiled.report.masked_because is None
    expected = masked_backbone(backbone, [GatePoint("norm", 16)])(images_of(7), gates)
    small = type(compiled.report)(chunk=3, image_size=compiled.report.image_size)
    for form in (compiled, CompiledBackbone(compiled.body, small)):
        found = form(images_of(7), gates)
        assert isinstance(found, list)
        assert isinstance(found[1], tuple)
        assert relative_error(found, expected) <= ACCURATE


@pytest.mark.slow
def test_torch_compile_takes_a_compiled_backbone() -> None:
    backbone = ordinary(ResidualNet())
    points = find_gate_points(trace(backbone, SIZE))
    gates = random_gates(3, 12, 0.5)
    compiled = compile_backbone(backbone, points, images_of(3), gates)
    form = torch.compile(compiled.body, fullgraph=True)
    for batch in (3, 5):
        gates = random_gates(batch, 12, 0.5)
        with torch.no_grad():
            found = form(images_of(batch), gates)
        assert relative_error(found, compiled(images_of(batch), gates)) <= ACCURATE
