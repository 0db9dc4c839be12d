"""From a recipe and its data to a finished run: build, start from pre-trained weights, fit."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from gaternet import backbones, checkpoint, recipes
from gaternet.backbones import BackboneConfig
from gaternet.data.image_set import ImageSet, split_validation
from gaternet.data.sources import load
from gaternet.errors import UsageError, UserError
from gaternet.gater import Gater
from gaternet.model import GaterNet
from gaternet.training.compute import choose_device, plan
from gaternet.training.config import Recipe, recipe_to_dict
from gaternet.training.loop import Probe, fit
from gaternet.training.progress import plain_console, reporting
from gaternet.training.result import measure
from gaternet.training.run import Run, RunConfig, create_run, open_run
from gaternet.training.trainer import Trainer

PROBE_IMAGES = 2000
VALIDATION_SEED = 0
"""Every run holds out the same images, whatever its own seed (paper, section 4.1)."""

GATER_SEED_OFFSET = 1000
PARTS = ("backbone", "gater")


@dataclass(frozen=True)
class Sources:
    """Where a run takes what it does not make: images, and pre-trained networks."""

    data: str
    backbone: Path | None = None
    gater: Path | None = None
    from_scratch: bool = False


def train(
    recipe: Recipe,
    sources: Sources,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    command: str = "",
    console: Console | None = None,
) -> Run:
    """Train `recipe` into the directory `out` and measure its test error.

    Networks that a gated recipe starts from and `sources` does not name are trained first, into
    OUT/backbone and OUT/gater. With `resume` the run goes on from its newest checkpoint.
    `command` is what was typed, for result.json.

    Raises UserError, before anything is written, for what does not fit together.
    """
    console = console or plain_console()
    chosen = choose_device(device)
    model = build_model(recipe)
    started_from = _given_parts(model, recipe, sources)
    images = load(sources.data, recipe.data, "train", recipe.data.image_size)
    test = load(sources.data, recipe.data, "test", recipe.data.image_size)
    _check_sizes(recipe, images)
    config = RunConfig(
        recipe, images.name, images.fingerprint, images.classes, _origins(model, sources)
    )
    run = _reopen(out, config) if resume else create_run(out, config)
    options = Options(device, command, console)
    if isinstance(model, GaterNet) and not sources.from_scratch:
        for part in PARTS:
            if part not in started_from:
                started_from[part] = train_or_continue(
                    pretraining(part, recipe), Sources(sources.data), out / part, options
                )
                _load_part(model, part, started_from[part].path)
    images, probe = _split(recipe, images)
    steps = recipe.epochs * (len(images) // recipe.schedule.batch_size)
    trainer = Trainer(model, recipe, plan(recipe.compute, chosen))
    if trainer.plan.note:
        _say_once(console, trainer.plan.note)
    if resume:
        trainer.restore(run)
    with reporting(recipe.name, steps, recipe.epochs, console) as shown:
        fit(trainer, images.to(chosen), probe, run, shown)
    epochs = {part: begun.config.recipe.epochs for part, begun in started_from.items()}
    result = measure(trainer, test, run, epochs) | {"command": command}
    run.finish(result)
    console.print(
        f"{recipe.name}: test error {result['test_error_percent']:.2f} % "
        f"({len(test):,} images); {run.path / 'result.json'}",
        soft_wrap=True,
    )
    return run


@functools.cache
def _say_once(console: Console, note: str) -> None:
    console.print(note)


@dataclass(frozen=True)
class Options:
    """What a run hands on to the runs that it starts."""

    device: str
    command: str
    console: Console


def train_or_continue(recipe: Recipe, sources: Sources, out: Path, options: Options) -> Run:
    """Train `recipe` into `out`, going on where an earlier call was interrupted."""
    started = (out / "config.json").exists()
    if started and open_run(out).result:
        options.console.print(
            f"{recipe.name}: trained before, in {out} (remove it to train again)", soft_wrap=True
        )
        return open_run(out)
    return train(recipe, sources, out, resume=started, **vars(options))


def _reopen(out: Path, config: RunConfig) -> Run:
    run = open_run(out)
    if run.result:
        raise UserError(f"{out} has ended already; its figures are in {out / 'result.json'}")
    before, now = (
        _flat(recipe_to_dict(c.recipe) | {"weights": c.weights}) for c in (run.config, config)
    )
    changed = [
        f"{name} {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]
    ]
    if changed:
        raise UserError(
            f"{out} was begun with other settings ({'; '.join(changed)}); "
            "resume it with the same flags, or start anew in another directory"
        )
    if run.config.data_fingerprint != config.data_fingerprint:
        raise UserError(
            f"{out} was begun with other images than these; resume it with the same --data"
        )
    return run


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _check_sizes(recipe: Recipe, images: ImageSet) -> None:
    left = len(images) - recipe.validation
    if left < recipe.schedule.batch_size:
        raise UserError(
            f"{images.name} has {len(images)} training images: too few for --validation "
            f"{recipe.validation} and --schedule.batch-size {recipe.schedule.batch_size}"
        )


def build_model(recipe: Recipe) -> nn.Module:
    """Build the recipe's network with fresh weights that follow from its seed."""
    torch.manual_seed(recipe.seed)
    data = recipe.data
    size = (data.channels, data.image_size, data.image_size)
    backbone = backbones.create(
        BackboneConfig(recipe.backbone, data.classes, data.channels, data.image_size)
    )
    if recipe.gating is None:
        return backbone
    gating = recipe.gating
    extractor = backbones.create(BackboneConfig(gating.gater, 0, data.channels, data.image_size))
    gater = Gater(
        extractor,
        gating.bottleneck,
        batch_norm=gating.batch_norm,
        input_size=gating.input_size,
        opening_bias=gating.opening_bias,
    )
    try:
        return GaterNet(backbone, gater, input_size=size)
    except ValueError as error:
        raise UserError(f"{recipe.backbone} and {gating.gater} cannot be joined: {error}") from None


