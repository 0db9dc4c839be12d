"""The weights that a run starts from: earlier runs, timm's, a pre-training, or fresh ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from gaternet import backbones, model_config, recipes, saved_models
from gaternet.backbones import BackboneConfig
from gaternet.errors import UsageError, UserError
from gaternet.gate_points import GatePoint, find_gate_points
from gaternet.gater import Gater
from gaternet.given_files import describe_pickle_file
from gaternet.graph import trace
from gaternet.local import LocalGaterNet
from gaternet.model import GatedModel, GaterNet
from gaternet.rivals import make_binarizer
from gaternet.trained import located, name_of, suggestion
from gaternet.training.config import Gating, Recipe, Sources, parts
from gaternet.training.dry_run import try_network
from gaternet.training.run import Run, open_run

SEED_OFFSETS = {"backbone": 2000, "gater": 1000}
"""Added to the joint phase's seed, which shall not go through the same batches and crops again; and
where both networks are ResNet-20 they shall not be twins."""
_NAMING = {"backbone": "--network", "gater": "--gating.gater"}
"""The flag that names the network of each part; --backbone and --gater name runs."""


@dataclass(frozen=True)
class Start:
    """Where each part of a model gets its first weights."""

    given: Mapping[str, Run]
    """Runs that the user named."""
    pretrained: tuple[str, ...]
    """Parts that take timm's weights."""
    trained_first: tuple[str, ...]
    """Parts that this run pre-trains."""
    fresh: tuple[str, ...]

    def origins(self) -> dict[str, str]:
        """Say where weights come from, so that a resumed run starts from the same."""
        runs = {
            part: name_of(run.path) or str(run.path.resolve()) for part, run in self.given.items()
        }
        return {
            **runs,
            **dict.fromkeys(self.pretrained, "timm"),
            **dict.fromkeys(self.trained_first, "pre-trained by this run"),
            **dict.fromkeys(self.fresh, "fresh"),
        }


def choose_start(recipe: Recipe, sources: Sources) -> Start:
    """Decide where every part's weights come from.

    Raises UsageError where flags contradict each other or the recipe, UserError where a run that
    was given cannot serve.
    """
    given = sources.runs
    flag = f"--{next(iter(given))}" if given else "--pretrained"
    if sources.from_scratch and (given or sources.pretrained):
        raise UsageError(f"--from-scratch and {flag} contradict each other")
    missing = tuple(part for part in parts(recipe) if part not in given)
    for part in given:
        if part not in parts(recipe):
            raise UsageError(f"{recipe.name} has no {part} to start from: leave --{part} out")
    runs = {part: _open_given(part, path) for part, path in given.items()}
    for part, run in runs.items():
        _check_given(part, run, recipe)
    if sources.pretrained:
        if not missing:
            raise UsageError(
                "--pretrained has no effect where every network has a run: leave it out"
            )
        return Start(runs, missing, (), ())
    if sources.from_scratch or not recipe.pretrain:
        return Start(runs, (), (), missing)
    for part in missing:
        if parts(recipe).index(part) >= len(recipe.pretrain):
            raise UsageError(
                f"{recipe.name} names no recipe to pre-train its {part} with: give --{part}, "
                "--pretrained or --from-scratch"
            )
    return Start(runs, (), missing, ())


def _open_given(part: str, path: Path) -> Run:
    if pickled := describe_pickle_file(path):
        raise UserError(f"--{part} {path} {pickled}; give the directory of a run")
    if not located(path).is_dir():
        hint = f"; a network is named with {_NAMING[part]}" if backbones.is_name(str(path)) else ""
        raise UserError(f"--{part} {path}: there is no such run directory{hint}{suggestion(path)}")
    return open_run(path)


def _check_given(part: str, run: Run, recipe: Recipe) -> None:
    if run.result is None:
        raise UserError(
            f"--{part} {run.path} has not finished training: go on with its --resume first"
        )
    if run.config.recipe.validation < recipe.validation:
        raise UserError(
            f"--{part} {run.path} was trained on images that --validation {recipe.validation} "
            "holds out: train it with the same --validation"
        )


