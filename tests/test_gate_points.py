"""Gate points by name, and the hooks against the same network gated by hand."""

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
    UNGATED,
    GatePoint,
    attach,
    detach,
    find_gate_points,
    name_gate_points,
)
from gaternet.graph import trace
from small_networks import SIZE, Block, ResidualNet, conv

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
        name_gate_points(trace(ResidualNet(), SIZE), ["1.branch", "1.branch.4"])


def test_a_part_of_a_submodule_that_is_one_operation_points_to_it() -> None:
    with torch.device("meta"):
        graph = trace(timm.create_model("mobilenetv1_100"))
    with pytest.raises(ValueError, match=r"`bn1\.act` .* part of `bn1`"):
        name_gate_points(graph, ["bn1.act"])


def test_names_and_predicates_come_in_the_order_of_execution() -> None:
    graph = trace(ResidualNet(), SIZE)
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
    stem, *blocks, pool, flatten, head = net
    x, start = stem(images), 0
    for block in blocks:
        assert isinstance(block, Block)
        branch, shortcut = block.branch(x), block.shortcut(x)
        filters = [branch[:, i] * gates[:, start + i, None, None] for i in range(branch.shape[1])]
        start += len(filters)
        x = F.relu(shortcut + torch.stack(filters, 1))
    return head(flatten(pool(x)))


@pytest.mark.parametrize("training", [True, False])
def test_gated_forward_and_gradients_equal_those_made_by_hand(training: bool) -> None:
    net = ResidualNet().train(training)
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
    net, forward = gated(ResidualNet())
    seen: list[Tensor] = []
    net.get_submodule("1.branch.4").register_forward_hook(lambda m, a, out: seen.append(out))
    gates = torch.ones(3, 12)
    gates[:, 1], gates[0, 2] = 0, 0
    forward(torch.randn(3, *SIZE), gates).sum().backward()
    assert (seen[0][:, 1] == 0).all()
    assert (seen[0][0, 2] == 0).all()
    assert (seen[0][1:, 2] != 0).any()
    gradient = dict(net.named_parameters())["1.branch.3.weight"].grad
    assert gradient is not None
    assert (gradient[1] == 0).all()
    assert (gradient[2] != 0).any()


def test_the_backbone_by_itself_is_the_plain_network() -> None:
    net = ResidualNet().eval()
    images = torch.randn(2, *SIZE)
    expected, keys = net(images), list(net.state_dict())
    _, forward = gated(net)
    assert not torch.equal(forward(images, torch.zeros(2, 12)), expected)
    assert torch.equal(net(images), expected)
    assert torch.equal(forward(images, torch.ones(2, 12)), expected)
    assert torch.equal(net(images), expected)
    assert list(net.state_dict()) == keys


def test_one_gate_can_hold_a_block_of_channels() -> None:
    net = ResidualNet().eval()
    blocks, single = copy.deepcopy(net), copy.deepcopy(net)
    holder = attach(blocks, [GatePoint("1.branch.4", 4, block=2), GatePoint("2.branch.4", 8, 4)])
    _, forward = gated(single)
    images, gates = torch.randn(2, *SIZE), torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    holder.arm(gates)
    wide = torch.stack([gates[:, i] for i in (0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)], 1)
    torch.testing.assert_close(blocks(images), forward(images, wide))


def test_gates_do_not_promote_the_backbones_precision() -> None:
    _, forward = gated(ResidualNet().bfloat16())
    images = torch.randn(2, *SIZE, dtype=torch.bfloat16)
    assert forward(images, torch.ones(2, 12)).dtype == torch.bfloat16


def test_attaching_twice_names_the_point_and_detaching_takes_all_away() -> None:
    net, _ = gated(ResidualNet())
    with pytest.raises(ValueError, match=r"gated, at `1\.branch\.4`: .*gaternet\.detach"):
        attach(net, [GatePoint("1.branch.4", 4)])
    detach(net)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    attach(net, [GatePoint("1.branch.4", 4)])


def test_attaching_to_an_unknown_submodule_leaves_no_hooks() -> None:
    net = ResidualNet()
    with pytest.raises(ValueError, match="no submodule `nowhere`"):
        attach(net, [GatePoint("1.branch.4", 4), GatePoint("nowhere", 4)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_has_gates_of_its_own(
    clone: Callable[[list[object]], tuple[nn.Module, object]],
) -> None:
    net = ResidualNet().eval()
    holder = attach(net, find_gate_points(trace(net, SIZE)))
    images = torch.randn(2, *SIZE)
    gates = torch.zeros(2, 12, requires_grad=True) * 1
    holder.arm(gates)
    closed = net(images)
    other, other_holder = clone([net, holder])
    assert other_holder.gates is None  # type: ignore[attr-defined]
    other_holder.arm(torch.ones(2, 12))  # type: ignore[attr-defined]
    assert not torch.equal(other(images), closed)
    assert holder.gates is not None
    assert all(part is not None and part.grad_fn is not None for part in holder.gates)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    net = ResidualNet()

    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = (
                    checkpoint(layer, x, use_reentrant=False)
                    if isinstance(layer, Block)
                    else (layer(x))
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
        self.backbone = ResidualNet()
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


def test_gates_by_channel_are_trained_with_after_an_evaluation_elsewhere() -> None:
    """What is moved in inference mode cannot be trained with; the meta device stands for a GPU."""
    backbone = CifarResNet(8, widths=(4, 4, 4)).to("meta")
    point = GatePoint("stage1.block1.bn2", 4, gate_of=(0, UNGATED, 1, 1))
    holder = attach(backbone, [point])
    images, gates = (torch.rand(shape, device="meta") for shape in ((2, 3, 32, 32), (2, 2)))
    with torch.inference_mode():
        holder.arm(gates)
        backbone(images)
    gates = torch.rand(2, 2, device="meta").requires_grad_()
    holder.arm(gates)
    backbone(torch.rand(2, 3, 32, 32, device="meta")).sum().backward()
    assert gates.grad is not None
