"""Error against multiply-accumulates and time: gated, masked and plain runs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from gaternet import accounting, runtime, saved_models
from gaternet.commands import EvaluationRequest, evaluate_run, split_images
from gaternet.data.batches import normalised_batches
from gaternet.model import GaterNet
from gaternet.runtime.contestants import Contestant, Field, dense_forms, under_mask
from gaternet.runtime.latency import measure
from gaternet.training.config import BLIND
from gaternet.training.run import open_run
from report import mistakes_told, publish

THRESHOLDS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Added to a run's own threshold: below 0 opens more gates."""


@dataclass(frozen=True)
class Point:
    """One network at one threshold: error on test images, and what an image costs.

    budget: what its gates were trained for, as a share of the plain backbone
    threshold: of gates that are chosen by image; None where there are none
    one_mask: whether all images have the same gates
    macs: multiply-accumulates that an image needs, mean, the gater's included
    """

    run: str
    backbone: str
    epochs: int
    budget: float | None
    one_mask: bool
    threshold: float | None
    error_percent: float
    macs: float


def main(
    runs: tuple[Path, ...],
    data: str,
    seconds: float = 30.0,
    batch: int = 1,
    out: Path | None = None,
) -> None:
    """Measure runs on test images: the error, multiply-accumulates, and the time of a batch.

    Args:
        runs: Plain and gated ones.
        data: Folder or hub name of the images.
        seconds: That latencies are measured for, in turns, all together.
        batch: Images at once, for the latency.
        out: JSON file to write as well.
    """
    points = {str(i): p for i, p in enumerate(p for run in runs for p in _points(run, data))}
    forms = {name: _form(point, data, batch) for name, point in points.items()}
    contestants = tuple(
        Contestant(f"{name} {form.variant}", form.run, form.open_share, form.macs)
        for name, several in forms.items()
        for form in several
    )
    times = measure(Field(contestants, {}), batch, seconds, torch.device("cpu"))
    rows = []
    for name, point in points.items():
        own = [row for row in times if row.variant.split()[0] == name]
        fastest = min(own, key=lambda row: row.median_ms)
        rows.append(
            asdict(point)
            | {"form": fastest.variant.split()[1], "median_ms": fastest.median_ms}
            | {"interval_ms": fastest.interval_ms}
        )
    publish({"batch": batch, "rows": rows}, torch.device("cpu"), out)


def _points(path: Path, data: str) -> Iterator[Point]:
    run = open_run(path)
    model = saved_models.load(path)
    result = run.result or {}
    epochs = result["epochs"] + (result.get("pretrain_epochs") or {}).get("backbone", 0)
    gating = run.config.recipe.gating
    one_mask = gating is not None and gating.gater == BLIND
    thresholds: list[float | None] = [None]
    if isinstance(model, GaterNet) and not one_mask:
        thresholds = [model.binarizer.threshold + offset for offset in THRESHOLDS]
    for threshold in thresholds:
        request = EvaluationRequest(data, "test", None, threshold, "cpu")
        found = evaluate_run(path, request).evaluation
        size = run.config.recipe.data.input_size
        macs = found.gates.needed_macs if found.gates else _dense_macs(model, size)
        budget = gating.budget if gating else None
        backbone = run.config.recipe.backbone
        error = found.error_percent
        yield Point(str(path), backbone, epochs, budget, one_mask, threshold, error, macs)


def _dense_macs(model: nn.Module, size: tuple[int, int, int]) -> int:
    return accounting.count_macs(model, size).backbone_macs


@torch.no_grad()
def _form(point: Point, data: str, batch: int) -> tuple[Contestant, ...]:
    """Return how a point can run: compiled here where it is gated, any way where it is plain.

    Of one mask for all images a plain network is left, without what the mask closes.
    """
    path = Path(point.run)
    model, run = saved_models.load(path), open_run(path)
    found = split_images(run, data, "test")
    images: Tensor = next(normalised_batches(found, run.config.recipe.data, "cpu", batch))
    if not isinstance(model, GaterNet):
        return dense_forms(model, images).contestants
    if point.threshold is None:
        logits, gates = model(images)
        size = run.config.recipe.data.input_size
        small = under_mask(model.backbone, model.points, gates[0], size)
        torch.testing.assert_close(small(images), logits, rtol=1e-3, atol=1e-3)
        return dense_forms(small, images).contestants
    model.binarizer.threshold = point.threshold
    compiled = runtime.compile(model, images)
    share = float(compiled.decide(images).mean())
    return (Contestant("runtime", lambda: compiled(images), share, point.macs),)


if __name__ == "__main__":
    with mistakes_told():
        tyro.cli(main)
