"""From a recipe and its data to a finished run: build, start from pre-trained weights, fit."""

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from gaternet import backbones, checkpoint, graph, recipes
from gaternet.backbones import BackboneConfig
from gaternet.data.image_set import ImageSet, split_validation
from gaternet.data.settings import DataConfig
from gaternet.data.sources import load
from gaternet.errors import UserError
from gaternet.gater import Gater
from gaternet.model import GaterNet
from gaternet.training.compute import choose_device, hardware, plan
from gaternet.training.config import Recipe
from gaternet.training.evaluation import evaluate
from gaternet.training.loop import Probe, Trainer, fit
from gaternet.training.progress import reporting
from gaternet.training.run import Run, RunConfig, create_run, open_run

PROBE_IMAGES = 2000
GATER_SEED_OFFSET = 1000


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
    console: Console | None = None,
) -> Run:
    """Train `recipe` into the directory `out` and measure its test error.

    Networks that a gated recipe starts from and `sources` does not name are trained first, into
    OUT/backbone and OUT/gater.
    """
    console = console or Console()
    if resume:
        existing = open_run(out)
        if existing.result:
            raise UserError(f"{out} has ended already; see {out / 'result.json'}")
        recipe = existing.config.recipe
    images = load(sources.data, recipe.data, "train")
    test = load(sources.data, recipe.data, "test")
    config = RunConfig(recipe, images.name, images.fingerprint, images.classes)
    run = open_run(out) if resume else create_run(out, config)
    if run.config.data_fingerprint != images.fingerprint:
        raise UserError(f"{sources.data} holds other images than those that {out} was begun with")
    model = build_model(recipe)
    started_from = {}
    if recipe.gating and not sources.from_scratch:
        started_from = _start_from_pretrained(model, run, sources, device, console)
    chosen = choose_device(device)
    steps = recipe.schedule.epochs * (len(images) // recipe.schedule.batch_size)
    trainer = Trainer(model, recipe, plan(recipe.compute, chosen, steps))
    if trainer.plan.note:
        console.print(trainer.plan.note)
    if resume:
        trainer.restore(run)
    _fit(trainer, images, run, console)
    return _finish(trainer, test, run, started_from, console)


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
    return GaterNet(backbone, gater, input_size=size)


def _fit(trainer: Trainer, images: ImageSet, run: Run, console: Console) -> None:
    recipe = trainer.recipe
    held_out = recipe.validation or min(PROBE_IMAGES, len(images) // 5)
    kept, held = split_validation(images, held_out, recipe.seed)
    if recipe.validation:
        images, probe = kept, Probe(held, "validation")
    else:
        probe = Probe(held, "training sample")
    epochs = recipe.schedule.epochs
    with reporting(recipe.name, epochs * trainer.steps_per_epoch(images), epochs, console) as shown:
        fit(trainer, images, probe, run, shown)


def _start_from_pretrained(
    model: nn.Module, run: Run, sources: Sources, device: str, console: Console
) -> dict[str, Run]:
    assert isinstance(model, GaterNet)
    recipe = run.config.recipe
    if recipe.pretrain is None:
        raise UserError(f"{recipe.name} names no recipes to pre-train with; use --from-scratch")
    given = {"backbone": sources.backbone, "gater": sources.gater}
    runs = {}
    for part, name in zip(given, recipe.pretrain, strict=True):
        path = given[part]
        runs[part] = (
            open_run(path) if path else _pretrain(name, part, run, sources, device, console)
        )
    _load_part(model.backbone, runs["backbone"].path, "backbone")
    _load_part(model.gater.extractor, runs["gater"].path, "gater")
    return runs


def _pretrain(
    name: str, part: str, run: Run, sources: Sources, device: str, console: Console
) -> Run:
    joint = run.config.recipe
    # The gater's network has a seed of its own: where both are ResNet-20 they shall not be twins.
    seed = joint.seed + (GATER_SEED_OFFSET if part == "gater" else 0)
    recipe = replace(
        recipes.get(name), seed=seed, validation=joint.validation, compute=joint.compute
    )
    return train_or_continue(recipe, Sources(sources.data), run.path / part, device, console)


def train_or_continue(
    recipe: Recipe, sources: Sources, out: Path, device: str, console: Console
) -> Run:
    """Train `recipe` into `out`, going on where an earlier call was interrupted."""
    started = (out / "config.json").exists()
    if started and open_run(out).result:
        console.print(f"{recipe.name}: trained before, in {out}", soft_wrap=True)
        return open_run(out)
    return train(recipe, sources, out, device=device, resume=started, console=console)


def _load_part(network: nn.Module, path: Path, part: str) -> None:
    """Load a plain network's weights; the classifier is left out where `network` has none."""
    weights = checkpoint.load(path).state_dict()
    expected = network.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    wrong = [
        name for name in expected if name in weights and weights[name].shape != expected[name].shape
    ]
    if missing or wrong:
        raise UserError(
            f"--{part} {path}: weights of another network: "
            f"{(missing or wrong)[0]} is missing there or has another shape"
        )
    network.load_state_dict({name: weights[name] for name in expected})


def _finish(
    trainer: Trainer, test: ImageSet, run: Run, started_from: Mapping[str, Run], console: Console
) -> Run:
    recipe, model = trainer.recipe, trainer.evaluated
    measured = evaluate(model, test, recipe.data)
    gates = None
    if measured.gates:
        kept = ("total", "always_on", "always_off", "input_dependent", "mean_open")
        gates = {name: value for name, value in asdict(measured.gates).items() if name in kept}
    pretrained = {part: begun.config.recipe.schedule.epochs for part, begun in started_from.items()}
    run.finish(
        {
            "recipe": recipe.name,
            "command": shlex.join(["gaternet", *sys.argv[1:]]),
            "data": {"name": run.config.data_name, "fingerprint": run.config.data_fingerprint},
            "epochs": recipe.schedule.epochs,
            "pretrain_epochs": pretrained or None,
            "seed": recipe.seed,
            "hardware": hardware(trainer.plan.device),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "wall_seconds": round(sum(line["seconds"] for line in run.metrics())),
            "test_error_percent": round(measured.error_percent, 3),
            "test_top5_error_percent": round(measured.top5_error_percent, 3),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "macs_per_image": macs_per_image(model, recipe.data),
            "gates": gates,
        }
    )
    console.print(
        f"{recipe.name}: test error {measured.error_percent:.2f} % "
        f"({measured.images:,} images); {run.path / 'result.json'}",
        highlight=False,
        soft_wrap=True,
    )
    return run


def macs_per_image(model: nn.Module, data: DataConfig) -> int:
    """Return multiply-accumulates of one image with all gates open, the gater's included."""
    size = (data.channels, data.image_size, data.image_size)
    if not isinstance(model, GaterNet):
        return graph.trace(model, size).total_macs
    glance = model.gater.input_size or data.image_size
    extractor = graph.trace(model.gater.extractor, (data.channels, glance, glance)).total_macs
    head = sum(
        m.in_features * m.out_features for m in model.gater.modules() if isinstance(m, nn.Linear)
    )
    return graph.trace(model.backbone, size).total_macs + extractor + head
