"""Beyond the paper's comparisons: the control, and the gated network with one thing changed.

The paper argues for global binary gates from a pre-trained gater and never measures the
alternatives. Each recipe here differs from the gated one in what its name says, and goes through
the same loop.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gaternet.training.config import BLIND, Recipe, parts


@dataclass(frozen=True)
class Variant:
    """What is changed in a gated recipe, and what for."""

    suffix: str
    title: str
    gating: Mapping[str, Any]


NO_ANNEALING = {"anneal_from": 1.0, "anneal_until": 1.0}
NO_GATER = {"gater": None, "input_size": None}
OPEN_RATE = 0.8
"""What the gated ResNet-20 opens of its gates when a short joint phase follows long pre-training;
where a run opens another share, give that one with --gating.rate."""

AIG_RATE = 0.7
"""Target rate of ConvNet-AIG's branches, its released code's default. Of its ResNet-101 the paper
quotes 22.63 and 6.26 % top-1 and top-5 error (section 4.3), and not the rate."""

CONVNET_AIG = Variant(
    "aig",
    "whole residual branches on or off (ConvNet-AIG)",
    {
        **NO_GATER,
        **NO_ANNEALING,
        "decides": "branches",
        "bottleneck": 16,
        "binarizer": "gumbel-sigmoid",
        "sparsity": 0.0,
        "target_rate": AIG_RATE,
        "opening_bias": 1.9,
        "dropout": 0.0,
    },
)
"""Veit and Belongie, 2018: a gate for each residual branch, from its own pooled input through 16
units, open in 87 % of the cases at first; the rate term has weight 1, as theirs on ImageNet."""

# FC2's biases are the mask: of a gater that sees nothing nothing else reaches the gates.
ONE_MASK = Variant(
    "fixed", "one mask for all images, trained alike", {"gater": BLIND, "input_size": None}
)

SCRATCH = Variant("scratch", "both networks from scratch", {})

SMALLER_GATERS = (8, 14)
"""Depths of ResNets."""

VARIANTS = (
    Variant("local", "each layer decides from its own input", {**NO_GATER, "decides": "layers"}),
    ONE_MASK,
    Variant("soft", "soft gates, never binarized", {**NO_ANNEALING, "binarizer": "soft"}),
    Variant(
        "random",
        "gates at random at one rate",
        {**NO_ANNEALING, "binarizer": "random", "rate": OPEN_RATE, "sparsity": 0.0},
    ),
    Variant(
        "straight-through",
        "straight-through gates without noise",
        {**NO_ANNEALING, "binarizer": "straight-through"},
    ),
    Variant("gumbel-sigmoid", "Gumbel-sigmoid gates", {"binarizer": "gumbel-sigmoid"}),
    # Its noise is what drives it to 0 and 1: without, training would end on soft gates.
    Variant("hard-concrete", "hard-concrete gates", {**NO_ANNEALING, "binarizer": "hard-concrete"}),
    Variant("lambda-0", "without the L1 term", {"sparsity": 0.0}),
    Variant("ungated", "a quarter of training's images see the plain backbone", {"ungated": 0.25}),
    *(
        Variant(f"bottleneck-{size}", f"a bottleneck of {size}", {"bottleneck": size})
        for size in (2, 32, 128)
    ),
    *(
        Variant(f"gater-resnet{depth}", f"ResNet-{depth} as gater", {"gater": f"resnet{depth}"})
        for depth in SMALLER_GATERS
    ),
    Variant(
        "gater-16px", "a gater that sees 16×16 pixels, pre-trained at 32×32", {"input_size": 16}
    ),
    CONVNET_AIG,
)


def control(gated: Recipe) -> Recipe:
    """The control: the plain backbone trained on for as many epochs as the joint phase has."""
    return replace(
        gated,
        name=re.sub("-gated|-efficient", "-control", gated.name),
        reproduces=f"not in the paper: the plain backbone trained on for as many epochs as "
        f"{gated.name}'s joint phase",
        gating=None,
        pretrain=gated.pretrain[:1],
    )


def vary(gated: Recipe, variant: Variant) -> Recipe:
    """Return the gated recipe with what `variant` changes."""
    assert gated.gating is not None
    short = "-short" if gated.name.endswith("-short") else ""
    gating = replace(gated.gating, **variant.gating)
    pretrain = gated.pretrain[: len(parts(replace(gated, gating=gating)))]
    if len(pretrain) > 1 and gating.gater != gated.gating.gater:
        pretrain = (pretrain[0], f"{gated.data.name}/{gating.gater}{short}")
    return replace(
        gated,
        name=f"{gated.name.removesuffix('-short')}-{variant.suffix}{short}",
        reproduces=f"not in the paper: {gated.name}: {variant.title}",
        gating=gating,
        pretrain=pretrain,
    )


def from_scratch(gated: Recipe, plain: Recipe) -> Recipe:
    """Return the gated recipe with both networks fresh, at the rate of the plain backbone's."""
    return replace(vary(gated, SCRATCH), pretrain=(), optimizer=plain.optimizer)


def smaller(resnet20: Recipe, network: str, title: str) -> Recipe:
    """Return a smaller plain network, trained as the ResNet-20 is: a gater, or a baseline."""
    return replace(
        resnet20,
        name=resnet20.name.replace("resnet20", network),
        reproduces=f"not in the paper: {title} on {resnet20.data.title}, plain",
        backbone=network,
    )