def _split(recipe: Recipe, images: ImageSet) -> tuple[ImageSet, Probe]:
    if recipe.validation:
        kept, held = split_validation(images, recipe.validation, VALIDATION_SEED)
        return kept, Probe(held, "validation")
    sample = max(1, min(PROBE_IMAGES, len(images) // 5))
    _, seen = split_validation(images, sample, VALIDATION_SEED)
    return images, Probe(seen, "training sample")


def _given_parts(model: nn.Module, recipe: Recipe, sources: Sources) -> dict[str, Run]:
    """Load the networks that the user gave; return their runs by part."""
    given = {"backbone": sources.backbone, "gater": sources.gater}
    runs = {part: open_run(path) for part, path in given.items() if path}
    if runs and sources.from_scratch:
        raise UsageError(f"--from-scratch and --{next(iter(runs))} contradict each other")
    if isinstance(model, GaterNet):
        if not recipe.pretrain and len(runs) < len(PARTS) and not sources.from_scratch:
            raise UsageError(
                f"{recipe.name} names no recipes to pre-train with; give --backbone and --gater, "
                "or --from-scratch"
            )
        for part, run in runs.items():
            _check_given(part, run, recipe)
            _load_part(model, part, run.path)
    return runs


def _check_given(part: str, run: Run, recipe: Recipe) -> None:
    if run.result is None:
        raise UserError(f"--{part} {run.path} has not ended: go on with its --resume first")
    if run.config.recipe.validation < recipe.validation:
        raise UserError(
            f"--{part} {run.path} was trained on images that --validation {recipe.validation} "
            "holds out: train it with the same --validation"
        )


def _origins(model: nn.Module, sources: Sources) -> dict[str, str]:
    """Say where each part's weights come from, so that a resumed run starts from the same."""
    if not isinstance(model, GaterNet):
        return {}
    trained = "fresh" if sources.from_scratch else "pre-trained by this run"
    given = (sources.backbone, sources.gater)
    return {
        part: str(path.resolve()) if path else trained
        for part, path in zip(PARTS, given, strict=True)
    }


def pretraining(part: str, joint: Recipe) -> Recipe:
    """Return the recipe that pre-trains the `backbone` or the `gater` of a joint recipe.

    It trains the same network on the same images in the same batches. A joint phase that was
    shortened with --epochs shortens what comes before it alike.
    """
    assert joint.gating is not None
    recipe = recipes.get(joint.pretrain[PARTS.index(part)])
    usual = recipes.RECIPES.get(joint.name, joint)
    return replace(
        recipe,
        backbone=joint.backbone if part == "backbone" else joint.gating.gater,
        epochs=max(1, round(recipe.epochs * joint.epochs / usual.epochs)),
        schedule=replace(
            recipe.schedule,
            batch_size=joint.schedule.batch_size,
            accumulate=joint.schedule.accumulate,
        ),
        augmentation=joint.augmentation,
        validation=joint.validation,
        compute=joint.compute,
        # A seed of its own: where both are ResNet-20 they shall not be twins.
        seed=joint.seed + (GATER_SEED_OFFSET if part == "gater" else 0),
    )


def _load_part(model: GaterNet, part: str, path: Path) -> None:
    """Load a plain network's weights; its classifier is left out of a gater."""
    network = model.backbone if part == "backbone" else model.gater.extractor
    loaded = checkpoint.load(path)
    found, wanted = checkpoint.describe(loaded), backbones.describe(network)
    # By name first: a ResNet-56 has every weight of a ResNet-20, and more.
    if found.gater or found.backbone.name != wanted.name:
        kind = "gated " if found.gater else ""
        raise UserError(
            f"--{part} {path} holds a {kind}{found.backbone.name}, not a plain {wanted.name}"
        )
    weights = loaded.state_dict()
    for name, expected in network.state_dict().items():
        if name not in weights or weights[name].shape != expected.shape:
            raise UserError(
                f"--{part} {path} holds weights of another network: {name} is missing there or "
                "has another shape"
            )
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
