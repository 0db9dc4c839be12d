"""Lowered backbones, all units skipping and all dense, against the masked ones: small networks.

Each breaks a rule that a careless graph pass would take for granted.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from lowered_networks import TOLERANCE, Lowered, lowered, lowered_at, ordinary
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from gaternet.accounting import MacCounter
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UserError
from gaternet.gate_flow import follow
from gaternet.gate_points import Layers, find_gate_points
from gaternet.graph import trace
from gaternet.runtime.layers import DenseConv2d, DenseLinear, GatedConv2d, GatedLinear
from gaternet.runtime.lowering import lower
from gaternet.runtime.units import find_units
from small_networks import SIZE, ResidualNet, conv

pytestmark = pytest.mark.usefixtures("kernels")


class Parts(nn.Module):
    """What the networks below are made of: convs of 16 filters, norms, ReLUs, nothing learned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = conv(3, 16)
        self.conv1, self.conv2, self.conv3 = conv(16, 16), conv(16, 16), conv(16, 16, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.relu, self.overwriting = nn.ReLU(), nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.fc = nn.Linear(16, 5)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class OwnInput(Parts):
    """The residual is the conv's own input: it may not be overwritten while it is read."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm2(self.stem(x)))
        return self.head(self.norm1(self.conv1(x)) + x)


class IdentityOnTheWay(Parts):
    """The shortcut comes first, the branch through a module that does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.same(self.norm1(self.conv1(x))))


class Chain(Parts):
    """Gates may sit behind the conv, the norm, the activation, and at several of them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.norm1(self.conv1(self.stem(x))))
        return self.head(self.conv2(self.relu(x)))


class Sum(Parts):
    """Gates may sit behind the addition, its activation, or both."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.overwriting(self.stem(x))
        y = self.relu(self.same(self.norm1(self.conv1(x)) + x))
        return self.head(self.conv3(y))


class ReadLate(Parts):
    """conv1 runs with the last addition, and reads `x` when the other sum has been made."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        third = self.conv3(x)
        first = self.norm1(self.conv1(x))
        return self.head(first + (self.norm2(self.conv2(third)) + x))


class Overwritten(Parts):
    """conv1's input is overwritten, under another name, before its norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(x)
        self.overwriting(self.same(x))
        return self.head(self.norm1(y) + self.conv3(x))


class OverwrittenResidual(Parts):
    """The residual is no longer rectified when it is added: closed filters do not leave it be."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.conv3(x)
        x.sub_(1.0)
        return self.head(self.relu(self.norm1(self.conv1(y)) + x))


class AddedInPlace(Parts):
    """The branch is added in place, the activation works in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.overwriting(self.stem(x))
        y = self.norm1(self.conv1(x))
        y.add_(x)
        return self.head(self.overwriting(y))


class ReadAfterAnAddition(Parts):
    """The branch is added to in place, and read by the name that it had before."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.overwriting(self.stem(x))
        y = self.norm1(self.conv1(x))
        y.add_(x)
        return self.head(self.conv2(self.relu(y)))


class ResidualOverwritten(Parts):
    """The shortcut is what the addition overwrites; it is read again."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x.add_(self.norm1(self.conv1(x)))
        return self.head(self.conv3(x) + x)


class ReadAgain(Parts):
    """The residual is read after it was added, by a sum and as an output."""

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.relu(self.stem(x))
        y = self.relu(self.norm1(self.conv1(x)) + x)
        z = self.norm2(self.conv2(y)) + y
        return [y, z, self.conv3(F.relu(z) + x)]


class SeenThroughAView(Parts):
    """The residual is read afterwards by a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        rows = x.transpose(2, 3)
        y = self.norm1(self.conv1(self.conv3(x))) + x
        return self.head(y * rows.transpose(2, 3))


class Shared(Parts):
    """A conv that is called twice, once with a residual and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(self.relu(self.stem(x)))))
        x = self.relu(self.conv2(x) + x)
        return self.head(self.conv2(x))


class Doubled(Parts):
    """A sum of something with itself, of three, with a factor, with a number, over an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.norm1(self.conv1(x))
        y = torch.add(self.conv2(y + y), x, alpha=2.0)
        y = self.conv3(y) + 1
        return self.head(y + x.mean((2, 3), keepdim=True) + x)


class Flattened(Parts):
    """`view` of feature maps, which lie channels last here."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(self.stem(x))))
        x = F.adaptive_avg_pool2d(x, 2)
        return self.fc(x.view(x.size(0), -1)[:, :16])


