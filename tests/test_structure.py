"""The structural rule: the paper's counts, published architectures, small nets worked by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import RmsNorm2d
from torch import Tensor, nn

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.gate_points import attach, find_gate_points
from gaternet.graph import trace
from small_networks import SIZE, Block, conv


def points_of(backbone: nn.Module, size: tuple[int, int, int] | None = SIZE) -> dict[str, int]:
    return {point.name: point.gates for point in find_gate_points(trace(backbone, size))}


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
def test_cifar_resnets_have_the_papers_gated_filters(depth: int, gates: int, shortcut: str) -> None:
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
    steps = [
        conv(width + n * growth, new, 1) for width, new in zip(widths, (8, 10, 5), strict=True)
    ]
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


def test_branches_without_a_shortcut_are_all_gated() -> None:
    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    assert points_of(nn.Sequential(conv(3, 4), Fusion())) == {"1.a.2": 4, "1.b.2": 4}


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
    assert next(iter(points)) == "stages.0.blocks.0.drop_path"
    assert sum(points.values()) == 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768


def test_where_a_reshape_hides_the_channels_nothing_is_gated() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(4, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1)
            return x + self.drop(self.linear(x.reshape(-1, 16, 4)).reshape(x.shape))

    with pytest.raises(ValueError, match=r"`1\.drop`: a reshape hides .*points=\['0'\]"):
        points_of(nn.Sequential(conv(3, 4), Windows()))


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


# --- inner layers, parts and scales -------------------------------------------------------------


class Joined(nn.Module):
    """Two convs on one input, or on its chunks, joined: with a name of its own."""

    def __init__(self, inputs: int, chunks: bool = False) -> None:
        super().__init__()
        self.a, self.b = (conv(inputs // 2 if chunks else inputs, 3) for _ in range(2))
        self.chunks = chunks

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1) if self.chunks else (x, x)
        return torch.cat([self.a(a), self.b(b)], 1)


def test_a_concatenation_inside_a_residual_branch_is_an_inner_layer() -> None:
    branch = nn.Sequential(conv(4, 6), Joined(6), conv(6, 4))
    assert points_of(nn.Sequential(conv(3, 4), Block(branch))) == {"1.branch.2": 4}
    assert points_of(nn.Sequential(conv(3, 6), branch[1], conv(6, 4))) == {"1": 6}


def test_a_concatenation_at_the_end_of_a_branch_is_its_last_layer() -> None:
    joined = nn.Sequential(conv(6, 6), Joined(6))
    assert points_of(nn.Sequential(conv(3, 6), Block(joined))) == {"1.branch.1": 6}
    with_norm = nn.Sequential(*joined, nn.BatchNorm2d(6))
    assert points_of(nn.Sequential(conv(3, 6), Block(with_norm))) == {"1.branch.2": 6}


class Hierarchy(nn.Module):
    """Res2Net: each chunk is added to what the conv before made of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(2, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = torch.split(x, 2, 1)
        first = self.convs[0](first)
        return torch.cat([first, self.convs[1](first + second), last], 1)


def test_sums_that_are_joined_inside_a_residual_branch_are_inner_layers() -> None:
    branch = nn.Sequential(conv(4, 6), Hierarchy(), conv(6, 4))
    assert points_of(nn.Sequential(conv(3, 4), Block(branch))) == {"1.branch.2": 4}


def test_residual_units_inside_a_residual_branch_are_gated() -> None:
    body = nn.Sequential(Block(conv(4, 4)), Block(conv(4, 4)), conv(4, 4))
    points = points_of(nn.Sequential(conv(3, 4), Block(body)))
    assert points == {"1.branch.0.branch": 4, "1.branch.1.branch": 4, "1.branch.2": 4}


def test_a_grouped_conv_in_parts_is_one_conv_of_its_chain() -> None:
    residual = Block(nn.Sequential(conv(4, 4), conv(4, 4)))
    assert points_of(nn.Sequential(conv(3, 4), Joined(4, chunks=True), conv(6, 4), residual)) == {
        "3.branch.1": 4
    }
    chain = nn.Sequential(conv(3, 4), Joined(4, chunks=True), conv(6, 4))
    assert points_of(chain) == {"0": 4, "1.a": 3, "1.b": 3, "2": 4}


class Wider(nn.Module):
    """ReXNet: the shortcut is added to the first channels of a wider output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(4, 6), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([y[:, :4] + x, y[:, 4:]], 1)


def test_a_shortcut_of_fewer_channels_is_no_concatenation_to_gate() -> None:
    assert points_of(nn.Sequential(conv(3, 4), Wider(), conv(6, 2))) == {"1.conv.1": 6}


class DualPath(nn.Module):
    """DPN: the first 4 channels are a residual path, the others a dense one."""

    def __init__(self, inputs: int, project: bool) -> None:
        super().__init__()
        self.inner = conv(inputs, 5)
        self.residual, self.dense = conv(5, 4), conv(5, 2)
        self.projection = conv(inputs, 8, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        old = self.projection(x)
        inner = self.inner(x)
        return torch.cat([old[:, :4] + self.residual(inner), old[:, 4:], self.dense(inner)], 1)


def test_a_dual_path_gates_what_is_added_and_what_is_new() -> None:
    backbone = nn.Sequential(conv(3, 4), DualPath(4, True), DualPath(10, False), conv(12, 2))
    assert points_of(backbone) == {
        f"{block}.{path}": gates
        for block in (1, 2)
        for path, gates in (("residual", 4), ("dense", 2))
    }


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = conv(4, 2, 1), conv(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * (scale + scale).sigmoid()


def test_what_computes_a_scale_is_not_gated() -> None:
    assert points_of(nn.Sequential(conv(3, 4), Squeeze(), conv(4, 5))) == {"0": 4, "2": 5}


class Ghost(nn.Module):
    """Half of the channels are made of the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = conv(4, 2), conv(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)[:, :4]


def test_of_branches_with_as_few_convs_on_a_path_the_one_with_fewer_in_all_is_the_shortcut() -> (
    None
):
    block = Block(nn.Sequential(Ghost(), Ghost()), nn.Sequential(conv(4, 4), conv(4, 4)))
    assert points_of(nn.Sequential(conv(3, 4), block)) == {"1.branch.1": 4}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.linear(tokens)).transpose(1, 2).reshape(x.shape)


