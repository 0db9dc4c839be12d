"""Parameters and gated filters of every row of the paper's Tables 1 to 3."""

from itertools import product

import pytest
import torch

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.gater import Gater
from gaternet.model import GaterNet

# Parameters in millions as printed: (backbone, CIFAR-10, CIFAR-100).
TABLE_1 = [
    ("resnet20", "0.27", "0.28"),
    ("resnet20-wider", "0.56", "0.57"),
    ("resnet20-se", "0.28", "0.29"),
    ("resnet56", "0.86", "0.86"),
    ("resnet56-wider", "1.08", "1.09"),
    ("resnet56-se", "0.88", "0.89"),
    ("resnet164", "1.62", "1.64"),
    ("resnet164-wider", "2.04", "2.07"),
    ("resnet164-se", "2.00", "2.02"),
]
TABLE_2 = [
    ("densenet-bc-100-12", "0.77"),
    ("densenet-bc-250-24", "15.32"),
    ("densenet-bc-190-40", "25.62"),
    ("shake-shake-26-2x64d", "11.71"),
    ("shake-shake-26-2x96d", "26.33"),
]
# ResNet-152-Wider is not here: no base width gives its 81.37 M; nor is Inception-v4, whose usual
# form has 42.68 M and not the printed 44.50 M.
TABLE_3 = [
    ("timm/resnet34", "21.80"),
    ("timm/resnet34-wider", "33.89"),
    ("timm/seresnet34", "21.96"),
    ("timm/resnet101", "44.55"),
    ("timm/resnet101-wider", "59.17"),
    ("timm/seresnet101", "49.33"),
    ("timm/resnet152", "60.19"),
    ("timm/seresnet152", "66.82"),
]
PLAIN = [
    *(
        (name, classes, p)
        for name, *both in TABLE_1
        for classes, p in zip((10, 100), both, strict=True)
    ),
    *((name, 10, p) for name, p in TABLE_2),
    *((name, 1000, p) for name, p in TABLE_3),
]

# (backbone, classes, parameters, gates). ResNet-20-Gated on CIFAR-100 is printed with 0.60 M, which
# the arithmetic of all other rows does not give; Inception-v4-Gated with 61.67 M, see above.
GATED_CIFAR = [
    ("resnet20", 10, "0.55", 336),
    ("resnet20", 100, "0.55", 336),
    ("resnet56", 10, "1.14", 1_008),
    ("resnet56", 100, "1.14", 1_008),
    ("resnet164", 10, "1.96", 7_200),
    ("resnet164", 100, "1.98", 7_200),
    ("densenet-bc-100-12", 10, "1.05", 540),
    pytest.param("densenet-bc-250-24", 10, "15.62", 2_880, marks=pytest.mark.slow),
    pytest.param("densenet-bc-190-40", 10, "25.93", 3_600, marks=pytest.mark.slow),
    ("shake-shake-26-2x64d", 10, "12.01", 3_584),
    ("shake-shake-26-2x96d", 10, "26.65", 5_376),
]
GATED_IMAGENET = [
    ("resnet34", 224, "34.08", 3_776),
    ("resnet101", 224, "64.21", 32_512),
    ("resnet152", 224, "83.80", 47_872),
    ("inception_v4", 299, "58.26", 16_608),
]


def millions(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"


@pytest.mark.parametrize(("name", "classes", "printed"), PLAIN)
def test_parameters_are_the_paper_s(name: str, classes: int, printed: str) -> None:
    with torch.device("meta"):
        assert millions(backbones.create(BackboneConfig(name, classes))) == printed


@pytest.mark.parametrize(("name", "classes", "printed", "gates"), GATED_CIFAR)
def test_gated_cifar_models_are_the_paper_s(
    name: str, classes: int, printed: str, gates: int
) -> None:
    with torch.device("meta"):
        backbone = backbones.create(BackboneConfig(name, classes))
        extractor = backbones.create(BackboneConfig("resnet20", classes=0))
        model = GaterNet(backbone, Gater(extractor, bottleneck=8))
    assert (millions(model), model.gate_count) == (printed, gates)


@pytest.mark.parametrize(("name", "size", "printed", "gates"), GATED_IMAGENET)
def test_gated_imagenet_models_are_the_paper_s(
    name: str, size: int, printed: str, gates: int
) -> None:
    with torch.device("meta"):
        backbone = backbones.create(BackboneConfig(f"timm/{name}", 1000, image_size=size))
        extractor = backbones.create(BackboneConfig("timm/resnet18", 0, image_size=size))
        model = GaterNet(backbone, Gater(extractor, bottleneck=256), input_size=(3, size, size))
    assert (millions(model), model.gate_count) == (printed, gates)


@pytest.mark.parametrize("name", ["resnet8", "resnet11-preact"])
def test_squeeze_and_excitation_does_not_move_the_gates(name: str) -> None:
    points = []
    for suffix in ("", "-se"):
        with torch.device("meta"):
            backbone = backbones.create(BackboneConfig(name + suffix, 10))
            extractor = backbones.create(BackboneConfig("resnet8", classes=0))
            points.append(GaterNet(backbone, Gater(extractor, bottleneck=8)).points)
    assert points[0] == points[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet11-preact", [f"stage{s}.block1.conv3" for s in (1, 2, 3)]),
        (
            "densenet-bc-16-4",
            [f"block{b}.layer2.conv2" for b in (1, 2, 3)],
        ),
        (
            "shake-shake-26-2x4d",
            [f"blocks.{i}.branch{j}.bn2" for i, j in product(range(12), (1, 2))],
        ),
    ],
)
def test_gates_sit_on_the_last_conv_of_every_branch(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        backbone = backbones.create(BackboneConfig(name, 10))
        extractor = backbones.create(BackboneConfig("resnet8", classes=0))
        model = GaterNet(backbone, Gater(extractor, bottleneck=8))
    assert sorted(point.name for point in model.points) == sorted(expected)
