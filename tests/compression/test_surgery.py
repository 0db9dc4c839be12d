"""What becomes of single layers, by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaternet import GaterNet, UserError, compress, trace
from gaternet.compression import plan
from gaternet.compression.layers import Constant, Scatter
from gaternet.rivals import SoftGates
from random_gates import columns_of, distance, gated, parameters, record_with
from small_networks import Block, ResidualNet, conv


def head() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def network(small: GaterNet) -> nn.Module:
    return small.backbone.get_submodule("network")


def of_type(small: GaterNet, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in small.modules() if isinstance(module, kind)]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6), nn.ReLU(), head())


def test_conv_norm_relu_conv_is_sliced_as_by_hand() -> None:
    backbone = chain()
    model = gated(backbone, (3, 8, 8), ["1"])
    record = record_with(model, off=[1, 3], on=[2])
    small = compress(model, record)
    left = network(small)
    kept = [0, 2]
    before, after = backbone.state_dict(), left.state_dict()
    norm = (f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    for name in ("0.weight", "0.bias", *norm):
        assert torch.equal(after[name], before[name][kept])
    assert torch.equal(after["3.weight"], before["3.weight"][:, kept])
    assert torch.equal(after["3.bias"], before["3.bias"])
    for name in ("head.fc2.weight", "head.fc2.bias"):
        assert torch.equal(small.gater.get_parameter(name), model.gater.get_parameter(name)[[0]])
    assert columns_of(small) == [0]
    assert small.points[0].gate_of == (0, -1)
    assert distance(model, small, record, 8) < 1e-12
    # 2 of 4 filters with norm on one side, their inputs on the other, 3 of 4 gates of 5 each
    assert parameters(model) - parameters(small) == 2 * (27 + 1 + 2) + 2 * 6 * 9 + 3 * 5


def test_gates_that_are_left_still_open_and_close() -> None:
    model = gated(chain(), (3, 8, 8), ["1"])
    record = record_with(model, off=[1], on=[3])
    small = compress(model, record)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for left in ([0.0, 1.0], [1.0, 0.0], [0.0, 0.0]):
        whole = torch.tensor([left[0], 0.0, left[1], 1.0], dtype=torch.float64)
        with torch.no_grad():
            masked = model(images, gates=whole).logits
            found = small(images, gates=torch.tensor(left, dtype=torch.float64)).logits
        assert torch.allclose(found, masked, rtol=0, atol=1e-12)


def test_a_branch_without_filters_goes_and_its_inner_gates_with_it() -> None:
    torch.manual_seed(0)
    backbone = ResidualNet()
    model = gated(backbone, (3, 8, 8), ["1.branch.1", "1.branch.4", "2.branch.4"])
    record = record_with(model, off=[4, 5, 6, 7], on=[])
    made = plan(model, record)
    assert [(point.kept, len(point.unneeded)) for point in made.points] == [(0, 4), (0, 0), (8, 0)]
    small = compress(model, record)
    assert distance(model, small, record, 8) < 1e-12
    assert not any(name.startswith("1.branch") for name, _ in network(small).named_modules())
    assert columns_of(small) == list(range(8, 16))


def test_residual_streams_keep_their_width() -> None:
    torch.manual_seed(0)
    model = gated(ResidualNet(), (3, 8, 8))
    record = record_with(model, off=[1, 5, 6, 7], on=[])
    small = compress(model, record)
    assert distance(model, small, record, 8) < 1e-12
    assert len(of_type(small, Scatter)) == 2
    assert network(small).get_parameter("2.branch.3.weight").shape == (5, 4, 3, 3)
    assert network(small).get_parameter("5.weight").shape == (5, 8)


class AfterConstant(nn.Module):
    """A gated conv, a norm that makes a constant of closed filters, and who reads it."""

    def __init__(self, reader: nn.Module, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv(3, 4)
        self.between = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), pool or nn.Identity())
        self.reader = reader
        self.head = head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.reader(self.between(self.conv(x)))))


@pytest.mark.parametrize(
    ("reader", "pool", "inputs"),
    [
        (conv(4, 6, 1), None, 2),
        (nn.Conv2d(4, 6, 3, bias=False), None, 2),  # no border: the constant is everywhere
        (nn.Conv2d(4, 6, 3, padding=1), None, 4),  # beyond the border there are zeros
        (nn.Conv2d(4, 6, 1, padding=1), None, 4),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), None, 2),
        (conv(4, 6, 1), nn.AvgPool2d(2), 2),
        (conv(4, 6, 1), nn.MaxPool2d(3, 2, padding=1), 2),
        (conv(4, 6, 1), nn.AvgPool2d(3, 2, padding=1), 4),
    ],
)
def test_constants_come_into_the_bias_where_no_border_differs(
    reader: nn.Module, pool: nn.Module | None, inputs: int
) -> None:
    backbone = AfterConstant(reader, pool)
    model = gated(backbone, (3, 8, 8), ["conv"])
    record = record_with(model, off=[0, 3], on=[])
    small = compress(model, record)
    assert network(small).get_submodule("conv").out_channels == 2
    assert network(small).get_submodule("reader").in_channels == inputs
    assert distance(model, small, record, 8) < 1e-12


def test_a_constant_in_the_bias_is_what_brute_force_says() -> None:
    backbone = AfterConstant(nn.Conv2d(4, 6, 3, bias=False))
    model = gated(backbone, (3, 8, 8), ["conv"])
    small = compress(model, record_with(model, [0, 3], []))
    with torch.no_grad():
        held = F.relu(backbone.between[0](torch.zeros(1, 4, 1, 1, dtype=torch.float64))).flatten()
    weight = backbone.reader.get_parameter("weight").tolist()
    for out, found in enumerate(network(small).get_parameter("reader.bias").tolist()):
        expected = 0.0
        for channel in (0, 3):
            for row in weight[out][channel]:
                for tap in row:
                    expected += tap * float(held[channel])
        assert found == pytest.approx(expected, rel=1e-12)


def test_all_filters_of_an_inner_layer_gone_leaves_what_its_norms_make_of_nothing() -> None:
    torch.manual_seed(0)
    model = gated(ResidualNet(), (3, 8, 8), ["1.branch.1", "1.branch.4", "2.branch.4"])
    record = record_with(model, off=[0, 1, 2, 3], on=[])
    small = compress(model, record)
    assert len(of_type(small, Constant)) == 1
    assert columns_of(small) == list(range(4, 16))  # the constant is gated still
    assert distance(model, small, record, 8) < 1e-12


def test_a_constant_branch_is_still_added() -> None:
    torch.manual_seed(0)
    model = gated(ResidualNet(), (3, 8, 8), ["1.branch.1", "2.branch.4"])
    record = record_with(model, off=[0, 1, 2, 3], on=[])
    small = compress(model, record)
    assert len(of_type(small, Constant)) == 1
    assert not any(name.startswith("1.branch.3") for name in network(small).state_dict())
    assert distance(model, small, record, 8) < 1e-12


class OverwritesLate(nn.Module):
    """A ReLU in place, and a reader of what it overwrote."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = conv(3, 4), nn.ReLU(inplace=True)
        self.left, self.right, self.head = conv(4, 6), conv(4, 6), head()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.left(self.act(x)) + self.right(x))


