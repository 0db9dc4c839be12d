"""What a training run is made of: typed, frozen, checked before any data is read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gaternet.data.settings import Augmentation, DataConfig
from gaternet.errors import UsageError, UserError

_STRICT = ConfigDict(extra="forbid")

BLIND = "blind"
"""The gater that has no network: one mask for all images."""

MAX_WORKERS = 1024
"""Of one training process; each takes some 200 MB."""


@dataclass(frozen=True)
class Optimizer:
    """Stochastic gradient descent with momentum, or RMSProp as Inception-v4 was trained with."""

    kind: Literal["sgd", "rmsprop"] = "sgd"
    """rmsprop: the mean of squares decays by 0.9 per step, and ε is 1 (Szegedy et al., 2017)."""
    lr: float = 0.1
    """Highest learning rate, for the whole batch."""
    momentum: float = 0.9
    """Share of the last step that the next one keeps."""
    nesterov: bool = False
    """Nesterov's form of the momentum; with sgd."""
    weight_decay: float = 1e-4
    """Of every parameter, biases and BatchNorm's too."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls; warm-up and milestones are shares of all the run's epochs."""

    batch_size: int = 128
    """Images per step, of all processes together."""
    kind: Literal["step", "cosine", "exponential"] = "cosine"
    """step: down at the milestones; cosine: smoothly to zero; exponential: down at each decay."""
    milestones: tuple[float, ...] = ()
    """Step: where the learning rate is divided by ten, as shares; no value: nowhere."""
    decays: int = 0
    """Exponential: how often, evenly spread, the learning rate is multiplied by 0.94."""
    warmup: float = 0.0
    """Share of the schedule in which the learning rate rises linearly from zero."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, for networks that do not fit."""
    ema: float = 0.0
    """Decay per step of the averaged weights that are evaluated; 0: no averaging."""

    __pydantic_config__ = _STRICT


BinarizerName = Literal[
    "semhash", "straight-through", "gumbel-sigmoid", "hard-concrete", "soft", "random"
]


@dataclass(frozen=True)
class Gating:
    """Who decides on the gates, and how they are trained (paper, sections 3.2 and 3.3)."""

    decides: Literal["gater", "layers", "branches"] = "gater"
    """gater: one network, from the image, for all layers (the paper); layers: each gated layer
    from its own input; branches: each residual branch as a whole, from its own input too
    (ConvNet-AIG)."""
    gater: str | None = "resnet20"
    """The gater's network, by name; none where layers or branches decide; blind: it does not look,
    and decides once for all images."""
    points: Literal["outer", "inner", "both"] = "outer"
    """outer: the filters that the paper gates; inner: those of the other layers of residual
    branches, where the next layer saves as much again; both."""
    block: int = 1
    """Neighbouring filters that one gate opens or closes together."""
    bottleneck: int = 8
    """Width between the two linear layers that end in the gates' logits."""
    batch_norm: bool = True
    """BatchNorm between the two linear layers (the authors' checkpoints have none)."""
    input_size: int | None = None
    """Side of the smaller copy of the image that the gater sees; none: the image itself."""
    opening_bias: float = 0.0
    """Initial bias of every gate's logit: above zero, gates start open."""
    binarizer: BinarizerName = "semhash"
    """From logits to gates: Improved SemHash (the paper), or one of its rivals."""
    rate: float | None = None
    """Share of gates that binarizer random opens, whatever the image; none with others."""
    sparsity: float = 0.0
    """λ, the weight of the L1 term."""
    target_rate: float | None = None
    """Opening rate that a squared error drives every gate to, besides the L1 term; or none."""
    budget: float | None = None
    """Multiply-accumulates per image that gates are trained to need on average, the gater's
    included, as a share of the plain backbone's; none: no budget."""
    budget_from: float = 0.3
    """Share of the schedule from which the budget holds; until there it falls from 1."""
    dropout: float = 0.0
    """Rate that dropout on the gates reaches, growing linearly from 0 (paper, appendix B)."""
    ungated: float = 0.0
    """Share of training's images for which every gate is open, drawn anew each time, so that the
    backbone learns to classify by itself. (Their gates still count in the L1 term.)"""
    anneal_from: float = 1.0
    """Share of the schedule after which the noise fades and more samples take the hard branch."""
    anneal_until: float = 1.0
    """Share of the schedule from which training decides exactly as evaluation does."""
    reestimate_batch_norm: bool = False
    """Measure BatchNorm's statistics again under hard gates when training has ended."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Compute:
    """How the device is used; the defaults follow from `benchmarks/compute_settings.py`."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device has instructions for it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """auto: on a GPU; on a CPU it takes a minute and the steps are no faster."""
    channels_last: bool = True
    """Keep the channels of a pixel side by side in memory."""
    sync_batch_norm: bool = False
    """Batch statistics over all processes; off: each process normalises its own part of a batch."""
    workers: int | None = None
    """Processes that decode images from disk, for each training process; none: its share of
    the cores."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes, but where its data lies."""

    name: str
    reproduces: str = field(compare=False)
    """A line for people: no setting, so that another wording asks for no other run."""
    data: DataConfig
    backbone: str
    epochs: int
    """Whatever their number, the schedule spans all of them."""
    gating: Gating | None = None
    """None trains the backbone as it is."""
    pretrain: tuple[str, ...] = ()
    """Recipes that pre-train the backbone, and the gater's extractor where there is one (paper,
    section 3.3); empty: fresh weights."""
    validation: int = 0
    """Training images that are held out, drawn at random; 0 trains on all of them."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    compute: Compute = field(default_factory=Compute)
    seed: int = 0

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Sources:
    """Where a run takes what it does not make: images, and pre-trained networks."""

    data: str
    backbone: Path | None = None
    gater: Path | None = None
    pretrained: bool = False
    """timm's own weights for the networks that no run is given for."""
    from_scratch: bool = False
    on_bad_image: Literal["stop", "skip"] = "stop"

    @property
    def runs(self) -> dict[str, Path]:
        """The runs that were given, by part."""
        given = {"backbone": self.backbone, "gater": self.gater}
        return {part: path for part, path in given.items() if path}


