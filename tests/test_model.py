"""GaterNet: the paper's equations by hand, and every way in which PyTorch users use a model."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from gaternet.backbones.resnet_cifar import BasicBlock, CifarResNet
from gaternet.binarizers import GateForm
from gaternet.gate_points import GatePoint
from gaternet.gater import Gater
from gaternet.local import LocalGaterNet
from gaternet.losses import gated_cross_entropy
from gaternet.model import GaterNet
from gaternet.verification import verify

GATES = 4 + 8 + 8
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])
KEYS = torch.arange(6)


def small_backbone() -> CifarResNet:
    return CifarResNet(8, widths=(4, 8, 8), image_size=8)


def small_gater() -> Gater:
    return Gater(CifarResNet(8, classes=0, widths=(4, 4, 4), image_size=8), bottleneck=4)


@pytest.fixture
def model() -> GaterNet:
    torch.manual_seed(0)
    return GaterNet(small_backbone(), small_gater())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def unit(backbone: nn.Module, stage: int) -> BasicBlock:
    block = backbone.get_submodule(f"stage{stage}.block1")
    assert isinstance(block, BasicBlock)
    return block


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def backward(model: nn.Module, images: Tensor, sparsity: float = 0.1) -> dict[str, Tensor]:
    """Return the gradients of one training step with repeatable gates."""
    model.zero_grad()
    logits, gates = model(images, keys=KEYS)
    gated_cross_entropy(logits, gates, LABELS, sparsity=sparsity).backward()
    return gradients(model)


# What a forward is


def masked_by_hand(backbone: CifarResNet, images: Tensor, gates: Tensor) -> Tensor:
    """Equation 4 written out for a ResNet-8: each unit's last BatchNorm times its gates."""
    x = F.relu(backbone.bn(backbone.conv(images)))
    for stage, part in enumerate(gates.split((4, 8, 8), dim=1), start=1):
        block = unit(backbone, stage)
        residual = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        x = F.relu(block.shortcut(x) + residual * part[:, :, None, None])
    return backbone.fc(x.mean(dim=(2, 3)))


def test_equals_the_papers_equations(model: GaterNet, images: Tensor) -> None:
    model.eval()
    plain = small_backbone().eval()
    plain.load_state_dict(model.backbone.state_dict())
    logits, gates = model(images)
    assert torch.equal(gates, (model.gate_logits(images) >= 0).float())
    torch.testing.assert_close(logits, masked_by_hand(plain, images, gates))
    assert torch.equal(model(images).logits, logits)


def test_what_cannot_be_joined_is_left_as_it_was(model: GaterNet) -> None:
    extractor = CifarResNet(8, classes=0)
    gater = Gater(extractor, bottleneck=4)
    with pytest.raises(ValueError, match="already gated"):
        GaterNet(model.backbone, gater)
    assert gater.head is None
    backbone = CifarResNet(8)
    with pytest.raises(ValueError, match="this gater was connected to"):
        GaterNet(backbone, model.gater)
    GaterNet(backbone, gater)


def test_given_gates_replace_the_gaters(model: GaterNet, images: Tensor) -> None:
    model.eval()
    plain = small_backbone().eval()
    plain.load_state_dict(model.backbone.state_dict())
    expected = masked_by_hand(plain, images, torch.zeros(6, GATES))
    for parameter in model.gater.parameters():
        parameter.data.fill_(math.nan)  # would show if it were asked
    mask = torch.rand(6, GATES) < 0.5
    logits, gates = model(images, gates=mask)
    assert torch.equal(gates, mask.float())
    torch.testing.assert_close(logits[:1], model(images[:1], gates=mask[0]).logits)
    torch.testing.assert_close(model(images, gates=torch.zeros(GATES)).logits, expected)
    torch.testing.assert_close(model(images, gates=torch.ones(GATES)).logits, plain(images))


