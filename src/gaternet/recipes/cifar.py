"""CIFAR-10 and CIFAR-100: ResNets as in the paper's Table 1, and short schedules of them."""

from dataclasses import replace

from gaternet.data.settings import CIFAR10, CIFAR100, DataConfig
from gaternet.training.config import Gating, Optimizer, Recipe, Schedule

PAPER_EPOCHS = 164
PAPER = Schedule(batch_size=128, kind="step", milestones=(0.5, 0.75))
"""64,000 steps of 128 images, the learning rate divided by ten at 32,000 and 48,000."""

SPARSITY = 0.1
"""λ; the paper prints none, and this value has not been swept yet."""

SHORT_EPOCHS = 16
SHORT = Schedule(batch_size=128, kind="cosine", warmup=0.1)
SHORT_OPTIMIZER = Optimizer(lr=0.2, nesterov=True, weight_decay=5e-4)
SHORT_GATING = Gating(
    opening_bias=1.0,
    sparsity=SPARSITY,
    anneal_from=0.4,
    anneal_until=0.7,
    reestimate_batch_norm=True,
)
"""The remedy for the gap between noisy training gates and hard ones: the noise fades away."""


def _resnet(data: DataConfig, depth: int) -> list[Recipe]:
    plain = Recipe(
        name=f"{data.name}/resnet{depth}",
        reproduces=f"Table 1, ResNet-{depth} on {data.title}",
        data=data,
        backbone=f"resnet{depth}",
        epochs=PAPER_EPOCHS,
        schedule=PAPER,
    )
    gated = replace(
        plain,
        name=f"{plain.name}-gated",
        reproduces=f"Table 1, ResNet-{depth}-Gated on {data.title}",
        gating=Gating(sparsity=SPARSITY),
        pretrain=(plain.name, f"{data.name}/resnet20"),
    )
    short = replace(
        plain,
        name=f"{plain.name}-short",
        reproduces=f"not in the paper: ResNet-{depth} on {data.title} in a tenth of the time",
        epochs=SHORT_EPOCHS,
        schedule=SHORT,
        optimizer=SHORT_OPTIMIZER,
    )
    gated_short = replace(
        short,
        name=f"{plain.name}-gated-short",
        reproduces=f"not in the paper: ResNet-{depth}-Gated on {data.title} in a tenth of the time",
        gating=SHORT_GATING,
        pretrain=(short.name, f"{data.name}/resnet20-short"),
        optimizer=replace(SHORT_OPTIMIZER, lr=0.05),
    )
    return [plain, gated, short, gated_short]


RECIPES = [
    recipe for data in (CIFAR10, CIFAR100) for depth in (20, 56) for recipe in _resnet(data, depth)
]
