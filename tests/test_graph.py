"""The trace: shapes, outputs and costs against closed forms, PyTorch's flop counter and eager."""

import copy
import re
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UserError
from gaternet.graph import Graph, trace
from small_networks import SIZE


def flops_per_image(backbone: nn.Module, size: tuple[int, int, int]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        backbone.eval()(torch.zeros(2, *size))
    return counter.get_total_flops() // 2


def node(graph: Graph, name: str) -> fx.Node:
    return next(n for n in graph.fx.nodes if n.name == name)


# --- multiply-accumulates ----------------------------------------------------------------------


def test_the_notes_figures() -> None:
    assert trace(CifarResNet(20)).total_macs == pytest.approx(40.8e6, rel=1e-3)
    assert trace(CifarResNet(56)).total_macs == pytest.approx(125.7e6, rel=1e-3)
    with torch.device("meta"):
        assert trace(timm.create_model("resnet50")).total_macs == pytest.approx(4.09e9, rel=1e-3)


def test_closed_forms_by_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=True),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 5, stride=2, padding=2, groups=4),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(6 * 64, 7),
    )
    assert trace(net, SIZE).macs == {
        "0": 8 * 64 * 3 * 9,
        "2": 4 * 16 * (8 // 4) * 25,
        "3": 4 * 16 * (6 // 2) * 4,
        "5": 7 * 6 * 64,
    }


class Costly(nn.Module):
    """Layers called twice, functions with parameters, matrix products in many forms."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.up = nn.Parameter(torch.randn(4, 2, 2, 2))
        self.matrix = nn.Parameter(torch.randn(6, 16))
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        x = F.conv_transpose2d(F.conv2d(x, self.weight, stride=2), weight=self.up)
        n, c, h, w = x.shape
        x = x.view(n, c, h * w)
        x = F.linear(input=self.head(F.linear(x[:, :, :16], self.matrix)), weight=self.head.weight)
        y = x @ x.transpose(1, 2)
        y = torch.bmm(y, y).matmul(y)
        return torch.baddbmm(y, y, y) + torch.matmul(y[0], y[1])


def test_functions_count_as_much_as_the_flop_counter_says() -> None:
    graph = trace(Costly(), SIZE)
    assert 2 * graph.total_macs == flops_per_image(Costly(), SIZE)
    assert graph.macs["twice"] == 2 * 64 * 3 * 3 * 9
    assert not graph.uncounted


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["seresnet18", "densenet121", "convnext_atto", "mobilenetv3_small_050", "repvgg_a0"],
)
def test_timm_backbones_cost_what_the_flop_counter_says(name: str) -> None:
    backbone = timm.create_model(name)
    assert 2 * trace(backbone, (3, 64, 64)).total_macs == flops_per_image(backbone, (3, 64, 64))


def test_what_is_not_counted_is_reported() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.norm, self.prelu = nn.LSTM(8, 5), nn.BatchNorm2d(3), nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.prelu(self.norm(x)).mean(2)
            x = torch.einsum("nij,nkj->nik", x, x).repeat(1, 1, 3)[:, :, :8]
            return self.lstm(self.lstm(x)[0].repeat(1, 1, 2)[:, :, :8])[0]

    graph = trace(Mixed(), SIZE)
    assert graph.total_macs == 0
    assert dict(graph.uncounted) == {"lstm: LSTM": 2, "einsum: einsum": 1}


@fx.wrap
def clear_first_row(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 0] = 0
    return x


@torch.library.custom_op("gaternet_tests::flip_bright", mutates_args=())
def flip_bright(x: Tensor) -> Tensor:
    return x.flip(2) if x.sum() > 0 else x.clone()


@flip_bright.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_what_the_error_advises_works() -> None:
    class Advised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return flip_bright(clear_first_row(x))

    backbone = nn.Sequential(Advised())
    graph = trace(backbone, SIZE)
    assert dict(graph.uncounted) == {"0: clear_first_row": 1, "0: flip_bright.default": 1}
    images = torch.randn(3, *SIZE)
    torch.testing.assert_close(fx.GraphModule(backbone, graph.fx)(images), backbone(images))


# --- the graph ---------------------------------------------------------------------------------


class Shapely(nn.Module):
    """Python work that depends on shapes, and none on values."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.register_buffer("shift", torch.randn(4))
        self.kernel = torch.randn(1, 4, 1, 1)

    def forward(self, x: Tensor, flip: bool = False, mask: Tensor | None = None) -> Tensor:
        assert x.ndim == 4
        assert len(x.shape) == 4
        assert x.is_floating_point()
        n, c, h, w = x.shape
        if c != 3 or flip or mask is not None:
            raise ValueError("not the branch to take")
        torch._assert(h == w, f"{h} and {w} differ")
        pad = max(0, 10 - int(h))
        x = F.pad(self.conv(x), [0, pad, 0, x.size(-1) // 4])
        x = x * self.scale[:, None, None] + self.shift.view(1, -1, 1, 1) * self.kernel
        x = x + torch.tensor([0.5]) + len(x.shape)
        for part in x.chunk(2, dim=1):
            x = x + part.mean()
        half, *_ = (x[:, : x.shape[1] // 2] for _ in range(x.shape[1]))
        return half.reshape(n, -1) if x.dtype == torch.float32 else x


def test_the_graph_computes_what_the_backbone_computes_at_any_batch_size() -> None:
    for backbone, size in ((Shapely(), SIZE), (CifarResNet(8), (3, 32, 32))):
        backbone.eval()
        graph = trace(backbone, size)
        for name, constant in vars(graph.modules[""]).items():
            if name.startswith("_tensor_constant"):
                setattr(backbone, name, constant)
        images = torch.randn(5, *size)
        torch.testing.assert_close(fx.GraphModule(backbone, graph.fx)(images), backbone(images))


def test_shapes_names_and_readers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
            self.empty, self.never = nn.Sequential(), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            y = self.block(x)
            return self.empty(y) + y.mean((2, 3), keepdim=True), y.shape[0]

    graph = trace(Net(), SIZE)
    relu, conv, empty = (node(graph, name) for name in ("block_1", "block_0", "empty"))
    assert graph.outputs["block"] == graph.outputs["block.1"] == (relu,)
    assert graph.outputs["block.0"] == (conv,)
    assert graph.outputs["empty"] == (empty,)
    assert graph.outputs["never"] == ()
    assert graph.names(relu) == ("block.1", "block")
    assert graph.shape(conv) == (2, 4, 6, 6)
    assert graph.works_in_place(relu)
    assert not graph.is_identity(relu)
    assert graph.is_identity(empty)
    assert empty is not relu
    assert [n.name for n in graph.readers(relu)] == ["empty", "mean"]
    assert graph.precedes(conv, empty)
    assert not graph.precedes(empty, conv)


def test_a_module_called_twice_has_two_outputs() -> None:
    assert len(trace(Costly(), SIZE).outputs["twice"]) == 2


def test_the_backbone_stays_as_it_was() -> None:
    backbone = CifarResNet(8).train()
    backbone.stage1.eval()
    calls: list[str] = []
    backbone.stage1.register_forward_hook(lambda *_: calls.append("hook"))
    backbone.bn.register_forward_pre_hook(lambda *_: calls.append("pre-hook"))
    state = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    attributes = {name: set(vars(module)) for name, module in backbone.named_modules()}
    trace(backbone)
    assert not calls
    assert [module.training for module in backbone.modules()] == modes
    assert {name: set(vars(module)) for name, module in backbone.named_modules()} == attributes
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_drop_path_is_the_identity_with_an_output_of_its_own() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("resnet18", drop_path_rate=0.2).train()
    graph = trace(backbone)
    (dropped,) = graph.outputs["layer4.1.drop_path"]
    assert dropped is not None
    assert graph.is_identity(dropped)
    assert graph.names(dropped) == ("layer4.1.drop_path",)


def test_special_states_do_not_matter() -> None:
    expected = trace(CifarResNet(8)).total_macs
    with torch.device("meta"):
        assert trace(CifarResNet(8)).total_macs == expected
    with torch.inference_mode():
        assert trace(CifarResNet(8)).total_macs == expected
    assert trace(CifarResNet(8).bfloat16()).total_macs == expected
    backbone: Any = timm.create_model("resnet18")
    plain = trace(backbone).total_macs
    backbone.set_grad_checkpointing(True)
    assert trace(backbone).total_macs == plain


def test_normalised_weights_are_a_convs_own_matter() -> None:
    convs = [nn.Conv2d(3, 4, 3) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates the first of the two
        nn.utils.weight_norm(convs[1])
    nn.utils.parametrizations.weight_norm(convs[2])
    for conv in convs:
        conv(torch.zeros(1, *SIZE))  # leaves a weight that cannot be deep-copied
        assert trace(nn.Sequential(conv), SIZE).macs == {"0": 4 * 36 * 3 * 9}


# --- input size and errors ---------------------------------------------------------------------


def test_where_the_input_size_comes_from() -> None:
    with torch.device("meta"):
        backbone: Any = timm.create_model("resnet18")
    assert trace(backbone).input_size == (3, 224, 224)
    assert trace(backbone, (3, 64, 96)).input_size == (3, 64, 96)
    assert trace(backbone, tuple(np.array([3, 64, 96]))).input_size == (3, 64, 96)
    backbone.input_size = (3, 32, 32)
    assert trace(backbone).input_size == (3, 32, 32)
    with pytest.raises(ValueError, match=r"input size of Sequential .* input_size="):
        trace(nn.Sequential(nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("size", [32, (32, 32), (3, 32, 0), (3, 32.0, 32), "large"])
def test_what_is_no_input_size_is_said(size: Any) -> None:
    backbone: Any = nn.Sequential(nn.Conv2d(3, 3, 1))
    wanted = r"give input_size=\(channels, height, width\)"
    with pytest.raises(ValueError, match=rf"^input_size is .*: {wanted}"):
        trace(backbone, size)
    backbone.input_size = size
    with pytest.raises(
        ValueError, match=rf"^the input size that Sequential declares is .*: {wanted}"
    ):
        trace(backbone)


def test_a_compiled_or_distributed_backbone_is_refused() -> None:
    backbone: Any = nn.Sequential(nn.Conv2d(3, 3, 1))
    wrappers: list[Any] = [torch.compile, nn.DataParallel]
    for wrapped in (wrap(backbone) for wrap in wrappers):
        with pytest.raises(ValueError, match=r"is wrapped, a .*: gate the plain network, then"):
            trace(wrapped, (3, 8, 8))


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class ByCount(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(int(x.amax()), 1)


class Stray(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.ReLU()(x)


def test_the_kind_of_device_is_known_to_python() -> None:
    class ByDevice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return x.relu()

    assert "relu" in [n.target for n in trace(ByDevice(), SIZE).fx.nodes]


class Assigning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (ByValue(), "return x if x.sum() > 0 else -x"),
        (ByCount(), "return x.repeat(int(x.amax()), 1)"),
        (Stray(), "return nn.ReLU()(x)"),
        (Assigning(), "x[:, 0] = 0"),
    ],
)
def test_what_cannot_be_traced_is_named(layer: nn.Module, line: str) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    with pytest.raises(UserError, match=rf"test_graph.*{re.escape(line)}.*torch\.fx\.wrap"):
        trace(backbone, SIZE)


def test_a_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(UserError, match=r"\(1, 8, 8\).*to have 3 channels.*input_size"):
        trace(nn.Sequential(nn.Conv2d(3, 3, 1)), (1, 8, 8))