@pytest.mark.parametrize("shape", [(1, GATES), (6, GATES - 1), (6,), (6, GATES, 1)])
def test_gates_of_another_shape_are_refused(
    model: GaterNet, images: Tensor, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"give \(20,\) or \(6, 20\)"):
        model(images, gates=torch.ones(shape))


def test_backbone_called_directly_is_plain(model: GaterNet, images: Tensor) -> None:
    model.eval()
    plain = small_backbone().eval()
    plain.load_state_dict(model.backbone.state_dict())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            model(images, gates=torch.zeros(GATES))
            assert torch.equal(model.backbone(images), plain(images))
    with torch.no_grad():
        model(images, gates=torch.zeros(GATES))
    assert isinstance(model.backbone, CifarResNet)
    assert torch.equal(model.backbone.forward_features(images), plain.forward_features(images))


def test_moved_threshold_opens_and_closes(model: GaterNet, images: Tensor) -> None:
    model.eval()
    model.binarizer.threshold = -100.0
    assert model(images).gates.all()
    model.binarizer.threshold = 100.0
    assert not model(images).gates.any()


# Gate points


def test_slices_follow_the_points(model: GaterNet) -> None:
    assert model.gate_count == GATES
    assert model.slices == {
        "stage1.block1.bn2": slice(0, 4),
        "stage2.block1.bn2": slice(4, 12),
        "stage3.block1.bn2": slice(12, 20),
    }


def test_points_by_name_predicate_and_value(images: Tensor) -> None:
    names = ["stage1.block1.bn2", "stage3.block1.bn2"]
    by_name = GaterNet(small_backbone(), small_gater(), points=names)
    by_predicate = GaterNet(
        small_backbone(), small_gater(), points=lambda name: name.endswith("1.bn1")
    )
    assert [point.name for point in by_name.points] == names
    assert by_predicate.gate_count == 20
    turned = tuple(reversed(by_name.points))
    by_value = GaterNet(small_backbone(), small_gater(), points=turned)
    assert by_value.slices == {"stage3.block1.bn2": slice(0, 8), "stage1.block1.bn2": slice(8, 12)}
    single = GaterNet(small_backbone(), small_gater(), points="stage2.block1.bn2")
    assert single.gate_count == 8
    blocks = [
        GatePoint("stage2.block1.bn2", channels=8, block=4),
        GatePoint("stage3.block1.bn2", channels=8, block=2),
    ]
    by_block = GaterNet(small_backbone(), small_gater(), points=blocks)
    assert by_block.slices == {"stage2.block1.bn2": slice(0, 2), "stage3.block1.bn2": slice(2, 6)}
    assert by_block(images).gates.shape == (6, 6)


def test_wrong_points_are_refused() -> None:
    def build(points: object) -> GaterNet:
        return GaterNet(small_backbone(), small_gater(), points=points)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"stage1\.block1\.bn2 has 4 channels"):
        build([GatePoint("stage1.block1.bn2", channels=8)])
    with pytest.raises(TypeError, match="not both"):
        build([GatePoint("stage1.block1.bn2", channels=4), "stage2.block1.bn2"])
    with pytest.raises(ValueError, match="no submodule is named"):
        build([])


def test_repr_says_how_many_gates_sit_where() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("resnet50")
        gater = Gater(timm.create_model("resnet18", num_classes=0), bottleneck=256)
        text = repr(GaterNet(backbone, gater))
    assert "15,104 gates at 16 points" in text
    assert "ResNet → 512 features → 256 → 15,104 gates" in text
    assert "3 × 256 = 768        layer1.0.bn3 … layer1.2.bn3" in text
    assert "6 × 1024 = 6,144     layer3.0.bn3 … layer3.5.bn3" in text
    assert len(text.splitlines()) == 8


# The paper's sizes (tables 1 and 3; millions of parameters, as printed)


