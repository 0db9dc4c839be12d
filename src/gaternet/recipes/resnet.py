"""ResNets on CIFAR-10 and CIFAR-100: the paper's Table 1, and schedules a tenth as long."""

from dataclasses import replace

from gaternet.data.settings import CIFAR10, CIFAR100, DataConfig
from gaternet.training.config import Gating, Optimizer, Recipe, Schedule

EPOCHS = 164
SCHEDULE = Schedule(batch_size=128, kind="step", milestones=(0.5, 0.75))
"""64,000 steps of 128 images, the learning rate divided by ten at 32,000 and 48,000, momentum 0.9,
weight decay 0.0001 (He et al., 2016a, section 4.2)."""

PREACT_SCHEDULE = replace(SCHEDULE, warmup=400 / 64_000)
"""The same after a warm-up of 400 steps, here linear (He et al., 2016b, appendix)."""

SPARSITY = 0.1
"""λ; the paper prints none. docs/results.md has what was tried on held-out images of CIFAR-10; on
ImageNet nothing has been."""

GATING = Gating(gater="resnet20", bottleneck=8, sparsity=SPARSITY)

SHORT_EPOCHS = 16
SHORT = Schedule(batch_size=128, kind="cosine", warmup=0.1)
SHORT_OPTIMIZER = Optimizer(lr=0.2, nesterov=True, weight_decay=5e-4)
SHORT_GATING = replace(
    GATING, opening_bias=1.0, anneal_from=0.4, anneal_until=0.7, reestimate_batch_norm=True
)
"""The remedy for the gap between noisy training gates and hard ones: the noise fades away."""


def _table1(data: DataConfig, depth: int) -> list[Recipe]:
    """ResNet-`depth`, wider, with squeeze and excitation, and gated: the rows of Table 1."""
    plain = Recipe(
        name=f"{data.name}/resnet{depth}",
        reproduces=f"Table 1, ResNet-{depth} on {data.title}",
        data=data,
        backbone=f"resnet{depth}",
        epochs=EPOCHS,
        schedule=PREACT_SCHEDULE if depth == 164 else SCHEDULE,
    )
    baselines = [
        replace(
            plain,
            name=f"{plain.name}-{kind.lower()}",
            reproduces=f"Table 1, ResNet-{depth}-{kind} on {data.title}",
            backbone=f"{plain.backbone}-{kind.lower()}",
        )
        for kind in ("Wider", "SE")
    ]
    gated = replace(
        plain,
        name=f"{plain.name}-gated",
        reproduces=f"Table 1, ResNet-{depth}-Gated on {data.title}",
        gating=GATING,
        pretrain=(plain.name, f"{data.name}/resnet20"),
    )
    return [plain, *baselines, gated]


def shortened(recipe: Recipe) -> Recipe:
    """Return a recipe of Table 1 with a tenth of the epochs, and what a short schedule needs."""
    gated = recipe.gating is not None
    return replace(
        recipe,
        name=f"{recipe.name}-short",
        reproduces=f"not in the paper: {recipe.reproduces.removeprefix('Table 1, ')} in a tenth "
        "of the time",
        epochs=SHORT_EPOCHS,
        schedule=SHORT,
        optimizer=replace(SHORT_OPTIMIZER, lr=0.05) if gated else SHORT_OPTIMIZER,
        gating=SHORT_GATING if gated else None,
        pretrain=tuple(f"{name}-short" for name in recipe.pretrain),
    )


TABLE1 = [
    recipe
    for data in (CIFAR10, CIFAR100)
    for depth in (20, 56, 164)
    for recipe in _table1(data, depth)
]
SHORTENED = [shortened(recipe) for recipe in TABLE1 if "164" not in recipe.name]