def test_branches_over_tokens_are_refused_with_the_points_that_there_are() -> None:
    backbone = nn.Sequential(conv(3, 4), Block(conv(4, 4)), Tokens())
    with pytest.raises(ValueError, match=r"`2` adds a branch to tokens .*points=\['1\.branch'\]"):
        points_of(backbone)


def test_sizes_make_no_feature_maps() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.conv = conv(1, 4, 1), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.arange(x.shape[2]).float().view(1, 1, -1, 1).expand(len(x), 1, -1, 8)
            return x + self.conv(x + self.encode(rows))

    assert points_of(nn.Sequential(conv(3, 4), Positions())) == {"1.conv": 4}


def test_a_norm_over_channels_comes_before_the_gate() -> None:
    """Behind it a closed channel would change what the open ones are scaled by."""
    torch.manual_seed(0)
    branch = nn.Sequential(conv(4, 4), RmsNorm2d(4), nn.ReLU(), conv(4, 4), RmsNorm2d(4))
    backbone = nn.Sequential(conv(3, 4), Block(branch)).eval()
    (point,) = find_gate_points(trace(backbone, SIZE))
    assert point.name == "1.branch.4"
    gates = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    images = torch.randn(1, *SIZE)
    plain = backbone.get_submodule("1.branch")(backbone[0](images))
    attach(backbone, [point]).arm(gates)
    found = []
    branch[4].register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        backbone(images)
    torch.testing.assert_close(found[0], plain * gates[:, :, None, None])