@pytest.mark.parametrize(
    ("depth", "classes", "gates", "millions"),
    [(20, 10, 336, 0.55), (56, 10, 1008, 1.14), (56, 100, 1008, 1.14)],
)
def test_cifar_models_have_the_papers_size(
    depth: int, classes: int, gates: int, millions: float
) -> None:
    gater = Gater(CifarResNet(20, classes=0), bottleneck=8)
    model = GaterNet(CifarResNet(depth, classes), gater)
    assert model.gate_count == gates
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "gates", "millions"),
    [
        ("resnet34", 3776, 34.08),
        pytest.param("resnet101", 32512, 64.21, marks=pytest.mark.slow),
        pytest.param("resnet152", 47872, 83.80, marks=pytest.mark.slow),
    ],
)
def test_imagenet_models_have_the_papers_size(name: str, gates: int, millions: float) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name)
        gater = Gater(timm.create_model("resnet18", num_classes=0), bottleneck=256)
    model = GaterNet(backbone, gater)
    assert model.gate_count == gates
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


# Who gets which gradient


def test_penalty_changes_no_backbone_gradient(model: GaterNet, images: Tensor) -> None:
    without, penalised = backward(model, images, 0.0), backward(model, images, 5.0)
    for name in dict(model.backbone.named_parameters(prefix="backbone")):
        assert torch.equal(without[name], penalised[name]), name
    for name in ("gater.head.fc2.bias", "gater.extractor.conv.weight"):
        assert not torch.allclose(without[name], penalised[name]), name


def test_filter_closed_for_all_samples_gets_no_gradient(model: GaterNet, images: Tensor) -> None:
    mask = torch.ones(6, GATES)
    closed = [5, 9]  # filters 1 and 5 of stage 2, whose slice starts at 4
    mask[:, closed] = 0
    mask[0, 4] = 0  # closed for one sample only
    logits, gates = model(images, gates=mask)
    gated_cross_entropy(logits, gates, LABELS, sparsity=0.1).backward()
    block = unit(model.backbone, 2)
    for parameter in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
        assert parameter.grad is not None
        without_gradient = [i for i, row in enumerate(parameter.grad) if not row.any()]
        assert without_gradient == [1, 5]


def test_batch_statistics_include_closed_samples(model: GaterNet, images: Tensor) -> None:
    plain = small_backbone()
    plain.load_state_dict(model.backbone.state_dict())
    model(images, gates=torch.cat((torch.zeros(1, 4), torch.ones(1, 16)), 1)[0])
    plain(images)
    expected = unit(plain, 1).bn2.state_dict()
    assert expected["running_mean"].any()
    for name, value in unit(model.backbone, 1).bn2.state_dict().items():
        assert torch.equal(value, expected[name]), name


# Dropout on the gates, backbones that draw


def test_dropout_comes_after_the_gates_that_the_penalty_sees(
    model: GaterNet, images: Tensor
) -> None:
    before = copy.deepcopy(model)(images, keys=KEYS)
    seen = []
    model.dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    model.dropout.set_rate(0.5)
    logits, gates = copy.deepcopy(model)(images, keys=KEYS)
    assert torch.equal(gates, before.gates)
    (used,) = seen
    assert ((used == 0) | (used == 2 * gates)).all()
    assert not torch.equal(used, 2 * gates)
    assert torch.equal(logits, copy.deepcopy(model)(images, gates=used).logits)
    assert len(seen) == 1  # given gates are not dropped
    model.eval()
    assert torch.equal(model(images).logits, model(images, gates=model(images).gates).logits)


class Drawing(CifarResNet):
    """A backbone that draws for each sample itself."""

    takes_keys = True

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        logits = super().forward(images)
        return logits if keys is None else logits + keys[:, None]


def test_keys_reach_a_backbone_that_draws(images: Tensor) -> None:
    model = GaterNet(Drawing(8, widths=(4, 8, 8), image_size=8), small_gater()).eval()
    plain = model(images)
    torch.testing.assert_close(model(images, keys=KEYS).logits, plain.logits + KEYS[:, None])
    given = model(images, gates=plain.gates, keys=KEYS).logits
    torch.testing.assert_close(given, plain.logits + KEYS[:, None])


