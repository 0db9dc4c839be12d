"""The one training loop: every phase of every recipe is values handed to `fit`."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from gaternet.binarizers import GateForm
from gaternet.data.image_set import ImageSet
from gaternet.training.config import Recipe
from gaternet.training.evaluation import evaluate
from gaternet.training.progress import Reporter
from gaternet.training.run import Run
from gaternet.training.tracking import Board
from gaternet.training.trainer import Trainer, check_finite


@dataclass(frozen=True)
class Probe:
    """Images that are evaluated after every epoch, never test images, and where they come from."""

    images: ImageSet
    images_from: str


def probe_metrics(model: nn.Module, probe: Probe, recipe: Recipe) -> dict[str, Any]:
    """Evaluate on the probe: under hard, soft and noisy gates where there are gates."""
    forms = tuple(GateForm) if recipe.gating else (GateForm.HARD,)
    found = {form.value: evaluate(model, probe.images, recipe.data, form) for form in forms}
    return {"images_from": probe.images_from} | {name: asdict(e) for name, e in found.items()}


def fit(trainer: Trainer, images: ImageSet, probe: Probe, run: Run, reporter: Reporter) -> None:
    """Train until the schedule's last epoch, with a checkpoint and a line of metrics an epoch.

    Raises UserError when the loss is no longer finite; the last good checkpoint stays.
    """
    recipe = trainer.recipe
    with Board(run) as board:
        while trainer.epoch < recipe.epochs:
            start = time.monotonic()
            numbers = trainer.train_epoch(images, reporter)
            last = trainer.epoch == recipe.epochs
            if last and recipe.gating and recipe.gating.reestimate_batch_norm:
                trainer.reestimate_batch_norm(images)
            metrics: dict[str, Any] = {"epoch": trainer.epoch} | numbers
            metrics["lr"] = trainer.optimizer.param_groups[0]["lr"]
            metrics["probe"] = probe_metrics(trainer.evaluated, probe, recipe)
            metrics["seconds"] = time.monotonic() - start
            check_finite(metrics["probe"]["hard"]["loss"], trainer.epoch)
            # In this order: resuming forgets metrics without a checkpoint, never the reverse.
            run.log(metrics)
            run.save_checkpoint(trainer.epoch, *trainer.state())
            board.add_epoch(metrics)
            reporter.epoch(metrics)
