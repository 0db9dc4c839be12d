"""The flags of `gaternet train RECIPE`: the recipe's settings, with its values as defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from gaternet.data.settings import Augmentation
from gaternet.errors import UsageError
from gaternet.flags import REGISTRY
from gaternet.recipes import describe_length
from gaternet.training.config import (
    Compute,
    Gating,
    Optimizer,
    Recipe,
    Resumption,
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


RESUMING = ("--resume", "--strict", "--allow-change")
"""Flags that a run which has not begun does not take."""
SEVERAL = ("--seeds", "--at-once")
"""Flags that none of several runs takes."""


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
    """Run, or name from `gaternet models`, that the backbone's weights come from; none: as the
    recipe says."""
    pretrained: FlagCreatePairsOff[bool] = False
    """Start from timm's own weights where no run is given."""
    from_scratch: FlagCreatePairsOff[bool] = False
    """Start from fresh weights, without pre-training."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What becomes of a training image that cannot be read; skipped ones are counted and shown."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on from the newest checkpoint in --out; a damaged one is passed over, with a warning."""
    strict: FlagCreatePairsOff[bool] = False
    """With --resume: refuse a damaged checkpoint instead."""
    allow_change: Annotated[
        tuple[str, ...], arg(metavar="FIELD [FIELD …]", help_behavior_hint="(default: none)")
    ] = ()
    """With --resume: what may have changed since the run was begun: settings, images,
    gaternet, torch."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; there is one after every epoch."""
    seeds: Annotated[tuple[int, ...], arg(help_behavior_hint="(default: none)")] = ()
    """Several runs at once in place of --seed, one for each of these, into OUT/seed-N."""
    at_once: Annotated[
        int | None, arg(help_behavior_hint="(default: the number of cores, on a GPU 4 at most)")
    ] = None
    """With --seeds: how many of them run at the same time, each with its share of the cores."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class GatedArguments(TrainingArguments):
    """What can be said of a gated network's run besides."""

    gating: Gating = field(default_factory=Gating)
    gater: Path | None = None
    """Run, or name from `gaternet models`, that the gater's weights come from; none: as the
    recipe says."""


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
    typed = replace(
        recipe,
        backbone=arguments.network,
        gating=arguments.gating if isinstance(arguments, GatedArguments) else None,
        **{name: getattr(arguments, name) for name in SAME_NAMES},
    )
    # Where the gater was taken away by a flag, none is pre-trained.
    return check(replace(typed, pretrain=typed.pretrain[: len(parts(typed))]))


def resumption(arguments: TrainingArguments) -> Resumption:
    """Return how the run is gone on with.

    Raises UsageError for flags that go with --resume, without it.
    """
    for flag, given in (("strict", arguments.strict), ("allow-change", arguments.allow_change)):
        if given and not arguments.resume:
            raise UsageError(f"--{flag} goes with --resume")
    if not arguments.checkpoint_minutes > 0:
        raise UsageError(f"--checkpoint-minutes {arguments.checkpoint_minutes:g} is not above 0")
    return Resumption(arguments.allow_change, arguments.strict)


def lasting(words: Sequence[str]) -> list[str]:
    """Return what was typed without what only goes on with a run: typed anew, it starts anew."""
    return without(words, *RESUMING)


def without(words: Sequence[str], *flags: str) -> list[str]:
    """Return what was typed without these flags and their values."""
    kept: list[str] = []
    dropping = False
    for word in words:
        if word.startswith("--"):
            dropping = word.partition("=")[0].replace("_", "-") in flags
        if not dropping:
            kept.append(word)
    return kept


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