def test_decision_is_the_gaters(model: GaterNet, images: Tensor) -> None:
    model.eval()
    logits, gates = model.decide(images)
    assert torch.equal(logits, model.gate_logits(images))
    assert torch.equal(gates, model(images).gates)
    for form in GateForm:
        output, decision = model.evaluate(images, form, KEYS)
        assert torch.equal(decision.gates, model.binarizer.evaluate(logits, form, KEYS))
        assert torch.equal(output, model(images, gates=decision.gates).logits)


# Ways of use


def test_state_dict_keys_are_the_parts_own(model: GaterNet) -> None:
    parts = {"backbone": small_backbone(), "gater": model.gater}
    expected = {f"{part}.{key}" for part, module in parts.items() for key in module.state_dict()}
    assert model.state_dict().keys() == expected


def test_copies_have_gates_of_their_own(model: GaterNet, images: Tensor) -> None:
    model(images)  # the gates of this forward have a gradient path and live on
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ema.update_parameters(model)
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(saved, weights_only=False),
        "EMA": ema.module,
    }
    for name, other in copies.items():
        assert verify(model.eval(), other.eval(), images).agrees(1e-6), name
        with torch.no_grad():
            closed = other(images, gates=torch.zeros(GATES)).logits
            assert not torch.equal(closed, other(images, gates=torch.ones(GATES)).logits), name


