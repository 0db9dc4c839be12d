"""Local gates: an obvious re-implementation by hand, and the ways in which models are used."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gaternet
from gaternet import LocalGaterNet, gated_cross_entropy
from gaternet.backbones.resnet_cifar import BasicBlock, CifarResNet
from gaternet.binarizers import GateForm, saturating_sigmoid
from gaternet.gate_inputs import GateInput
from gaternet.gate_points import GatePoint, detach
from gaternet.local import Granularity
from gaternet.rivals import GumbelSigmoid, RandomGates, SoftGates

WIDTHS = (4, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])
KEYS = torch.arange(6)
GRANULARITIES: tuple[Granularity, ...] = ("filters", "branches")


def small_backbone() -> CifarResNet:
    return CifarResNet(8, widths=WIDTHS, image_size=8)


def fc2(head: nn.Module) -> nn.Linear:
    layer = head.get_submodule("fc2")
    assert isinstance(layer, nn.Linear)
    return layer


def small_model(granularity: Granularity = "filters") -> LocalGaterNet:
    torch.manual_seed(0)
    model = LocalGaterNet(small_backbone(), granularity=granularity, bottleneck=6)
    for head in model.heads:  # gates that vary between images
        nn.init.normal_(fc2(head).weight, std=3.0)
    return model


@pytest.fixture(params=GRANULARITIES)
def model(request: pytest.FixtureRequest) -> LocalGaterNet:
    return small_model(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def backward(
    model: nn.Module, images: Tensor, compiled: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """Return the gradients of one training step with repeatable gates."""
    run = model if compiled is None else compiled
    logits, gates = run(images, keys=KEYS)
    model.zero_grad()
    gated_cross_entropy(logits, gates, LABELS, sparsity=0.1).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# What a forward is


def head_by_hand(head: nn.Module, features: Tensor) -> Tensor:
    """FC2(ReLU(BatchNorm(FC1(mean over pixels)))) from the head's tensors."""
    state = {name: tensor.detach() for name, tensor in head.state_dict().items()}
    pooled = torch.stack([channel.mean() for image in features for channel in image])
    hidden = pooled.view(features.shape[:2]) @ state["fc1.weight"].T + state["fc1.bias"]
    deviation = (state["norm.running_var"] + 1e-5).sqrt()
    hidden = (hidden - state["norm.running_mean"]) / deviation
    hidden = (hidden * state["norm.weight"] + state["norm.bias"]).clamp(min=0)
    return hidden @ state["fc2.weight"].T + state["fc2.bias"]


def by_hand(
    model: LocalGaterNet, plain: CifarResNet, images: Tensor, form: GateForm
) -> tuple[Tensor, Tensor, Tensor]:
    """A ResNet-8 written out, each unit deciding before its addition: logits, gate logits, gates"""
    x = F.relu(plain.bn(plain.conv(images)))
    decided, opened = [], []
    for stage in (1, 2, 3):
        block = plain.get_submodule(f"stage{stage}.block1")
        assert isinstance(block, BasicBlock)
        inner = F.relu(block.bn1(block.conv1(x)))
        seen = inner if model.granularity == "filters" else x
        logits = head_by_hand(model.heads[stage - 1], seen)
        gates = (logits >= 0).float() if form == GateForm.HARD else saturating_sigmoid(logits)
        rows = []
        for branch, row in zip(block.bn2(block.conv2(inner)), gates, strict=True):
            opening = row.expand(len(branch)) if len(row) == 1 else row
            rows.append(torch.stack([c * g for c, g in zip(branch, opening, strict=True)]))
        x = F.relu(block.shortcut(x) + torch.stack(rows))
        decided.append(logits)
        opened.append(gates)
    return plain.fc(x.mean(dim=(2, 3))), torch.cat(decided, 1), torch.cat(opened, 1)