def test_what_is_overwritten_and_read_later_is_refused() -> None:
    model = gated(OverwritesLate(), (3, 8, 8), ["left"])
    with pytest.raises(UserError, match="`act` overwrites its input, which `right` reads later"):
        compress(model, record_with(model, [0], []))


class Sliced(nn.Module):
    """Two readers of parts of one gated conv (GhostNet, Res2Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.left, self.right, self.head = conv(3, 6), conv(4, 6, 1), head()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(self.left(x[:, :3]) + self.right(x[:, 4:]))


@pytest.mark.parametrize(("point", "left"), [("norm", (1, 3)), ("conv", (3, 3))])
def test_slices_lose_their_own_channels(point: str, left: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = gated(Sliced(), (3, 8, 8), [point])
    record = record_with(model, off=[0, 2, 5], on=[])
    small = compress(model, record)
    inputs = tuple(network(small).get_submodule(name).in_channels for name in ("left", "right"))
    assert inputs == left  # behind the conv there are constants, which a border tells from zeros
    assert network(small).get_submodule("conv").out_channels == 4  # nobody reads channel 3
    assert distance(model, small, record, 8) < 1e-12


def in_place() -> nn.Module:
    branch = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 4))
    return nn.Sequential(conv(3, 4), Block(branch), conv(4, 6), head())


def grouped() -> nn.Module:
    middle = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    return nn.Sequential(conv(3, 4), nn.ReLU(), middle, nn.ReLU(), conv(4, 6), head())


def normed_in_groups() -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), nn.ReLU(), conv(4, 6), head())


def normed_apart() -> nn.Module:
    """Each channel by what it was in training, without weights of its own."""
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    return nn.Sequential(conv(3, 4), norm, nn.ReLU(), conv(4, 6), head())


@pytest.mark.parametrize(
    ("build", "point", "kept_whole"),
    [
        (in_place, "1.branch.3", None),
        (grouped, "1", "2"),
        (grouped, "2", "2"),
        (normed_in_groups, "1", "1"),
        (normed_in_groups, "0", "1"),
        (normed_apart, "0", "1"),
    ],
)
def test_what_cannot_shrink_stays_and_is_listed(
    build: Callable[[], nn.Module], point: str, kept_whole: str | None
) -> None:
    torch.manual_seed(0)
    model = gated(build(), (3, 8, 8), [point])
    record = record_with(model, [1, 2], [])
    made = plan(model, record)
    assert list(made.kept_whole) == ([kept_whole] if kept_whole else [])
    small = compress(model, record)
    assert distance(model, small, record, 8) < 1e-12


def test_soft_gates_that_never_close_stay() -> None:
    model = gated(chain(), (3, 8, 8), ["1"])
    model.binarizer = SoftGates()
    made = plan(model, record_with(model, [1], [2]))
    assert (made.points[0].kept, made.points[0].always_on) == (3, ())


def test_the_smaller_network_can_be_traced_and_trained() -> None:
    torch.manual_seed(0)
    model = gated(ResidualNet(), (3, 8, 8))
    small = compress(model, record_with(model, [1, 5], [0]))
    assert trace(small.backbone).total_macs > 0
    small.train()
    small(torch.randn(4, 3, 8, 8, dtype=torch.float64)).logits.sum().backward()
    assert all(p.grad is not None for p in small.backbone.parameters())
