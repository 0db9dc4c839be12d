"""scikit-learn's digits, 8×8 pixels: the offline demonstration."""

from dataclasses import replace

from gaternet.data.settings import DIGITS, Augmentation
from gaternet.training.config import Gating, Optimizer, Recipe, Schedule

_PLAIN = Recipe(
    name="digits/resnet8",
    reproduces="not in the paper: the demonstration's backbone, and its gater's pre-training",
    data=DIGITS,
    backbone="resnet8",
    optimizer=Optimizer(lr=0.1, nesterov=True, weight_decay=5e-4),
    epochs=20,
    schedule=Schedule(batch_size=64, kind="cosine", warmup=0.1),
    augmentation=Augmentation(crop_padding=1, mirror=False),
)

_GATED = replace(
    _PLAIN,
    name="digits/resnet8-gated",
    reproduces="not in the paper: the demonstration's gated network",
    gating=Gating(
        gater="resnet8", sparsity=1.0, anneal_from=0.4, anneal_until=0.7, reestimate_batch_norm=True
    ),
    pretrain=("digits/resnet8", "digits/resnet8"),
    optimizer=Optimizer(lr=0.05, nesterov=True, weight_decay=5e-4),
)

RECIPES = [_PLAIN, _GATED]