@pytest.mark.parametrize("form", [GateForm.HARD, GateForm.SOFT])
@torch.no_grad()
def test_equals_the_network_written_out(
    model: LocalGaterNet, images: Tensor, form: GateForm
) -> None:
    for _ in range(3):  # statistics other than the first
        model(torch.randn(20, 3, 8, 8))
    model.eval()
    for head, columns in zip(model.heads, model.slices.values(), strict=True):
        fc2(head).bias.sub_(model.decide(images).logits[:, columns].mean(dim=0))
    plain = small_backbone().eval()
    plain.load_state_dict(model.backbone.state_dict())
    expected = by_hand(model, plain, images, form)
    assert expected[2].std(dim=0).min() > 0.01  # gates do vary
    logits, decision = model.evaluate(images, form)
    torch.testing.assert_close((logits, *decision), expected)
    again = model.decide(images, form)
    assert torch.equal(again.gates, decision.gates)
    assert torch.equal(again.logits, decision.logits)
    if form == GateForm.HARD:
        torch.testing.assert_close(tuple(model(images)), (expected[0], expected[2]))


@torch.no_grad()
def test_a_closed_branch_is_the_exact_shortcut(images: Tensor) -> None:
    model = small_model("branches").eval()
    plain = small_backbone().eval()
    plain.load_state_dict(model.backbone.state_dict())
    model.binarizer.threshold = 1e9
    x = F.relu(plain.bn(plain.conv(images)))
    for stage in (1, 2, 3):
        block = plain.get_submodule(f"stage{stage}.block1")
        assert isinstance(block, BasicBlock)
        x = F.relu(block.shortcut(x))
    logits, gates = model(images)
    assert not gates.any()
    assert torch.equal(logits, plain.fc(x.mean(dim=(2, 3))))


def test_given_gates_replace_the_decisions(model: LocalGaterNet, images: Tensor) -> None:
    model.eval()
    plain = small_backbone().eval()
    plain.load_state_dict(model.backbone.state_dict())
    chosen = model(images)
    model(images)  # with gradients: what it decided lives on, and must not take part
    again = model(images, gates=chosen.gates)
    assert torch.equal(again.logits, chosen.logits)
    opened = model(images, gates=torch.ones(model.gate_count))
    assert torch.equal(opened.logits, plain(images))
    assert torch.equal(model.backbone(images), plain(images))
    with torch.no_grad():
        model(images)
        assert isinstance(model.backbone, CifarResNet)
        expected = plain.forward_features(images)
        assert torch.equal(model.backbone.forward_features(images), expected)


def test_training_step_reaches_every_head(model: LocalGaterNet, images: Tensor) -> None:
    gradients = backward(model, images)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for index in range(3):
        assert gradients[f"heads.{index}.fc1.weight"].any()
        assert gradients[f"heads.{index}.fc2.bias"].any()


def test_training_gates_are_the_samples_own_and_mixed_by_sample(images: Tensor) -> None:
    model = small_model()
    many = images.repeat(40, 1, 1, 1)
    keys = torch.arange(240)
    gates = model(many, keys=keys).gates
    assert torch.equal(model(many, keys=keys).gates, gates)
    assert not torch.equal(model(many, keys=keys + 240).gates, gates)
    for keyed in (keys, None):
        parts = model(many, keys=keyed).gates.split(WIDTHS, dim=1)
        hard = [((part == 0) | (part == 1)).all(dim=1) for part in parts]
        soft = ~(hard[0] | hard[1] | hard[2])
        assert 60 < soft.sum() < 180
        both = hard[1] & hard[2]  # eight gates that are all saturated by chance are rare
        assert (both == hard[1]).float().mean() > 0.9


def test_dropout_comes_after_the_gates_that_are_returned(images: Tensor) -> None:
    model = small_model()
    model.binarizer = SoftGates()
    expected = model(images, keys=KEYS)
    model.dropout.set_rate(0.9)
    dropped = model(images, keys=KEYS)
    first = slice(0, WIDTHS[0])  # later gates see what was dropped before them
    assert torch.equal(dropped.gates[:, first], expected.gates[:, first])
    assert not torch.equal(dropped.logits, expected.logits)
    assert not torch.equal(dropped.gates, expected.gates)
    model.eval()
    assert torch.equal(model.decide(images).gates, model(images).gates)


