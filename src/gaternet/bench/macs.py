"""What the images of a run's data set need in multiply-accumulates."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gaternet.accounting import count_macs
from gaternet.analysis import GateRecord, MacReport, collect, report_macs
from gaternet.commands import EvaluationRequest, load_model, split_images
from gaternet.data.batches import first_images, normalised_batches, spread
from gaternet.errors import UsageError
from gaternet.model import GatedModel
from gaternet.training.compute import choose_device
from gaternet.training.run import open_run


@dataclass(frozen=True)
class RunMacs:
    """What a run's images need, and what was counted.

    threshold: None of a plain network
    """

    run: str
    recipe: str
    data: str
    split: str
    threshold: float | None
    macs: MacReport


def count_run(path: Path, request: EvaluationRequest, images: int | None = None) -> RunMacs:
    """Count the multiply-accumulates that a run's newest checkpoint needs, layer by layer.

    images: how many are looked at, from all over the split; None: all

    Raises UserError where there is none, or where data or flags do not go with it.
    """
    if images is not None and images < 1:
        raise UsageError(f"--images {images}: at least 1")
    run = open_run(path)
    device = choose_device(request.device)
    model = load_model(path, request, device)
    split, data = split_images(run, request.data, request.split), run.config.recipe.data
    count = min(images or len(split), len(split))
    batches = first_images(normalised_batches(spread(split, count), data, device), count)
    record = collect(model, batches) if isinstance(model, GatedModel) else _no_gates(count)
    report = report_macs(count_macs(model, data.input_size), record)
    return RunMacs(
        str(path),
        run.config.recipe.name,
        split.name,
        request.split,
        model.binarizer.threshold if isinstance(model, GatedModel) else None,
        report,
    )


def _no_gates(images: int) -> GateRecord:
    """Return the record of a plain network: every image needs all of its filters."""
    return GateRecord(np.zeros((images, 0), np.uint8), {})
