"""Error against multiply-accumulates and time: gated, masked and plain runs.

    python benchmarks/efficiency_curve.py --runs RUN … --data DIR --out results/efficiency_NAME.json

Of a gated run also the plain network that `gaternet compress --one-mask` leaves, where all images
have the gates that are open for most training images: what it is worth that each has its own.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import cast

import torch
import tyro
from torch import nn

from gaternet import accounting, compression, saved_models
from gaternet.analysis.record import collect
from gaternet.bench.latency import timed_batches
from gaternet.commands import split_images
from gaternet.data.batches import normalised_batches
from gaternet.errors import UserError
from gaternet.model import GatedModel, GaterNet
from gaternet.reproduction.results import CurvePoint, Mask, Point
from gaternet.right_images import Judged, pack
from gaternet.runtime.forms import Form, Forms, dense_forms, runtime_form
from gaternet.runtime.latency import measure
from gaternet.training.compute import plan
from gaternet.training.config import BLIND
from gaternet.training.evaluation import judge
from gaternet.training.run import Run, open_run
from report import mistakes_reported, publish

OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Of thresholds from a run's own, which is the one that it was trained for; below 0 more opens."""


def main(
    runs: tuple[Path, ...],
    data: str,
    seconds: float = 30.0,
    batch: int = 1,
    out: Path | None = None,
) -> None:
    """Measure runs on test images: the error, multiply-accumulates, and the time of a batch.

    Args:
        runs: Plain and gated ones that have ended.
        data: Folder or hub name of the images.
        seconds: That latencies are measured for, in turns, all together.
        batch: Images at once, for the latency.
        out: JSON file to write as well.
    """
    points = {str(i): p for i, p in enumerate(p for run in runs for p in points_of(run, data))}
    forms = {name: _forms(point, data, batch) for name, point in points.items()}
    ready = tuple(
        Form(f"{name} {form.variant}", form.run, form.open_share, form.macs)
        for name, several in forms.items()
        for form in several.ready
    )
    turns = max(several.turns for several in forms.values())
    times = measure(Forms(ready, {}, turns), batch, seconds, torch.device("cpu"))
    rows = []
    for name, point in points.items():
        own = [row for row in times if row.variant.split()[0] == name]
        fastest = min(own, key=lambda row: row.median_ms)
        form, median, interval = fastest.variant.split()[1], fastest.median_ms, fastest.interval_ms
        rows.append(
            asdict(CurvePoint(**vars(point), form=form, median_ms=median, interval_ms=interval))
        )
    publish({"batch": batch, "rows": rows}, torch.device("cpu"), out)


def points_of(path: Path, data: str) -> Iterator[Point]:
    """Yield a run at several thresholds, under one mask for all images, or as it is.

    Raises UserError for a run that has not ended, and for local gates, which have no threshold that
    all can be compared at.
    """
    run, model = open_run(path), saved_models.load(path)
    if not isinstance(model, GatedModel):
        yield _measured(run, model, data)
    elif not isinstance(model, GaterNet):
        raise UserError(f"{path} has no gater: its gates are decided layer by layer")
    elif _is_one_mask(run):
        yield _measured(run, _masked(path, data), data, mask="trained")
    else:
        trained_for = model.binarizer.threshold
        for offset in OFFSETS:
            model.binarizer.threshold = trained_for + offset
            yield _measured(run, model, data, offset=offset)
        yield _measured(run, _masked(path, data), data, mask="majority")


def _phases(run: Run) -> tuple[int, int]:
    """Return for how many epochs a run's backbone was trained before its last phase, and in it."""
    if run.result is None:
        raise UserError(
            f"{run.path} has not ended, or is what `gaternet compress` left: give trained runs"
        )
    before, epochs = run.result["pretrain_epochs"] or {}, run.result["epochs"]
    begun = before.get("backbone", 0)
    if not isinstance(begun, int) or not isinstance(epochs, int):
        raise UserError(f"{run.path} was not trained here alone: for how many epochs is not known")
    return begun, epochs


def _is_one_mask(run: Run) -> bool:
    """Whether a run's gates were trained to be the same for all images."""
    gating = run.config.recipe.gating
    return gating is not None and gating.gater == BLIND


def _measured(
    run: Run,
    network: nn.Module,
    data: str,
    *,
    mask: Mask | None = None,
    offset: float | None = None,
) -> Point:
    """Measure a form of a run's network on the test images."""
    recipe, (begun, epochs) = run.config.recipe, _phases(run)
    compute = plan(replace(recipe.compute, sync_batch_norm=False), torch.device("cpu"))
    images = split_images(run, data, "test")
    found, right = judge(network, images, recipe.data, compute)
    if right is None:
        raise UserError(f"{data} is streamed: its images have no places to compare networks by")
    if found.gates:
        macs = found.gates.needed_macs
    else:
        macs = accounting.count_macs(network, recipe.data.input_size).backbone_macs
    return Point(
        run=str(run.path),
        backbone=recipe.backbone,
        epochs=begun + epochs,
        goes_on=begun > 0,
        budget=recipe.gating.budget if recipe.gating else None,
        mask=mask,
        threshold=network.binarizer.threshold if isinstance(network, GatedModel) else None,
        offset=offset,
        error_percent=found.error_percent,
        judged=Judged(len(right), images.fingerprint, pack(right.numpy())),
        macs=macs,
    )


@torch.no_grad()
def _forms(point: Point, data: str, batch: int) -> Forms:
    """Return how a point can run: compiled here where it is gated, any way where it is plain."""
    run, model = open_run(Path(point.run)), saved_models.load(point.run)
    batches = timed_batches(run, data, batch, torch.device("cpu"))
    if not isinstance(model, GaterNet):
        return dense_forms(model, batches)
    if point.mask is not None:
        return dense_forms(_masked(run.path, data), batches)
    model.binarizer.threshold = cast(float, point.threshold)
    try:
        return Forms((runtime_form(model, batches, point.macs),), {}, len(batches))
    except UserError as error:
        raise UserError(f"{run.path}: {error}") from None


@cache
def _masked(path: Path, data: str) -> nn.Module:
    """Return the plain network that is left where all images have the gates that most have."""
    run, model = open_run(path), saved_models.load(path)
    assert isinstance(model, GaterNet)
    config = run.config.recipe.data
    record = collect(model, normalised_batches(split_images(run, data, "train"), config, "cpu"))
    made = compression.plan(model, record, one_mask=True)
    return compression.one_mask(model, made)


if __name__ == "__main__":
    with mistakes_reported():
        tyro.cli(main)