def test_random_gates_are_repeatable_by_key(model: LocalGaterNet, images: Tensor) -> None:
    model.binarizer = RandomGates(0.5)
    model.eval()
    many, keys = images.repeat(50, 1, 1, 1), torch.arange(300)
    gates = model(many, keys=keys).gates
    assert torch.equal(gates, model.decide(many, keys=keys).gates)
    assert gates.mean().item() == pytest.approx(0.5, abs=0.06)
    parts = gates.split([point.gates for point in model.points], dim=1)
    assert not torch.equal(parts[1], parts[2])


# Where gates are decided


def test_inputs_and_gates_of_both_granularities() -> None:
    filters, branches = small_model("filters"), small_model("branches")
    assert [given.module for given in filters.inputs] == [
        f"stage{stage}.block1.conv2" for stage in (1, 2, 3)
    ]
    assert [given.module for given in branches.inputs] == [
        f"stage{stage}.block1.conv1" for stage in (1, 2, 3)
    ]
    assert [given.channels for given in filters.inputs] == [4, 8, 8]
    assert [given.channels for given in branches.inputs] == [4, 4, 8]
    assert filters.gate_count == 20
    assert branches.gate_count == 3
    assert branches.points[1] == GatePoint("stage2.block1.bn2", channels=8, block=8)
    assert "20 gates at 3 points" in repr(filters)
    assert "3 heads → 6 → gates of branches" in repr(branches)


@pytest.mark.parametrize(
    ("name", "granularity", "gates", "first"),
    [
        ("resnet101", "branches", 33, GateInput("layer1.0.conv1", "input", 64, 1)),
        ("resnetv2_50", "filters", 15104, GateInput("stages.0.blocks.0.conv3", "input", 64, 1)),
        ("resnetv2_50", "branches", 16, None),
        ("inception_v4", "filters", 16608, GateInput("features.3.maxpool", "input", 64, 1)),
        ("convnext_tiny", "filters", 6624, GateInput("stages.0.blocks.0.mlp.fc2", "input", 384, 3)),
        ("convnext_tiny", "branches", 18, GateInput("stages.0.blocks.0.conv_dw", "input", 96, 1)),
        ("ghostnet_100", "filters", 1488, None),
        ("rexnet_100", "branches", 11, None),
    ],
)
def test_gates_of_timms_networks(
    name: str, granularity: Granularity, gates: int, first: GateInput | None
) -> None:
    with torch.device("meta"):
        model = LocalGaterNet(timm.create_model(name), granularity=granularity)
    assert model.gate_count == gates
    assert first is None or model.inputs[0] == first


def test_channels_last_features_are_pooled_over_pixels() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("convnext_atto", num_classes=6, conv_mlp=False)
    model = LocalGaterNet(backbone, input_size=(3, 32, 32)).eval()
    index = 3
    given = model.inputs[index]
    assert given.channel_dim == 3
    seen = []
    module = model.backbone.get_submodule(given.module)
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        decision = model.decide(torch.randn(2, 3, 32, 32))
    (features,) = seen
    pixels = features.reshape(2, -1, given.channels)
    expected = head_by_hand(model.heads[index], pixels.transpose(1, 2)[..., None])
    columns = model.slices[model.points[index].name]
    torch.testing.assert_close(decision.logits[:, columns], expected)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="granularity is 'layers'"):
        LocalGaterNet(small_backbone(), granularity="layers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bottleneck is 0"):
        LocalGaterNet(small_backbone(), bottleneck=0)
    with pytest.raises(ValueError, match=r"`bn` is on no branch beside a shortcut"):
        LocalGaterNet(small_backbone(), ["bn"], "branches")
    blocks = [GatePoint("stage2.block1.bn2", channels=8, block=4)]
    with pytest.raises(ValueError, match="a branch has one gate, not 2"):
        LocalGaterNet(small_backbone(), blocks, "branches")
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    with pytest.raises(ValueError, match="has no residual branches"):
        LocalGaterNet(chain, granularity="branches", input_size=(3, 8, 8))
    assert LocalGaterNet(chain, input_size=(3, 8, 8)).gate_count == 9


