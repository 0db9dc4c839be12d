"""The one training loop: every phase of every recipe is values handed to `fit`."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from gaternet.binarizers import GateForm
from gaternet.data.batches import Images
from gaternet.errors import Interrupted, UserError
from gaternet.model import GatedModel
from gaternet.training.calibration import calibrate
from gaternet.training.collapse import WARNING, collapse_warning
from gaternet.training.compute import hardware
from gaternet.training.evaluation import evaluate
from gaternet.training.interruption import Watch
from gaternet.training.progress import Reporter
from gaternet.training.run import Run
from gaternet.training.tracking import Board
from gaternet.training.trainer import Trainer


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


def fit(
    trainer: Trainer,
    images: Images,
    probe: Probe,
    run: Run,
    reporter: Reporter,
    watch: Watch | None = None,
) -> None:
    """Train until the schedule's last epoch, with a checkpoint and a line of metrics an epoch.

    watch: when to save within an epoch, and when to stop

    Raises UserError where loss or gradients are no longer finite, with the layer where that began;
    the last good checkpoint stays. Raises Interrupted, when everything is saved, where the process
    was told to end.
    """
    if trainer.epoch == trainer.recipe.epochs:
        return  # only to be measured: hours of `reproduce` that are over do not matter any more
    watch = watch or Watch()
    board = Board(run) if run.writes else None
    with watch.interruption.deferred():
        while trainer.epoch < trainer.recipe.epochs:
            numbers = _train_epoch(trainer, images, run, reporter, watch)
            metrics = _close_epoch(trainer, images, probe, numbers)
            if warning := _collapse(trainer, images, metrics, run):
                metrics[WARNING] = warning
            # In this order: resuming forgets metrics without a checkpoint, never the reverse.
            run.log(metrics)
            run.save_checkpoint(trainer.epoch, *trainer.state())
            watch.saved()
            if board:
                board.add_epoch(metrics)
            reporter.epoch(metrics)
            if received := watch.look(at_once=True)[1]:
                raise Interrupted(received, f" after epoch {trainer.epoch}")


def _train_epoch(
    trainer: Trainer, images: Images, run: Run, reporter: Reporter, watch: Watch
) -> dict[str, float]:
    """Train one epoch, saving and stopping on the way as `watch` has it."""

    def after_step() -> None:
        due, received = watch.look()
        if due or received:
            trainer.stop_if_diverged(images)
            trainer.note_skipped(images)
            run.save_checkpoint(trainer.epoch, *trainer.state(), step=trainer.steps)
            watch.saved()
        if received:
            raise Interrupted(received, f" after step {trainer.steps} of epoch {trainer.epoch + 1}")

    return trainer.train_epoch(images, reporter, after_step)


def _close_epoch(
    trainer: Trainer, images: Images, probe: Probe, numbers: dict[str, float]
) -> dict[str, Any]:
    """Return an epoch's metrics; behind the last one, make the network that is evaluated."""
    recipe = trainer.recipe
    last = trainer.epoch == recipe.epochs
    warning = calibrate(trainer, images) if last and recipe.gating else None
    metrics: dict[str, Any] = {"epoch": trainer.epoch} | numbers
    if warning:
        metrics[WARNING] = warning
    metrics["lr"] = trainer.optimizer.param_groups[0]["lr"]
    metrics["probe"] = shown = probe_metrics(trainer, probe)
    if trainer.skipped:
        metrics["skipped_images"] = len(trainer.skipped)
    metrics["seconds"] = time.monotonic() - trainer.began
    metrics["hardware"] = hardware(trainer.plan.device)
    _check_finite(shown[shown["form"]]["loss"], trainer.epoch)
    return metrics


def _collapse(trainer: Trainer, images: Images, metrics: dict[str, Any], run: Run) -> str | None:
    """Return what to warn of behind the epoch of `metrics`; the process that writes has it."""
    if not run.writes:
        return None
    epochs = [*run.metrics(), metrics]
    return collapse_warning(trainer.recipe, trainer.steps_per_epoch(images), epochs)


def _check_finite(loss: float, epoch: int) -> None:
    """Raise UserError where a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} in epoch {epoch}; checkpoints of earlier epochs are kept. "
            "Start again in a new --out with a lower --optimizer.lr"
        )