def describe_mismatches(model: nn.Module, recipe: Recipe, start: Start) -> list[str]:
    """Say which first weights were trained on images that were normalised in another way."""
    found: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        part: (run.config.recipe.data.mean, run.config.recipe.data.std)
        for part, run in start.given.items()
    }
    for part in start.pretrained:
        trained: Mapping[str, Any] = getattr(_network(model, part), "pretrained_cfg", None) or {}
        if "mean" in trained and "std" in trained:
            found[part] = (tuple(trained["mean"]), tuple(trained["std"]))
    wanted = (recipe.data.mean, recipe.data.std)
    return [
        f"note: the {part}'s first weights were trained with mean {mean} and standard deviation "
        f"{std}, this run has {wanted[0]} and {wanted[1]}"
        for part, (mean, std) in found.items()
        if (mean, std) != wanted
    ]


def describe_leaks(recipe: Recipe, start: Start, fingerprint: str) -> list[str]:
    """Say which given runs may have been trained on images that this run holds out.

    fingerprint: of this run's images; which are held out follows from their order
    """
    if not recipe.validation:
        return []
    return [
        f"note: --{part} {run.path} was trained on other images, or on these in another order: "
        "some of those that --validation holds out may be among them"
        for part, run in start.given.items()
        if run.config.data_fingerprint != fingerprint
    ]


def _network(model: nn.Module, part: str) -> nn.Module:
    """Return the network whose weights a part is."""
    if part == "gater" and isinstance(model, GaterNet):
        return model.gater.extractor
    return model.backbone if isinstance(model, GatedModel) else model


def try_networks(recipe: Recipe) -> None:
    """Try a recipe's networks on images as they will see them, before anything is built or written.

    Raises UserError, naming the flag, for an unknown network or one that cannot take the images.
    """
    data = recipe.data
    named = {"backbone": (recipe.backbone, data.classes, data.image_size)}
    if recipe.gating and recipe.gating.gater:
        seen = recipe.gating.input_size or data.image_size
        named["gater"] = (recipe.gating.gater, 0, seen)
    for part, (name, classes, size) in named.items():
        config = BackboneConfig(name, classes, data.channels, data.image_size)
        try:
            with torch.device("meta"):
                network = backbones.create(config)
        except UserError as error:
            raise UserError(f"{_NAMING[part]}: {error}") from None
        try:
            try_network(network, (data.channels, size, size), classes or None)
        except UserError as error:
            raise UserError(f"{_NAMING[part]} {name}: {error}") from None


def build_model(recipe: Recipe, pretrained: tuple[str, ...] = ()) -> nn.Module:
    """Build the recipe's network with fresh weights that follow from its seed.

    The parts in `pretrained` take timm's weights. Raises UserError where there are none, or where
    the networks cannot be joined.
    """
    torch.manual_seed(recipe.seed)
    data = recipe.data
    config = BackboneConfig(recipe.backbone, data.classes, data.channels, data.image_size)
    backbone = backbones.create(config, pretrained="backbone" in pretrained)
    if recipe.compute.sync_batch_norm:
        # Before there are gates: the layers that it replaces would take their hooks along.
        backbone = convert_sync_batchnorm(backbone)
    if recipe.gating is None:
        return backbone
    try:
        return _gated(backbone, recipe, recipe.gating, pretrained)
    except ValueError as error:
        raise UserError(f"--network {recipe.backbone} cannot be gated: {error}") from None


def _gated(
    backbone: nn.Module, recipe: Recipe, gating: Gating, pretrained: tuple[str, ...]
) -> GatedModel:
    if gating.gater is None:
        local = _with_local_gates(backbone, recipe, gating)
        if recipe.compute.sync_batch_norm:
            convert_sync_batchnorm(local.heads)
        return local
    model = _with_gater(backbone, recipe, gating, gating.gater, pretrained)
    # Only now has the gater its last layers.
    if recipe.compute.sync_batch_norm:
        convert_sync_batchnorm(model.gater)
    if gating.binarizer == "random":
        model.gater.requires_grad_(False)  # nobody listens to it
    return model