class Checkpointed(nn.Sequential):
    """A stage that is run again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def test_activation_checkpointing_has_the_same_gradients(model: GaterNet, images: Tensor) -> None:
    other = copy.deepcopy(model)
    for stage in ("stage1", "stage2", "stage3"):
        other.backbone.get_submodule(stage).__class__ = Checkpointed
    expected = backward(model, images)
    for name, gradient in backward(other, images).items():
        torch.testing.assert_close(gradient, expected[name])


def test_autocast_keeps_gates_exact(model: GaterNet, images: Tensor) -> None:
    model.binarizer.set_stage(noise_scale=1.0, hard_share=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        logits, gates = model(images, keys=KEYS)
        loss = gated_cross_entropy(logits, gates, LABELS, sparsity=0.1)
    assert logits.dtype == torch.bfloat16  # gates did not promote what they multiply
    assert gates.dtype == torch.float32
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(model: GaterNet, images: Tensor) -> None:
    expected = backward(copy.deepcopy(model), images)
    for name, gradient in backward(DistributedDataParallel(model), images).items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("module.")])


def test_own_loop_with_gradient_accumulation(model: GaterNet, images: Tensor) -> None:
    halves = ((images[:3], LABELS[:3], KEYS[:3]), (images[3:], LABELS[3:], KEYS[3:]))

    def loss_of(part: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits, gates = model(part[0], keys=part[2])
        return gated_cross_entropy(logits, gates, part[1], sparsity=0.1) / 2

    total: dict[str, Tensor] = {}
    for half in halves:
        model.zero_grad()
        loss_of(half).backward()
        for name, gradient in gradients(model).items():
            total[name] = total.get(name, torch.zeros(())) + gradient
    model.zero_grad()
    for half in halves:
        loss_of(half).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, total[name])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        for half in halves:
            loss = loss_of(half)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])


def test_backbone_for_features(images: Tensor) -> None:
    torch.manual_seed(0)
    # By default timm's residual branches start at 0, and gating them changes nothing.
    backbone = timm.create_model("resnet18", features_only=True, zero_init_last=False)
    model = GaterNet(backbone, small_gater(), input_size=(3, 64, 64)).eval()
    assert model.gate_count == 2 * (64 + 128 + 256 + 512)
    images = F.interpolate(images, (64, 64))
    with torch.no_grad():
        maps, gates = model(images)
        plain = model.backbone(images)
    assert [m.shape for m in maps] == [m.shape for m in plain]
    assert gates.shape == (6, model.gate_count)
    assert verify(model, copy.deepcopy(model), images).agrees(0.0)
    assert not torch.equal(maps[1], plain[1])


def test_gater_may_glance_at_a_smaller_image(images: Tensor) -> None:
    extractor = CifarResNet(8, classes=0, widths=(4, 4, 4))
    model = GaterNet(small_backbone(), Gater(extractor, bottleneck=4, input_size=4)).eval()
    seen = []
    extractor.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model(images)
    assert seen == [(6, 3, 4, 4)]


# Compiled and exported


def check_compiled(
    model: GaterNet, images: Tensor, compiler: Callable[[nn.Module], Callable], tolerance: float
) -> None:
    torch._dynamo.reset()
    compiled = compiler(model)
    model.eval()
    assert verify(model, compiled, images).agrees(tolerance)
    assert verify(model, compiled, images, gates=torch.rand(GATES) < 0.5).agrees(tolerance)
    model.binarizer.threshold = 0.3
    assert verify(model, compiled, images).agrees(tolerance)
    model.train()
    before = copy.deepcopy(model.state_dict())
    expected = backward(model, images)
    model.load_state_dict(before)
    model.zero_grad()
    logits, gates = compiled(images, keys=KEYS)
    gated_cross_entropy(logits, gates, LABELS, sparsity=0.1).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=100 * tolerance, atol=tolerance)


def test_compiles_whole(model: GaterNet, images: Tensor) -> None:
    check_compiled(
        model, images, lambda m: torch.compile(m, backend="aot_eager", fullgraph=True), 1e-6
    )


@pytest.mark.slow
def test_compiles_whole_with_inductor(model: GaterNet, images: Tensor) -> None:
    check_compiled(model, images, lambda m: torch.compile(m, fullgraph=True), 1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_exports_with_a_dynamic_batch(model: GaterNet, images: Tensor, given: bool) -> None:
    model.eval()
    batch = torch.export.Dim("batch")
    arguments, shapes = {"images": images}, {"images": {0: batch}}
    if given:
        arguments["gates"], shapes["gates"] = torch.ones(6, GATES), {0: batch}
    program = torch.export.export(model, (), arguments, dynamic_shapes=shapes, strict=False)
    exported = program.module()
    for count in (2, 5):
        some = torch.randn(count, 3, 8, 8)
        if given:
            mask = (torch.rand(count, GATES) < 0.5).float()
            result = verify(model, lambda i, g: exported(images=i, gates=g), some, gates=mask)
        else:
            result = verify(model, lambda i: exported(images=i), some)
        assert result.agrees(1e-6)


# Several threads, and what is not a model's part


@pytest.mark.parametrize("local", [False, True])
def test_threads_that_share_a_model_get_their_own_gates(local: bool, images: Tensor) -> None:
    torch.manual_seed(0)
    network = (
        LocalGaterNet(small_backbone()) if local else GaterNet(small_backbone(), small_gater())
    )
    network.eval()
    given = list((torch.rand(8, GATES) < 0.5).float())

    def run(gates: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            own = network(images).logits
            return [own, *(network(images, gates=gates).logits for _ in range(20))]

    expected = [run(gates) for gates in given]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(run, given), expected, strict=True):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, right, strict=True))


def test_replicas_that_would_share_their_gates_are_refused(model: GaterNet, images: Tensor) -> None:
    model._is_replica = True  # type: ignore[assignment]  # as nn.DataParallel marks them
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        model(images)


def test_wrong_parts_are_named() -> None:
    bare: Any = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(TypeError, match=r"gater is a ResNet: wrap .* gaternet\.Gater\(extractor"):
        GaterNet(small_backbone(), bare)
    name: Any = "semhash"
    with pytest.raises(TypeError, match=r"binarizer is 'semhash': give an object"):
        GaterNet(small_backbone(), small_gater(), binarizer=name)
    backbone = small_backbone()
    points: Any = [GatePoint("stage1.block1.bn2", 4), backbone.get_submodule("stage2.block1.bn2")]
    with pytest.raises(TypeError, match="names of submodules or GatePoints, not BatchNorm2d"):
        GaterNet(backbone, small_gater(), points)
