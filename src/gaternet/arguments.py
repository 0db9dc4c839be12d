"""The flags of `gaternet train RECIPE`: the recipe's settings, with its values as defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import FlagCreatePairsOff

from gaternet.data.settings import Augmentation
from gaternet.errors import UsageError
from gaternet.flags import REGISTRY
from gaternet.recipes import describe_length
from gaternet.training.config import (
    Compute,
    Gating,
    Optimizer,
    Recipe,
    Schedule,
    Sources,
    check,
    parts,
)

SAME_NAMES = (
    *("epochs", "seed", "validation"),
    *("optimizer", "schedule", "augmentation", "compute"),
)
"""Settings that a recipe and its flags call alike."""


@dataclass(frozen=True)
class TrainingArguments:
    """What can be said of every training run."""

    out: Path
    """Directory of the run; it must be new, or hold the run to --resume."""
    data: str | None
    """Folder (parquet, or images by class) or hub name of the data set."""
    network: str
    """The backbone, by name; timm/NAME takes any timm CNN."""
    epochs: int
    """Length of the run; the schedule spans all of it."""
    seed: int
    """Decides initial weights, order, augmentation and noise."""
    validation: int
    """Training images held out, drawn at random; 0 trains on all of them."""
    optimizer: Optimizer
    schedule: Schedule
    augmentation: Augmentation
    compute: Compute
    backbone: Path | None = None
    """Run that the backbone's weights come from; none: as the recipe says."""
    pretrained: FlagCreatePairsOff[bool] = False
    """Start from timm's own weights where no run is given."""
    from_scratch: FlagCreatePairsOff[bool] = False
    """Start from fresh weights, without pre-training."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What becomes of a training image that cannot be read; skipped ones are counted and shown."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on from the newest checkpoint in --out."""
    seeds: tuple[int, ...] = ()
    """Several runs at once in place of --seed, one for each of these, into OUT/seed-N."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class GatedArguments(TrainingArguments):
    """What can be said of a gated network's run besides."""

    gating: Gating = field(default_factory=Gating)
    gater: Path | None = None
    """Run that the gater's weights come from; none: as the recipe says."""


def parse(recipe: Recipe, words: Sequence[str]) -> TrainingArguments:
    """Return what was typed behind `gaternet train RECIPE`; a wrong flag ends the process."""
    default = TrainingArguments(
        out=tyro.MISSING,
        data=recipe.data.hub,
        network=recipe.backbone,
        **{name: getattr(recipe, name) for name in SAME_NAMES},
    )
    if recipe.gating:
        default = GatedArguments(**vars(default), gating=recipe.gating)
    return tyro.cli(
        type(default),
        default=default,
        prog=f"gaternet train {recipe.name}",
        args=list(words),
        registry=REGISTRY,
        description=f"{recipe.reproduces[:1].upper()}{recipe.reproduces[1:]}. "
        f"{describe_length(recipe)}.",
    )


def applied(recipe: Recipe, arguments: TrainingArguments) -> Recipe:
    """Return the recipe with what was typed in place of its own values.

    Raises UsageError where the values contradict each other.
    """
    if arguments.data is None:
        raise UsageError(f"{recipe.name} has no hub name: say where its images are with --data")
    told = replace(
        recipe,
        backbone=arguments.network,
        gating=arguments.gating if isinstance(arguments, GatedArguments) else None,
        **{name: getattr(arguments, name) for name in SAME_NAMES},
    )
    # Where the gater was taken away by a flag, none is pre-trained.
    return check(replace(told, pretrain=told.pretrain[: len(parts(told))]))


def sources(arguments: TrainingArguments) -> Sources:
    """Return where the run takes images and first weights from."""
    return Sources(
        str(arguments.data),
        arguments.backbone,
        arguments.gater if isinstance(arguments, GatedArguments) else None,
        arguments.pretrained,
        arguments.from_scratch,
        arguments.on_bad_image,
    )
