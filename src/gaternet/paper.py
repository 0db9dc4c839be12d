"""What the paper prints in its Tables 1, 2 and 3 (Chen, Li, Bengio and Si, CVPR 2019)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables; of Table 1 for one of its two data sets."""

    table: int
    dataset: str
    model: str
    gated_filters: int | None
    params: float
    """Parameters in millions."""
    error: float
    """Test error in percent, top-1 on ImageNet."""
    top5_error: float | None = None


# Model, gated filters, (parameters, error) on CIFAR-10, on CIFAR-100.
_TABLE1 = (
    ("ResNet-20", None, (0.27, 8.06), (0.28, 32.39)),
    ("ResNet-20-Wider", None, (0.56, 6.85), (0.57, 30.08)),
    ("ResNet-20-SE", None, (0.28, 7.81), (0.29, 31.22)),
    ("ResNet-20-Gated", 336, (0.55, 6.88), (0.60, 30.79)),
    ("ResNet-56", None, (0.86, 6.74), (0.86, 28.87)),
    ("ResNet-56-Wider", None, (1.08, 6.72), (1.09, 28.39)),
    ("ResNet-56-SE", None, (0.88, 6.27), (0.89, 28.00)),
    ("ResNet-56-Gated", 1_008, (1.14, 5.72), (1.14, 27.71)),
    ("ResNet-164", None, (1.62, 5.61), (1.64, 25.39)),
    ("ResNet-164-Wider", None, (2.04, 5.57), (2.07, 24.80)),
    ("ResNet-164-SE", None, (2.00, 5.51), (2.02, 23.83)),
    ("ResNet-164-Gated", 7_200, (1.96, 4.80), (1.98, 23.56)),
)

# Model, gated filters, parameters, error.
_TABLE2 = (
    ("DenseNet-BC-100-12", None, 0.77, 4.48),
    ("DenseNet-BC-100-12-Gated", 540, 1.05, 4.03),
    ("DenseNet-BC-250-24", None, 15.32, 3.61),
    ("DenseNet-BC-250-24-Gated", 2_880, 15.62, 3.31),
    ("DenseNet-BC-190-40", None, 25.62, 3.52),
    ("DenseNet-BC-190-40-Gated", 3_600, 25.93, 3.39),
    ("Shake-Shake-26-2x64d", None, 11.71, 3.05),
    ("Shake-Shake-26-2x64d-Gated", 3_584, 12.01, 2.89),
    ("Shake-Shake-26-2x96d", None, 26.33, 2.82),
    ("Shake-Shake-26-2x96d-Gated", 5_376, 26.65, 2.64),
)

# Model, gated filters, parameters, top-1 error, top-5 error.
_TABLE3 = (
    ("ResNet-34", None, 21.80, 26.56, 8.48),
    ("ResNet-34-Wider", None, 33.89, 25.36, 7.91),
    ("ResNet-34-SE", None, 21.96, 26.08, 8.30),
    ("ResNet-34-Gated", 3_776, 34.08, 26.04, 8.34),
    ("ResNet-101", None, 44.55, 23.36, 6.56),
    ("ResNet-101-Wider", None, 59.17, 21.89, 6.05),
    ("ResNet-101-SE", None, 49.33, 22.38, 6.07),
    ("ResNet-101-Gated", 32_512, 64.21, 21.51, 5.78),
    ("ResNet-152", None, 60.19, 22.34, 6.22),
    ("ResNet-152-Wider", None, 81.37, 21.50, 5.67),
    ("ResNet-152-SE", None, 66.82, 21.57, 5.73),
    ("ResNet-152-Gated", 47_872, 83.80, 21.19, 5.45),
    ("Inception-v4", None, 44.50, 20.33, 4.99),
    ("Inception-v4-Gated", 16_608, 61.67, 19.64, 4.80),
)

ROWS: tuple[PaperRow, ...] = (
    *(PaperRow(1, "cifar10", model, gates, *printed) for model, gates, printed, _ in _TABLE1),
    *(PaperRow(1, "cifar100", model, gates, *printed) for model, gates, _, printed in _TABLE1),
    *(PaperRow(2, "cifar10", *printed) for printed in _TABLE2),
    *(PaperRow(3, "imagenet", *printed) for printed in _TABLE3),
)

NOTES = {
    ("ResNet-20-Gated", "cifar100"): (
        "the arithmetic of every other gated row, backbone + gater with a bottleneck of 8, gives "
        "0.55 M; where the printed 0.60 M come from is not known"
    ),
    ("ResNet-152-Wider", "imagenet"): (
        "the printed 81.37 M lie between base width 74 (80.07 M) and 75 (82.22 M); 75 is built"
    ),
    ("Inception-v4", "imagenet"): (
        "the usual Inception-v4 has 42.68 M; the paper does not say what else its own has"
    ),
    ("Inception-v4-Gated", "imagenet"): (
        "the usual Inception-v4 with a ResNet-18 gater and a bottleneck of 256 has 58.26 M; the "
        "paper does not say what else its own has"
    ),
}
"""(model, data set) → why the parameters of a row cannot agree."""