@dataclass(frozen=True)
class Resumption:
    """How a run is gone on with."""

    allow_change: tuple[str, ...] = ()
    """Fields of its configuration that may differ from what it was begun with."""
    strict: bool = False
    """Refuse a damaged checkpoint: do not go back to the one before it."""


def check(recipe: Recipe) -> Recipe:
    """Return `recipe` if it can be run; raise UsageError that names the contradictory settings."""
    wrong = _faults(recipe)
    if recipe.gating:
        wrong |= _gating_faults(recipe.gating)
    wrong["pretrain names too many recipes"] = len(recipe.pretrain) > len(parts(recipe))
    for message, applies in wrong.items():
        if applies:
            raise UsageError(f"recipe {recipe.name}: {message}")
    return recipe


def _faults(recipe: Recipe) -> dict[str, bool]:
    optimizer, schedule = recipe.optimizer, recipe.schedule
    parts = schedule.accumulate
    return {
        "epochs must be at least 1": recipe.epochs < 1,
        "schedule.batch-size must be at least 2 (BatchNorm)": schedule.batch_size < 2,
        "schedule.accumulate must divide schedule.batch-size": parts < 1
        or schedule.batch_size % parts != 0,
        "schedule.accumulate leaves parts of one image, and BatchNorm needs two": parts > 1
        and schedule.batch_size == parts,
        "schedule.warmup must be in [0, 1)": not 0 <= schedule.warmup < 1,
        "schedule.ema must be in [0, 1)": not 0 <= schedule.ema < 1,
        "schedule.milestones go with schedule.kind step: give --schedule.milestones with no value "
        "behind it": bool(schedule.milestones) and schedule.kind != "step",
        "schedule.kind exponential needs --schedule.decays of at least 1": schedule.decays < 1
        and schedule.kind == "exponential",
        "schedule.decays go with schedule.kind exponential: give --schedule.decays 0": (
            schedule.decays != 0
        )
        and schedule.kind != "exponential",
        "schedule.milestones must rise within (0, 1)": not all(
            a < b for a, b in pairwise((0.0, *schedule.milestones, 1.0))
        ),
        "optimizer.lr must be above 0": not 0 < optimizer.lr < inf,
        "optimizer.momentum must be in [0, 1)": not 0 <= optimizer.momentum < 1,
        "optimizer.momentum must be above 0 with optimizer.nesterov": optimizer.nesterov
        and optimizer.momentum == 0,
        "optimizer.nesterov goes with optimizer.kind sgd: give --optimizer.no-nesterov": (
            optimizer.nesterov and optimizer.kind != "sgd"
        ),
        "optimizer.weight-decay must not be negative": not 0 <= optimizer.weight_decay < inf,
        "optimizer.label-smoothing must be in [0, 1)": not 0 <= optimizer.label_smoothing < 1,
        "validation must not be negative": recipe.validation < 0,
        "seed must be in [0, 2⁶³)": not 0 <= recipe.seed < 2**63,
        f"compute.workers must be in [0, {MAX_WORKERS}]": not (
            0 <= (recipe.compute.workers or 0) <= MAX_WORKERS
        ),
    }


