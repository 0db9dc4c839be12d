"""The structural rule: the paper's counts, published architectures, small nets worked by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.gate_points import find_gate_points
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
        ("repvgg_a0", 48 + 2 * 48 + 4 * 96 + 14 * 192 + 1280),
        ("vgg16_bn", 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096),
        ("efficientnetv2_rw_t", 4560),
        ("hrnet_w18_small", 5632),
    ],
)
def test_timm_families(name: str, gates: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name)
    assert sum(points_of(backbone, None).values()) == gates
