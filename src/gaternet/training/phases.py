"""From a recipe and its data to a finished run: build, start from pre-trained weights, fit."""

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from rich.console import Console
from torch import nn

from gaternet.data.batches import Images
from gaternet.data.image_files import ImageFiles
from gaternet.data.image_set import split_validation
from gaternet.data.sources import load
from gaternet.data.streams import HubStream
from gaternet.errors import UserError
from gaternet.training.budget import make_budget
from gaternet.training.compute import ComputePlan, choose_device, plan
from gaternet.training.config import Recipe, Resumption, Sources
from gaternet.training.interruption import Interruption, Watch
from gaternet.training.lock import check_free, locked
from gaternet.training.loop import Probe, fit
from gaternet.training.processes import ALONE, Processes
from gaternet.training.progress import plain_console, reporting, silent_console
from gaternet.training.reopening import check_begun, reopen
from gaternet.training.result import measure
from gaternet.training.run import Run, RunConfig, check_new, create_run, open_run
from gaternet.training.starting import (
    Start,
    build_model,
    choose_start,
    describe_leaks,
    describe_mismatches,
    load_part,
    pretraining,
    try_networks,
)
from gaternet.training.trainer import Trainer

PROBE_IMAGES = 2000
SHOWN_BAD_IMAGES = 5
VALIDATION_SEED = 0
"""Every run holds out the same images, whatever its own seed (paper, section 4.1)."""


@dataclass(frozen=True)
class Options:
    """What a run hands on to the runs that it starts."""

    device: str = "auto"
    command: str = ""
    """What was typed, for result.json."""
    console: Console = field(default_factory=plain_console)
    processes: Processes = ALONE
    checkpoint_minutes: float = inf
    """Between checkpoints within an epoch."""
    interruption: Interruption = field(default_factory=Interruption)
    resumption: Resumption = field(default_factory=Resumption)
    whole: Run | None = None
    """The run that this one pre-trains a part of."""


@dataclass(frozen=True)
class _Prepared:
    """A phase of which nothing is written yet, and which fits together."""

    recipe: Recipe
    model: nn.Module
    start: Start
    compute: ComputePlan
    images: Images
    probe: Probe
    test: Images


def train(
    recipe: Recipe, sources: Sources, out: Path, options: Options, *, resume: bool = False
) -> Run:
    """Train `recipe` into the directory `out` and measure its test error.

    Networks that a recipe starts from and `sources` does not name are trained first, into
    OUT/backbone and OUT/gater. With `resume` the run goes on from its newest checkpoint.

    Raises UserError, before anything is written, for what does not fit together.
    """
    processes = options.processes
    compute = plan(recipe.compute, choose_device(options.device), processes)
    _check_ranks(recipe, processes)
    if processes.first:  # the others would take its look at the lock for a holder's
        check_free(out)
        (check_begun if resume else check_new)(out)
    start = choose_start(recipe, sources)
    try_networks(recipe)
    model = build_model(recipe, start.pretrained)
    for part, given in start.given.items():
        load_part(model, part, given.path)
    images, test = _load_splits(recipe, sources, processes)
    # Before networks are trained for it: what cannot be had ends here.
    kept, probe = split_probe(recipe, images)
    make_budget(model, recipe)
    if resume and recipe.compute.precision == "auto":
        compute = compute.in_precision(open_run(out).config.precision)
    config = RunConfig(
        *(recipe, images.name, images.fingerprint, images.classes, start.origins()),
        precision=compute.precision,
    )
    prepared = _Prepared(recipe, model, start, compute, kept, probe, test)
    with _held(out, options):
        run = _open(out, config, options, resume=resume)
        begun = dict(start.given)
        for part in start.trained_first:
            begun[part] = train_or_continue(
                pretraining(part, recipe),
                Sources(sources.data, on_bad_image=sources.on_bad_image),
                out / part,
                replace(options, whole=run),
            )
            load_part(model, part, begun[part].path)
        _train_into(run, prepared, begun, options, resume=resume)
    return run


def _held(out: Path, options: Options) -> AbstractContextManager[None]:
    """Hold the run directory; of several processes the first one does."""
    if not options.processes.first:
        return nullcontext()
    return locked(out, functools.partial(options.console.print, soft_wrap=True))