def _with_local_gates(backbone: nn.Module, recipe: Recipe, gating: Gating) -> LocalGaterNet:
    return LocalGaterNet(
        backbone,
        _points(backbone, recipe, gating),
        granularity="filters" if gating.decides == "layers" else "branches",
        bottleneck=gating.bottleneck,
        batch_norm=gating.batch_norm,
        opening_bias=gating.opening_bias,
        binarizer=make_binarizer(gating.binarizer, gating.rate),
        input_size=recipe.data.input_size,
    )


def _with_gater(
    backbone: nn.Module, recipe: Recipe, gating: Gating, name: str, pretrained: tuple[str, ...]
) -> GaterNet:
    data = recipe.data
    config = BackboneConfig(name, 0, data.channels, data.image_size)
    gater = Gater(
        backbones.create(config, pretrained="gater" in pretrained),
        gating.bottleneck,
        batch_norm=gating.batch_norm,
        input_size=gating.input_size,
        opening_bias=gating.opening_bias,
    )
    binarizer = make_binarizer(gating.binarizer, gating.rate)
    points = _points(backbone, recipe, gating)
    return GaterNet(backbone, gater, points, input_size=data.input_size, binarizer=binarizer)


def _points(backbone: nn.Module, recipe: Recipe, gating: Gating) -> tuple[GatePoint, ...] | None:
    """Return the gate points that a recipe asks for; None for the paper's, or for branches."""
    if (gating.points, gating.block) == ("outer", 1):
        return None
    graph = trace(backbone, recipe.data.input_size)
    try:
        return find_gate_points(graph, gating.points, gating.block)
    except ValueError as error:
        raise UsageError(
            f"--gating.points {gating.points} --gating.block {gating.block} do not go with "
            f"--network {recipe.backbone}: {error}"
        ) from None


def pretraining(part: str, joint: Recipe) -> Recipe:
    """Return the recipe that pre-trains the `backbone` or the `gater` of a joint recipe.

    It is the recipe that `joint.pretrain` names, on the same images; what was changed in the joint
    phase by hand, its length, batches and augmentation, is changed alike.
    """
    recipe = recipes.get(joint.pretrain[parts(joint).index(part)])
    usual = recipes.RECIPES.get(joint.name, joint)
    gater = joint.gating.gater if joint.gating else None
    schedule = recipe.schedule
    if joint.schedule.batch_size != usual.schedule.batch_size:
        schedule = replace(schedule, batch_size=joint.schedule.batch_size)
    if joint.schedule.accumulate != usual.schedule.accumulate:
        schedule = replace(schedule, accumulate=joint.schedule.accumulate)
    changed = joint.augmentation != usual.augmentation
    return replace(
        recipe,
        data=joint.data,
        backbone=gater if part == "gater" and gater else joint.backbone,
        epochs=max(1, round(recipe.epochs * joint.epochs / usual.epochs)),
        schedule=schedule,
        augmentation=joint.augmentation if changed else recipe.augmentation,
        validation=joint.validation,
        compute=joint.compute,
        seed=joint.seed + SEED_OFFSETS[part],
    )


def load_part(model: nn.Module, part: str, path: Path) -> None:
    """Load a plain network's weights into a part of `model`, without the classifier in a gater.

    Raises UserError where `path` holds another network.
    """
    network = _network(model, part)
    loaded = saved_models.load(path)
    found, wanted = model_config.describe(loaded), backbones.describe(network)
    # By name first: a ResNet-56 has every weight of a ResNet-20, and more.
    if found.gated or found.backbone.name != wanted.name:
        kind = "gated " if found.gated else ""
        raise UserError(
            f"--{part} {path} holds a {kind}{found.backbone.name}, not a plain {wanted.name}"
        )
    for what in ("channels", "classes"):
        has, needs = getattr(found.backbone, what), getattr(wanted, what)
        if needs and has != needs:  # a gater's extractor has no classes
            raise UserError(
                f"--{part} {path} was trained on images of {has} {what}, the data has {needs}: "
                "give a run on the same data"
            )
    weights = loaded.state_dict()
    for name, expected in network.state_dict().items():
        if name not in weights or weights[name].shape != expected.shape:
            raise UserError(
                f"--{part} {path} holds weights of another network: {name} is missing there or "
                "has another shape"
            )
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