class Shuffled(Parts):
    """Channels change places in between, so gates cannot be followed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(self.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(self.conv2(x) + x)


class Exchanged(Parts):
    """The residual is joined from halves in another order."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        first, second = x.chunk(2, 1)
        y = self.norm1(self.conv1(x)) + torch.cat([second, first], 1)
        return self.head(torch.cat([first, self.conv3(y)[:, :8]], 1))


class ResidualFromTheImages(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(1, 6, 1, 1)[:, :16]
        return self.head(self.norm1(self.conv1(x)) + x)


class SizesAreRead(Parts):
    """Something is scaled to the size of what a unit would have passed over."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.stem(x)))
        small = self.conv3(F.avg_pool2d(F.relu(x), 2))
        scaled = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(scaled + x)


class ByKeyword(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(input=self.norm1(input=self.conv1(input=self.stem(input=x))))
        return self.head(F.relu(input=self.norm2(self.conv2(input=x))))


class Functional(Parts):
    """Convs without a module, one of them with another's weights; a conv of a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.stem(x)))
        x = F.conv2d(F.relu(x), self.conv2.weight, padding=1)
        return self.head(self.norm2(x) + self.conv3(self.conv1.weight[:1]).mean())


class OwnNames(Parts):
    """Submodules of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.unit_0, self.unit_1, self.gate_4 = nn.PReLU(16), conv(16, 16), nn.PReLU(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit_0(self.stem(x))
        return self.head(self.gate_4(self.norm1(self.conv1(x))) + self.unit_1(x))


class Squeezed(Parts):
    """What scales the channels needs all of them before it closes any."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.relu(self.stem(x))))
        x = x * self.conv3(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(self.conv2(self.same(x)))


class Other(Parts):
    """Convs, norms and activations that a unit does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(16, 16, 3, padding="same")
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.conv3 = nn.Conv2d(16, 16, 1, groups=4)
        self.own = nn.InstanceNorm2d(16, affine=True)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(self.stem(x))))
        x = x + self.deep(self.relu(self.same(self.conv2(x))))
        return self.head(F.leaky_relu(self.own(self.conv3(x))))


class DoublingNorm(nn.BatchNorm2d):
    """A norm of somebody's own, which does more than its statistics say."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OtherNorms(Parts):
    """A norm with its own activation is one operation; a subclass of a norm is not that norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(16)
        self.norm2 = DoublingNorm(16, affine=False)
        self.smooth = BatchNormAct2d(16, act_layer=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x))
        y = self.norm2(self.conv1(x)) + x
        return self.head(self.smooth(self.conv2(self.relu(y))))


class Classifier(Parts):
    """What most linear layers are: behind flattened channels, with ReLU and dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(16 * 12, 40), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(40, 24, bias=False), nn.Dropout(), nn.ReLU(), nn.Linear(24, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(self.stem(x))))
        return self.layers(F.adaptive_avg_pool2d(x, (4, 3)))


class NormedFeatures(Parts):
    """Norms behind linear layers, one of a layer that somebody else reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_norm = nn.Linear(16, 40), nn.BatchNorm1d(40)
        self.narrow, self.narrow_norm = nn.Linear(40, 16), nn.SyncBatchNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.stem(x))).mean((2, 3))
        x = self.narrow(self.relu(self.wide_norm(self.wide(x))))
        return self.fc(F.relu(self.narrow_norm(x)) * x)


class ReadByTwo(Parts):
    """A linear layer read twice, once overwritten, one called twice, one that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.idle = nn.Linear(16, 16), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm1(self.conv1(self.stem(x))).mean((2, 3))
        self.idle(x)
        y = self.shared(x)
        first = self.fc(y)
        z = y + self.shared(self.overwriting(y)) + x
        return [first, self.fc(z), y]


class Tokens(Parts):
    """Linear layers on parts of images, (N, H, W, C), (N, L, C), (N · L, C), and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.tokens, self.flat = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.rows(self.norm1(self.conv1(self.stem(x))).permute(0, 2, 3, 1))
        x = self.tokens(self.relu(x).flatten(1, 2))
        x = self.flat(self.relu(x).flatten(0, 1)).view(x.shape)
        return self.fc(F.linear(x.mean(1), self.rows.weight).relu())


class Excited(Parts):
    """Squeeze and excitation by linear layers: a closed channel needs no factor."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(self.relu(self.stem(x))))
        scale = self.excite(self.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return self.head(self.conv2(self.same(x * scale[:, :, None, None])))


class Unflattened(Parts):
    """The outputs of a linear layer are gated where they have become channels."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.to_map = nn.Linear(16, 24), nn.Unflatten(1, (24, 1, 1))
        self.last = conv(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.relu(self.stem(x)).mean((2, 3)))
        return self.last(self.relu(self.to_map(x))).flatten(1)


class OnTheImages(Parts):
    """The first operation overwrites the images."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        return self.head(self.norm1(self.conv1(self.stem(F.relu_(x)))))


CASES = [
    (OwnInput, ("norm1",)),
    (OwnInput, ("norm1", "norm2")),
    (IdentityOnTheWay, ("norm1",)),
    (IdentityOnTheWay, ("stem", "norm1")),
    *((Chain, names) for names in (("conv1",), ("norm1",), ("relu",), ("conv1", "norm1"))),
    *((Chain, names) for names in (("conv1", "relu"), ("norm1", "relu"), ("stem", "same"))),
    (Chain, ("stem", "conv1", "norm1", "same", "relu", "conv2")),
    *((Sum, names) for names in (("same",), ("relu",), ("same", "relu"), ("norm1", "relu"))),
    (Sum, ("conv1", "norm1", "same", "relu", "overwriting")),
    (ReadLate, ("norm1",)),
    (ReadLate, ("norm2", "conv3")),
    (Overwritten, ("norm1",)),
    (OverwrittenResidual, ("norm1",)),
    (AddedInPlace, ("norm1",)),
    (ReadAfterAnAddition, ("norm1",)),
    (ResidualOverwritten, ("norm1",)),
    (ReadAgain, ("norm1", "norm2")),
    (SeenThroughAView, ("norm1", "conv3")),
    (Shared, ("norm1",)),
    (Doubled, ("norm1",)),
    (Flattened, ("norm1",)),
    (Shuffled, ("norm1", "conv2")),
    (Exchanged, ("norm1",)),
    (ResidualFromTheImages, ("norm1",)),
    (SizesAreRead, ("norm1",)),
    (ByKeyword, ("norm1", "norm2")),
    (Functional, ("norm1", "norm2")),
    (OwnNames, ("norm1", "gate_4")),
    (Squeezed, ("same",)),
    (Squeezed, ("norm1", "conv2")),
    (Other, ("norm1", "conv2", "own")),
    (OtherNorms, ("norm1", "norm2", "smooth")),
    (Classifier, ("norm1",)),
    (Classifier, ("relu",)),
    (NormedFeatures, ("norm1",)),
    (ReadByTwo, ("norm1",)),
    (Tokens, ("norm1",)),
    (Excited, ("norm1",)),
    (Excited, ("same",)),
    (Unflattened, ("to_map",)),
    (OnTheImages, ("norm1",)),
]


def check(network: Lowered) -> None:
    for seed, (batch, rate) in enumerate([(1, 0.5), (3, 0.5), (2, 0.0), (4, 1.0), (33, 0.3)]):
        error = network.error(batch, rate, seed)
        assert error <= TOLERANCE, (batch, rate, error)


@pytest.mark.parametrize(
    ("kind", "names"), CASES, ids=[f"{kind.__name__}-{'-'.join(names)}" for kind, names in CASES]
)
def test_it_returns_what_the_masked_network_returns(
    kind: type[Parts], names: tuple[str, ...]
) -> None:
    check(lowered_at(kind(), names, (3, 9, 8)))


def kinds(network: Lowered) -> list[type[nn.Module]]:
    skipping = network.forms["skipping"]
    lowered_layers = GatedConv2d | DenseConv2d | GatedLinear | DenseLinear
    return [type(m) for m in skipping.children() if isinstance(m, lowered_layers)]


def test_whole_units_are_found() -> None:
    """Not only right but worth it: one unit for a conv, its norm, a residual and a ReLU."""
    for name in ("norm1", "same", "relu"):
        stem, first, last, _ = lowered_at(Sum(), [name], (3, 9, 8)).units
        assert stem.relu
        assert stem.norm is None
        assert first.norm is not None
        assert first.relu
        assert first.residual is stem.end
        assert last.end is last.start
    skipping = lowered_at(Sum(), ["norm1"], (3, 9, 8)).forms["skipping"]
    code = str(getattr(skipping, "code", ""))
    assert "relu" not in code
    assert "add" not in code


def test_a_residual_is_copied_only_where_somebody_reads_it_still() -> None:
    def copies(network: Lowered) -> int:
        return str(getattr(network.forms["skipping"], "code", "")).count(".clone()")

    network = ordinary(ResidualNet())
    graph = trace(network, SIZE)
    identity = lowered(network, find_gate_points(graph), graph)
    assert copies(identity) == 0
    assert copies(lowered_at(OwnInput(), ["norm1"])) == 1
    assert copies(lowered_at(ReadLate(), ["norm1"])) == 1
    check(identity)


def test_gates_that_a_norm_follows_close_the_conv_and_not_the_norm() -> None:
    network = lowered_at(Chain(), ["conv1"], (3, 9, 8))
    assert [unit.norm for unit in network.units] == [None, None, None, None]


def test_what_is_no_plain_conv_stays_as_it_is() -> None:
    network = lowered_at(Other(), ["norm1"], (3, 9, 8))
    assert [unit.layer.name for unit in network.units] == ["stem", "deep", "conv3", "fc"]
    assert kinds(network) == [GatedConv2d, DenseConv2d, DenseConv2d, GatedLinear]


def test_linear_layers_are_units_of_features_only() -> None:
    classifier = lowered_at(Classifier(), ["norm1"], (3, 9, 8))
    assert kinds(classifier) == [GatedConv2d] * 2 + [GatedLinear] * 3
    first, second, last = classifier.units[2:]
    assert first.layer.inputs == tuple(gate for gate in range(16) for _ in range(12))
    assert (first.relu, second.relu, last.relu) == (True, True, False)
    normed = lowered_at(NormedFeatures(), ["norm1"], (3, 9, 8)).units[2:]
    assert [unit.norm is not None for unit in normed] == [True, False, False]
    outer = [unit.layer.name for unit in lowered_at(Tokens(), ["norm1"], (3, 9, 8)).units]
    assert outer == ["stem", "conv1", "fc"]


def test_outputs_of_a_linear_layer_may_be_closed() -> None:
    wide = lowered_at(Unflattened(), ["to_map"], (3, 9, 8)).units[1]
    assert wide.layer.outputs == tuple(range(24))
    names = {unit.layer.name: unit for unit in lowered_at(Excited(), ["same"], (3, 9, 8)).units}
    assert names["excite"].layer.outputs == tuple(range(16))
    names = {unit.layer.name: unit for unit in lowered_at(Excited(), ["norm1"], (3, 9, 8)).units}
    assert names["squeeze"].layer.inputs == tuple(range(16))


class Constant(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm1(self.conv1(self.stem(x))) * torch.tensor([2.0]))


def test_a_constant_of_the_forward_is_named() -> None:
    with pytest.raises(UserError, match="_tensor_constant0` is a constant that the forward makes"):
        lowered_at(Constant(), ["norm1"])


@pytest.mark.parametrize("layers", ["inner", "both"])
def test_the_operator_computes_what_is_counted(layers: Layers) -> None:
    """In whole blocks of 16: open inputs · open filters of each call, from its own operands."""
    backbone = timm.create_model("resnet50").eval()
    size = (3, 64, 64)
    points = find_gate_points(trace(backbone, size), layers, 16)
    flow = follow(trace(backbone, size), points)
    network = lower(flow, backbone, find_units(flow, backbone))
    gates = (torch.rand(1, sum(point.gates for point in points)) < 0.5).float()
    opened = torch.cat((gates[0], torch.ones(1)))  # the last, −1, is no gate
    computed = 0

    def count(module: GatedConv2d, operands: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal computed
        pairs = opened[module.input_gates].sum() * opened[module.output_gates].sum()
        computed += int(pairs) * y[0, 0].numel() * module.weight[0, :, :, 0, 0].numel()

    for module in network.modules():
        if isinstance(module, GatedConv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, *size), gates)
    assert computed == MacCounter(flow)(gates.double()).sum()


@pytest.mark.parametrize("dense", [False, True])
def test_what_a_lowered_backbone_holds_lies_where_the_backbone_does(dense: bool) -> None:
    """The meta device stands for a GPU."""
    backbone = CifarResNet(8, widths=(16, 16, 32)).to("meta")
    flow = follow(trace(backbone), find_gate_points(trace(backbone), "both", 8))
    units = find_units(flow, backbone)
    network = lower(flow, backbone, units, units if dense else ())
    held = {name: tensor.device.type for name, tensor in network.state_dict().items()}
    assert any("columns" in name or "input_gates" in name for name in held)
    assert set(held.values()) == {"meta"}