def parts(recipe: Recipe) -> tuple[str, ...]:
    """Return which networks of a recipe's model can start from pre-trained weights."""
    gating = recipe.gating
    if gating and gating.decides == "gater" and gating.binarizer != "random":
        return ("backbone",) if gating.gater == BLIND else ("backbone", "gater")
    return ("backbone",)


def _gating_faults(gating: Gating) -> dict[str, bool]:
    has_gater = gating.decides == "gater"
    fades = gating.anneal_from < 1
    random = gating.binarizer == "random"
    return {
        "gating.decides gater needs a network: give --gating.gater, such as resnet20": has_gater
        and gating.gater is None,
        f"gating.decides {gating.decides} has no gater: give --gating.gater none": not has_gater
        and gating.gater is not None,
        f"gating.decides {gating.decides} has no gater: give --gating.input-size none": (
            not has_gater
        )
        and gating.input_size is not None,
        "gating.bottleneck must be at least 1": gating.bottleneck < 1,
        "gating.input-size must be at least 1": gating.input_size is not None
        and gating.input_size < 1,
        "gating.opening-bias must be finite": not -inf < gating.opening_bias < inf,
        "gating.sparsity must not be negative": not 0 <= gating.sparsity < inf,
        "gating.binarizer random goes with --gating.decides gater": random and not has_gater,
        "gating.binarizer random needs --gating.rate in (0, 1], such as 0.5": random
        and (gating.rate is None or not 0 < gating.rate <= 1),
        "gating.rate goes with gating.binarizer random: give --gating.rate none": not random
        and gating.rate is not None,
        "gating.binarizer random learns nothing: give --gating.sparsity 0 and --gating.target-rate "
        "none": random and (gating.sparsity > 0 or gating.target_rate is not None),
        "gating.target-rate must be in [0, 1]": gating.target_rate is not None
        and not 0 <= gating.target_rate <= 1,
        "gating.block must be at least 1": gating.block < 1,
        "gating.decides branches has one gate for each: give --gating.points outer and "
        "--gating.block 1": gating.decides == "branches"
        and (gating.points, gating.block) != ("outer", 1),
        "gating.budget must be in (0, 1]": gating.budget is not None and not 0 < gating.budget <= 1,
        "gating.budget-from must be in [0, 1]": not 0 <= gating.budget_from <= 1,
        f"gating.binarizer {gating.binarizer} cannot keep a budget: give --gating.budget none": (
            gating.budget is not None and gating.binarizer in ("soft", "random")
        ),
        "gating.dropout must be in [0, 1)": not 0 <= gating.dropout < 1,
        "gating.ungated must be in [0, 1)": not 0 <= gating.ungated < 1,
        f"gating.binarizer {gating.binarizer} has no noise that could fade: give "
        "--gating.anneal-from 1 and --gating.anneal-until 1": fades
        and gating.binarizer in ("straight-through", "soft", "random", "hard-concrete"),
        "0 ≤ gating.anneal-from ≤ gating.anneal-until ≤ 1 does not hold": not (
            0 <= gating.anneal_from <= gating.anneal_until <= 1
        ),
    }


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return plain values, ready for JSON."""
    return asdict(recipe)


def recipe_from_dict(values: object, source: str) -> Recipe:
    """Return the recipe that `values` describe; `source` names their file in errors.

    Raises UserError for an unknown, missing, mistyped or contradictory setting.
    """
    try:
        # As JSON, which is where they come from: "3" is no number there, and 1 is not true.
        return check(_adapter().validate_json(json.dumps(values), strict=True))
    except UsageError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{source}: setting {where!r}: {first['msg'].lower()}") from None


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