def test_opening_bias_is_the_first_logit(images: Tensor) -> None:
    model = LocalGaterNet(
        small_backbone(), granularity="branches", opening_bias=1.9, binarizer=GumbelSigmoid()
    )
    for head in model.heads:
        nn.init.zeros_(fc2(head).weight)
    assert model.decide(images).logits.unique().tolist() == [pytest.approx(1.9)]
    gates = model(images.repeat(500, 1, 1, 1), keys=torch.arange(3000)).gates
    assert gates.mean().item() == pytest.approx(0.87, abs=0.02)


# Ways of use


def test_state_dict_keeps_the_backbones_keys(model: LocalGaterNet) -> None:
    keys = {key for key in model.state_dict() if key.startswith("backbone.")}
    assert keys == {f"backbone.{key}" for key in small_backbone().state_dict()}
    assert "heads.2.fc2.bias" in model.state_dict()


def test_copies_decide_for_themselves(model: LocalGaterNet, images: Tensor) -> None:
    model(images)  # what it decided has a gradient path and lives on
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.eval()
        with torch.no_grad():
            expected = copy.deepcopy(model).eval()(images)
            assert torch.equal(other(images).gates, expected.gates)
            nn.init.constant_(fc2(other.heads[0]).bias, 100.0)
            assert other(images).gates[:, 0].all()
            assert torch.equal(copy.deepcopy(model).eval()(images).gates, expected.gates)


def test_detached_backbone_is_plain(model: LocalGaterNet, images: Tensor) -> None:
    backbone = model.backbone
    detach(backbone)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    LocalGaterNet(backbone)(images)


class Checkpointed(nn.Sequential):
    """A stage that is run again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def test_activation_checkpointing_has_the_same_gradients(
    model: LocalGaterNet, images: Tensor
) -> None:
    other = copy.deepcopy(model)
    for stage in ("stage1", "stage2", "stage3"):
        other.backbone.get_submodule(stage).__class__ = Checkpointed
    expected = backward(model, images)
    for name, gradient in backward(other, images).items():
        torch.testing.assert_close(gradient, expected[name])


def test_autocast_keeps_gates_exact(model: LocalGaterNet, images: Tensor) -> None:
    model.binarizer.set_stage(noise_scale=1.0, hard_share=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        logits, gates = model(images, keys=KEYS)
    assert logits.dtype == torch.bfloat16
    assert gates.dtype == torch.float32
    assert set(gates.unique().tolist()) == {0.0, 1.0}


# Inductor compiles C++ kernels: minutes where other processes share the cores.
INDUCTOR = pytest.param("inductor", marks=(pytest.mark.slow, pytest.mark.timeout(900)))


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiles_whole(model: LocalGaterNet, images: Tensor, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    model.dropout.set_rate(0.2)
    before = copy.deepcopy(model.state_dict())
    expected = backward(model, images)
    model.load_state_dict(before)
    for name, gradient in backward(model, images, compiled).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    model.dropout.set_rate(0.4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(images, keys=KEYS)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(tuple(compiled(images)), tuple(model(images)))


def test_exports_with_a_dynamic_batch(model: LocalGaterNet, images: Tensor) -> None:
    model.eval()
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(
        model, (), {"images": images}, dynamic_shapes=shapes, strict=False
    )
    some = torch.randn(4, 3, 8, 8)
    result = gaternet.verify(model, lambda i: program.module()(images=i), some)
    assert result.agrees(1e-6)
