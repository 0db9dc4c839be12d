"""What the images of a run's data set need in multiply-accumulates."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gaternet.accounting import count_macs
from gaternet.analysis import MacReport, collect, report_macs
from gaternet.commands import EvaluationRequest, load_model, split_images
from gaternet.data.batches import first_images, normalised_batches
from gaternet.errors import UsageError
from gaternet.model import GatedModel
from gaternet.training.compute import choose_device
from gaternet.training.run import Run, open_run


@dataclass(frozen=True)
class RunMacs:
    """What a run's images need, and what was counted."""

    run: str
    recipe: str
    data: str
    split: str
    threshold: float
    macs: MacReport


def count_run(path: Path, request: EvaluationRequest, images: int | None = None) -> RunMacs:
    """Count the multiply-accumulates that a run's newest checkpoint needs, layer by layer.

    images: how many are looked at, the first ones of the split; None: all

    Raises UserError where there is none, or where data or flags do not go with it.
    """
    if images is not None and images < 1:
        raise UsageError(f"--images {images}: at least 1")
    run = open_run(path)
    device = choose_device(request.device)
    model = load_model(path, request, device)
    if not isinstance(model, GatedModel):
        raise UsageError(
            f"{path} is a plain network: every image needs the {_plain_macs(model, run):,} "
            "multiply-accumulates of all its filters"
        )
    split, data = split_images(run, request.data, request.split), run.config.recipe.data
    batches = normalised_batches(split, data, device)
    record = collect(model, first_images(batches, images or len(split)))
    report = report_macs(count_macs(model, data.input_size), record)
    return RunMacs(
        str(path),
        run.config.recipe.name,
        split.name,
        request.split,
        model.binarizer.threshold,
        report,
    )


def _plain_macs(model: nn.Module, run: Run) -> int:
    return count_macs(model, run.config.recipe.data.input_size).backbone_macs