def _train_into(
    run: Run, prepared: _Prepared, begun: Mapping[str, Run], options: Options, *, resume: bool
) -> None:
    """Train a prepared phase, whose parts have their first weights, and measure it."""
    recipe, processes = prepared.recipe, options.processes
    images, probe = prepared.images, prepared.probe
    trainer = Trainer(prepared.model, recipe, prepared.compute)
    console = options.console if processes.first else silent_console()
    for note in (
        *describe_mismatches(prepared.model, recipe, prepared.start),
        *describe_leaks(recipe, prepared.start, run.config.data_fingerprint),
    ):
        console.print(note, soft_wrap=True)
    if prepared.compute.note:
        _say_once(console, prepared.compute.note)
    if resume:
        trainer.restore(run)
    # Only now: settings that it cannot go on with would keep it from going on with its own.
    for going_on in (run, options.whole):
        if going_on:
            going_on.keep_config()
    steps = recipe.epochs * trainer.steps_per_epoch(images)
    watch = Watch(options.interruption, processes, options.checkpoint_minutes)
    with reporting(recipe.name, steps, recipe.epochs, console) as shown:
        fit(trainer, images, probe, run, shown, watch)
    if trainer.skipped:
        shown_names = ", ".join(sorted(trainer.skipped)[:SHOWN_BAD_IMAGES])
        console.print(
            f"bad images left out of training, {len(trainer.skipped)} in all: {shown_names}",
            soft_wrap=True,
        )
    result = measure(trainer, prepared.test, run, _before(prepared.start, begun))
    run.finish(result | {"command": options.command})
    processes.wait()
    console.print(
        f"{recipe.name}: test error {result['test_error_percent']:.2f} % "
        f"({len(prepared.test):,} images); {run.path / 'result.json'}",
        soft_wrap=True,
    )


@functools.cache
def _say_once(console: Console, note: str) -> None:
    console.print(note)


def train_or_continue(recipe: Recipe, sources: Sources, out: Path, options: Options) -> Run:
    """Train `recipe` into `out`, going on where an earlier call was interrupted."""
    started = (out / "config.json").exists()
    if started and open_run(out).result:
        if options.processes.first:
            options.console.print(
                f"{recipe.name}: trained before, in {out} (remove it to train again)",
                soft_wrap=True,
            )
        return open_run(out)
    options.processes.wait()
    return train(recipe, sources, out, options, resume=started)


def _load_splits(recipe: Recipe, sources: Sources, processes: Processes) -> tuple[Images, Images]:
    """Load training and test images; the first process fills the cache for the others."""
    data = recipe.data
    size = data.image_size
    if not processes.first:
        processes.wait()
    images = load(sources.data, data, "train", size, sources.on_bad_image)
    test = load(sources.data, data, data.test_split, size)
    if processes.first:
        processes.wait()
    left = len(images) - recipe.validation
    if left < recipe.schedule.batch_size:
        raise UserError(
            f"{images.name} has {len(images)} training images: too few for --validation "
            f"{recipe.validation} and --schedule.batch-size {recipe.schedule.batch_size}"
        )
    return images, test


def _check_ranks(recipe: Recipe, processes: Processes) -> None:
    size, accumulate = recipe.schedule.batch_size, recipe.schedule.accumulate
    parts = processes.count * accumulate
    if size % parts or size < 2 * parts:
        raise UserError(
            f"--schedule.batch-size {size} cannot be shared by {processes.count} processes in "
            f"{accumulate} parts each: give a multiple of {parts}, at least {2 * parts} (BatchNorm "
            "needs two images)"
        )


def _open(out: Path, config: RunConfig, options: Options, *, resume: bool) -> Run:
    """Create or reopen the run directory; the first process alone writes to it."""
    processes = options.processes
    if resume:
        part = options.whole is not None
        run = reopen(out, config, options.resumption, writes=processes.first, part=part)
        run.settle(strict=options.resumption.strict)
        processes.wait()
        return run
    if processes.first:
        create_run(out, config)
    processes.wait()
    return open_run(out, writes=processes.first)


def split_probe(recipe: Recipe, images: Images) -> tuple[Images, Probe]:
    """Return the images that are trained on, and those that are evaluated after every epoch."""
    if recipe.validation:
        kept, held = split_validation(images, recipe.validation, VALIDATION_SEED)
        if isinstance(held, ImageFiles):
            held = replace(held, on_bad_image="stop")  # whatever is evaluated must be whole
        return kept, Probe(held, "validation")
    sample = max(1, min(PROBE_IMAGES, len(images) // 5))
    if isinstance(images, HubStream):
        return images, Probe(images.sample(sample, recipe.data), "training sample")
    _, seen = split_validation(images, sample, VALIDATION_SEED)
    return images, Probe(seen, "training sample")


def _before(start: Start, begun: Mapping[str, Run]) -> dict[str, int | str]:
    """Say for how many epochs each part was trained before; "timm" where timm did."""
    epochs = {part: _epochs_of_all_phases(run) for part, run in begun.items()}
    return {**epochs, **dict.fromkeys(start.pretrained, "timm")}


def _epochs_of_all_phases(run: Run) -> int | str:
    """Return for how many epochs a plain network was trained in all, or what else it began as."""
    before = ((run.result or {}).get("pretrain_epochs") or {}).get("backbone", 0)
    return before + run.config.recipe.epochs if isinstance(before, int) else before
