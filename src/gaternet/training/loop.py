"""The one training loop: every phase of every recipe is values handed to `fit`."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from gaternet.binarizers import GateForm
from gaternet.data.batches import Images
from gaternet.model import GatedModel
from gaternet.training.collapse import WARNING, collapse_warning
from gaternet.training.evaluation import evaluate
from gaternet.training.progress import Reporter
from gaternet.training.run import Run
from gaternet.training.tracking import Board
from gaternet.training.trainer import Trainer, check_finite


@dataclass(frozen=True)
class Probe:
    """Images that are evaluated after every epoch, never test images, and where they come from."""

    images: Images
    images_from: str


def probe_metrics(trainer: Trainer, probe: Probe) -> dict[str, Any]:
    """Evaluate on the probe: under hard, soft and noisy gates where there are gates.

    `form` says which of them are the gates of evaluation.
    """
    model, data = trainer.evaluated, trainer.recipe.data
    binarizer = model.binarizer if isinstance(model, GatedModel) else None
    forms = binarizer.forms if binarizer else (GateForm.HARD,)
    found = {form.value: evaluate(model, probe.images, data, trainer.plan, form) for form in forms}
    form = binarizer.form if binarizer else GateForm.HARD
    figures = {name: asdict(evaluation) for name, evaluation in found.items()}
    return {"images_from": probe.images_from, "form": form.value, **figures}


def fit(trainer: Trainer, images: Images, probe: Probe, run: Run, reporter: Reporter) -> None:
    """Train until the schedule's last epoch, with a checkpoint and a line of metrics an epoch.

    Raises UserError where loss or gradients are no longer finite, with the layer where that began;
    the last good checkpoint stays.
    """
    recipe = trainer.recipe
    with Board(run) if run.writes else nullcontext() as board:
        while trainer.epoch < recipe.epochs:
            start = time.monotonic()
            numbers = trainer.train_epoch(images, reporter)
            last = trainer.epoch == recipe.epochs
            if last and recipe.gating and recipe.gating.reestimate_batch_norm:
                trainer.reestimate_batch_norm(images)
            if last:
                trainer.meet_budget(images)
            metrics: dict[str, Any] = {"epoch": trainer.epoch} | numbers
            metrics["lr"] = trainer.optimizer.param_groups[0]["lr"]
            metrics["probe"] = shown = probe_metrics(trainer, probe)
            if trainer.skipped:
                metrics["skipped_images"] = len(trainer.skipped)
            metrics["seconds"] = time.monotonic() - start
            check_finite(shown[shown["form"]]["loss"], trainer.epoch)
            if run.writes:
                lines = [*run.metrics(), metrics]
                warning = collapse_warning(recipe, trainer.steps_per_epoch(images), lines)
                metrics |= {WARNING: warning} if warning else {}
            # In this order: resuming forgets metrics without a checkpoint, never the reverse.
            run.log(metrics)
            run.save_checkpoint(trainer.epoch, *trainer.state())
            if board:
                board.add_epoch(metrics)
            reporter.epoch(metrics)
