"""Gate points: the structural rule against the paper's counts, the hooks against hand-made sums."""

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.gate_points import (
    GatePoint,
    attach,
    detach,
    find_gate_points,
    name_gate_points,
)
from gaternet.graph import trace

SIZE = (3, 8, 8)


def points_of(backbone: nn.Module, size: tuple[int, int, int] | None = SIZE) -> dict[str, int]:
    return {point.name: point.gates for point in find_gate_points(trace(backbone, size))}


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Block(nn.Module):
    """norm/conv + residual, whatever the branch is."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


def residual_net(width: int = 4) -> nn.Sequential:
    """Stem, an identity block and a projection block: gates at 1.branch.4 and 2.branch.4."""
    branches = [
        nn.Sequential(conv(w, w), nn.BatchNorm2d(w), nn.ReLU(), conv(w, v), nn.BatchNorm2d(v))
        for w, v in ((width, width), (width, 2 * width))
    ]
    return nn.Sequential(
        conv(3, width),
        Block(branches[0]),
        Block(branches[1], conv(width, 2 * width, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 5),
    )


# --- the structural rule -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gates"),
    [("resnet34", 3_776), ("resnet101", 32_512), ("resnet152", 47_872), ("inception_v4", 16_608)],
)
def test_imagenet_backbones_have_the_papers_gated_filters(name: str, gates: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name)
    assert sum(points_of(backbone, None).values()) == gates


def test_resnet50_gates_the_last_norm_of_every_bottleneck() -> None:
    with torch.device("meta"):
        points = points_of(timm.create_model("resnet50"), None)
    assert sum(points.values()) == 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048
    assert list(points)[:2] == ["layer1.0.bn3", "layer1.1.bn3"]


def test_squeeze_and_excitation_does_not_move_the_gates() -> None:
    with torch.device("meta"):
        plain, squeezed = timm.create_model("resnet34"), timm.create_model("seresnet34")
    assert points_of(squeezed, None) == points_of(plain, None)


@pytest.mark.parametrize(("depth", "gates"), [(20, 336), (56, 1_008)])
@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_cifar_resnets_have_the_papers_gated_filters(
    depth: int, gates: int, shortcut: str
) -> None:
    points = points_of(CifarResNet(depth, shortcut=shortcut), None)  # type: ignore[arg-type]
    assert sum(points.values()) == gates
    assert list(points)[-1] == f"stage3.block{(depth - 2) // 6}.bn2"


def test_a_pre_activation_branch_is_gated_at_its_last_conv() -> None:
    branch = nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4)
    )
    assert points_of(nn.Sequential(conv(3, 4), Block(branch))) == {"1.branch.5": 4}


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, as_list: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = conv(inputs, growth)
        self.as_list = as_list

    def forward(self, x: Tensor) -> Tensor:
        new = F.dropout(self.conv(F.relu(self.norm(x))), 0.2, self.training)
        return new if self.as_list else torch.cat([x, new], 1)


class DenseBlock(nn.Module):
    """n dense layers; features grow one by one, or are kept in a list and joined for each layer."""

    def __init__(self, n: int, inputs: int, growth: int, as_list: bool) -> None:
        super().__init__()
        layers = (DenseLayer(inputs + i * growth, growth, as_list) for i in range(n))
        self.layers = nn.ModuleList(layers)
        self.as_list = as_list

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            if self.as_list:
                features.append(layer(torch.cat(features, 1)))
            else:
                x = layer(x)
        return torch.cat(features, 1) if self.as_list else x


@pytest.mark.parametrize("as_list", [True, False])
def test_a_densenet_gates_the_new_channels_of_all_layers_but_the_first(as_list: bool) -> None:
    n, growth = 4, 3
    widths = [6, 8, 10]
    blocks = [DenseBlock(n, width, growth, as_list) for width in widths]
    steps = [conv(width + n * growth, new, 1) for width, new in zip(widths, (8, 10, 5), strict=True)]
    backbone = nn.Sequential(
        conv(3, 6), blocks[0], steps[0], nn.AvgPool2d(2), blocks[1], steps[1], blocks[2], steps[2]
    )
    points = points_of(backbone)
    assert sum(points.values()) == 3 * (n - 1) * growth
    assert list(points)[:3] == [f"1.layers.{i}.conv" for i in (1, 2, 3)]


class ShakeShake(nn.Module):
    def __init__(self, inner_first: bool) -> None:
        super().__init__()
        self.branch1, self.branch2 = (
            nn.Sequential(nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4))
            for _ in range(2)
        )
        self.inner_first = inner_first

    def forward(self, x: Tensor) -> Tensor:
        a, b = 0.3 * self.branch1(x), 0.7 * self.branch2(x)
        return x + (a + b) if self.inner_first else x + a + b


@pytest.mark.parametrize("inner_first", [True, False])
def test_shake_shake_gates_both_branches(inner_first: bool) -> None:
    backbone = nn.Sequential(conv(3, 4), ShakeShake(inner_first))
    assert points_of(backbone) == {"1.branch1.4": 4, "1.branch2.4": 4}


class RepVgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.norm = conv(4, 4), conv(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(x) + self.norm(x))


def test_single_convs_side_by_side_are_gated_at_their_sum() -> None:
    assert points_of(nn.Sequential(conv(3, 4), RepVgg())) == {"1": 4}


def test_one_conv_and_a_shortcut_are_a_residual_block() -> None:
    assert points_of(nn.Sequential(conv(3, 4), Block(conv(4, 4)))) == {"1.branch": 4}


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(4, 3), nn.Sequential(conv(4, 2, 1), conv(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.a(x), self.b(x), F.max_pool2d(x, 3, 1, 1)), 1)


def test_other_concatenations_are_gated_at_their_output() -> None:
    assert points_of(nn.Sequential(conv(3, 4), Inception(), conv(12, 2))) == {"1": 12}


def test_a_concatenation_without_a_name_is_gated_at_its_parts() -> None:
    class Joined(Inception):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum(1, keepdim=True) + 1

    assert points_of(nn.Sequential(conv(3, 4), Joined())) == {"1.a": 3, "1.b.1": 5}


def test_a_plain_chain_is_gated_after_norm_and_activation() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(6, 7), nn.BatchNorm2d(7)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)

    vgg = nn.Sequential(
        *(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(conv(4, 5), nn.Sigmoid(), conv(5, 6), Functional()),
        *(nn.Flatten(), nn.Linear(28, 3)),
    )
    assert points_of(vgg) == {"2": 4, "5": 5, "6": 6, "7.norm": 7}


def test_channels_last_layers_are_gated_where_the_output_is_channels_first() -> None:
    with torch.device("meta"):
        convnext = timm.create_model("convnext_atto_ols", drop_path_rate=0.1)
    names = list(points_of(convnext, None))
    assert names[0] == "stages.0.blocks.0.mlp.fc2"  # a 1×1 conv in this one
    with torch.device("meta"):
        convnext = timm.create_model("convnext_tiny", drop_path_rate=0.1)
    points = points_of(convnext, None)
    assert list(points)[0] == "stages.0.blocks.0.drop_path"
    assert sum(points.values()) == 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768


def test_a_branch_that_no_submodule_hands_out_is_refused_with_the_reason() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(F.relu(self.conv(x)))

    with pytest.raises(ValueError, match=r"`1\.conv`.* called 2 times.*Name the gate points"):
        points_of(nn.Sequential(conv(3, 4), Shared()))


def test_a_backbone_without_gate_points_is_refused() -> None:
    with pytest.raises(ValueError, match="name the gate points"):
        points_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gates"),
    [
        # growth · Σ (layers of a block − 1)
        ("densenet121", 32 * (5 + 11 + 23 + 15)),
        ("resnext50_32x4d", 15_104),
        ("resnetblur50", 15_104),
        ("resnetv2_50", 15_104),
        # channels · blocks with a shortcut, per stage
        ("mobilenetv2_100", 24 + 2 * 32 + 3 * 64 + 2 * 96 + 2 * 160),
        ("mobilenetv3_large_100", 16 + 24 + 2 * 40 + 3 * 80 + 112 + 2 * 160),
        ("efficientnet_b0", 24 + 40 + 2 * 80 + 2 * 112 + 3 * 192),
        ("regnety_008", 64 + 3 * 128 + 8 * 320 + 2 * 768),
        ("repvgg_a0", 64 + 2 * 48 + 4 * 96 + 14 * 192 + 1280),
        ("vgg16_bn", 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096),
        ("efficientnetv2_rw_t", 4560),
        ("hrnet_w18_small", 5632),
    ],
)
def test_timm_families(name: str, gates: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name)
    assert sum(points_of(backbone, None).values()) == gates


# --- points by name ----------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.never = conv(3, 4), conv(4, 4), conv(4, 4)
        self.pair, self.overwrites = Pair(), nn.ReLU(inplace=True)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.pair(self.twice(self.twice(self.stem(x))))
        x = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + y
        return self.head(x + self.overwrites(x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stem", "steam"], r"no submodule `steam`; near it: `stem`"),
        (["stem", "stem"], r"`stem` is named twice"),
        (["twice"], r"`twice` .* called 2 times"),
        (["never"], r"`never` .* called 0 times"),
        (["pair"], r"`pair` .* not one tensor"),
        (["overwrites"], r"`overwrites` .* overwrites its input"),
        (["linear"], r"`linear` .* \(N, H, W, C\), not \(N, C, H, W\)"),
        (["head.2"], r"`head\.2` .* \(2, 2\), not \(N, C, H, W\)"),
        (["head", "head.2"], r"not \(N, C, H, W\)"),
        ([], r"no submodule is named"),
        (lambda name: name.startswith("nothing"), r"no submodule is named"),
    ],
)
def test_names_that_cannot_be_gate_points(
    names: list[str] | Callable[[str], bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        name_gate_points(trace(Odd(), SIZE), names)


def test_two_names_of_one_output_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`1\.branch` and `1\.branch\.4` are one and the same"):
        name_gate_points(trace(residual_net(), SIZE), ["1.branch", "1.branch.4"])


def test_a_part_of_a_submodule_that_is_one_operation_points_to_it() -> None:
    with torch.device("meta"):
        graph = trace(timm.create_model("mobilenetv1_100"))
    with pytest.raises(ValueError, match=r"`bn1\.act` .* part of `bn1`"):
        name_gate_points(graph, ["bn1.act"])


def test_names_and_predicates_come_in_the_order_of_execution() -> None:
    graph = trace(residual_net(), SIZE)
    points = (GatePoint("1.branch.1", 4), GatePoint("2.branch.4", 8))
    assert name_gate_points(graph, ["2.branch.4", "1.branch.1"]) == points
    assert name_gate_points(graph, lambda name: name in ("2.branch.4", "1.branch.1")) == points


def test_blocks_must_divide_the_channels() -> None:
    assert GatePoint("a", 6, block=3).gates == 2
    with pytest.raises(ValueError, match="`a`: 6 channels"):
        GatePoint("a", 6, block=4)


# --- the hooks ---------------------------------------------------------------------------------


def gated(backbone: nn.Module) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    holder = attach(backbone, find_gate_points(trace(backbone, SIZE)))

    def forward(images: Tensor, gates: Tensor) -> Tensor:
        holder.arm(gates)
        return backbone(images)

    return backbone, forward


def by_hand(net: nn.Sequential, images: Tensor, gates: Tensor) -> Tensor:
    x, start = net[0](images), 0
    for block in (net[1], net[2]):
        branch = block.branch(x)
        for sample in range(len(x)):
            for channel in range(branch.shape[1]):
                branch[sample, channel] = branch[sample, channel] * gates[sample, start + channel]
        start += branch.shape[1]
        x = F.relu(block.shortcut(x) + branch)
    return net[3:](x)


@pytest.mark.parametrize("training", [True, False])
def test_gated_forward_and_gradients_equal_those_made_by_hand(training: bool) -> None:
    net = residual_net().train(training)
    plain = copy.deepcopy(net)
    _, forward = gated(net)
    images, gates = torch.randn(3, *SIZE), torch.rand(3, 12, requires_grad=True)
    mine = forward(images, gates)
    theirs = by_hand(plain, images, gates)
    torch.testing.assert_close(mine, theirs)
    (gradient,) = torch.autograd.grad(mine.square().sum(), gates)
    (expected,) = torch.autograd.grad(theirs.square().sum(), gates)
    torch.testing.assert_close(gradient, expected)


def test_a_closed_gate_gives_exactly_zero_and_its_filter_no_gradient() -> None:
    net, forward = gated(residual_net())
    seen: list[Tensor] = []
    net.get_submodule("1.branch.4").register_forward_hook(lambda m, a, out: seen.append(out))
    gates = torch.ones(3, 12)
    gates[:, 1], gates[0, 2] = 0, 0
    forward(torch.randn(3, *SIZE), gates).sum().backward()
    assert (seen[0][:, 1] == 0).all()
    assert (seen[0][0, 2] == 0).all()
    assert (seen[0][1:, 2] != 0).any()
    weight = net.get_submodule("1.branch.3").weight
    assert (weight.grad[1] == 0).all()  # type: ignore[index, union-attr]
    assert (weight.grad[2] != 0).any()  # type: ignore[index, union-attr]


def test_the_backbone_by_itself_is_the_plain_network() -> None:
    net = residual_net().eval()
    images = torch.randn(2, *SIZE)
    expected, keys = net(images), list(net.state_dict())
    _, forward = gated(net)
    assert not torch.equal(forward(images, torch.zeros(2, 12)), expected)
    assert torch.equal(net(images), expected)
    assert torch.equal(forward(images, torch.ones(2, 12)), expected)
    assert torch.equal(net(images), expected)
    assert list(net.state_dict()) == keys


def test_one_gate_can_hold_a_block_of_channels() -> None:
    net = residual_net().eval()
    blocks, single = copy.deepcopy(net), copy.deepcopy(net)
    holder = attach(blocks, [GatePoint("1.branch.4", 4, block=2), GatePoint("2.branch.4", 8, 4)])
    _, forward = gated(single)
    images, gates = torch.randn(2, *SIZE), torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    holder.arm(gates)
    wide = torch.stack([gates[:, i] for i in (0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)], 1)
    torch.testing.assert_close(blocks(images), forward(images, wide))


def test_gates_do_not_promote_the_backbones_precision() -> None:
    net, forward = gated(residual_net().bfloat16())
    assert forward(torch.randn(2, *SIZE, dtype=torch.bfloat16), torch.ones(2, 12)).dtype == (
        torch.bfloat16
    )


def test_attaching_twice_names_the_point_and_detaching_takes_all_away() -> None:
    net, _ = gated(residual_net())
    with pytest.raises(ValueError, match=r"already gated at `1\.branch\.4`"):
        attach(net, [GatePoint("1.branch.4", 4)])
    detach(net)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    attach(net, [GatePoint("1.branch.4", 4)])


def test_attaching_to_an_unknown_submodule_leaves_no_hooks() -> None:
    net = residual_net()
    with pytest.raises(ValueError, match="no submodule `nowhere`"):
        attach(net, [GatePoint("1.branch.4", 4), GatePoint("nowhere", 4)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_has_gates_of_its_own(
    clone: Callable[[list[object]], tuple[nn.Module, object]],
) -> None:
    net = residual_net().eval()
    holder = attach(net, find_gate_points(trace(net, SIZE)))
    images = torch.randn(2, *SIZE)
    gates = torch.zeros(2, 12, requires_grad=True) * 1
    holder.arm(gates)
    closed = net(images)
    other, other_holder = clone([net, holder])
    assert other_holder.gates is None  # type: ignore[attr-defined]
    other_holder.arm(torch.ones(2, 12))  # type: ignore[attr-defined]
    assert not torch.equal(other(images), closed)
    assert holder.gates is gates


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    net = residual_net()

    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = checkpoint(layer, x, use_reentrant=False) if isinstance(layer, Block) else (
                    layer(x)
                )
            return x

    saving = Checkpointed(*copy.deepcopy(net))
    images, values = torch.randn(3, *SIZE), torch.rand(3, 12)
    gradients = []
    for backbone in (net, saving):
        _, forward = gated(backbone)
        gates = values.clone().requires_grad_()
        forward(images, gates).square().sum().backward()
        gradients.append([gates.grad, *(p.grad for p in backbone.parameters())])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


class Armed(nn.Module):
    """The least of a gated model: what `GaterNet.forward` does with the holder."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = residual_net()
        self.holder = attach(self.backbone, find_gate_points(trace(self.backbone, SIZE)))

    def forward(self, images: Tensor, gates: Tensor) -> Tensor:
        self.holder.arm(gates)
        logits = self.backbone(images)
        if not torch.is_grad_enabled():
            self.holder.clear()
        return logits


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_into_one_graph(training: bool) -> None:
    model = Armed().train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 2):
        images, gates = torch.randn(batch, *SIZE), torch.rand(batch, 12)
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(compiled(images, gates), model(images, gates))


def test_it_exports_with_a_dynamic_batch() -> None:
    model = Armed().eval()
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            model,
            (torch.randn(2, *SIZE), torch.rand(2, 12)),
            dynamic_shapes=({0: batch}, {0: batch}),
            strict=False,
        ).module()
        for n in (1, 5):
            images, gates = torch.randn(n, *SIZE), torch.rand(n, 12)
            torch.testing.assert_close(program(images, gates), model(images, gates))
