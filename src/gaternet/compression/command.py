"""What `gaternet compress` does: a run in, a smaller run, its plan and a report out."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from gaternet import checkpoint, model_config, saved_models
from gaternet.analysis.record import GateRecord, collect
from gaternet.commands import split_images
from gaternet.compression.apply import apply, one_mask
from gaternet.compression.network import CompressedBackbone, backbone_of
from gaternet.compression.plan import plan, read_plan, write_plan
from gaternet.compression.report import CompressionReport, Size, compare_unseen, verify_batches
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Loading, evaluation_batches, spread
from gaternet.errors import UsageError, UserError
from gaternet.model import GaterNet
from gaternet.training.compute import choose_device
from gaternet.training.result import macs_per_image
from gaternet.training.run import Run, create_run, open_run

BATCH_SIZE = 250
"""Images that are run at once."""


@dataclass(frozen=True)
class CompressionRequest:
    """What to compress a run by.

    images: how many to record and to compare on at most; None: all
    plan: file with a plan of this model; None: one is made
    """

    out: Path
    data: str | None = None
    split: str = "train"
    images: int | None = None
    tolerance: int = 0
    one_mask: bool = False
    plan: Path | None = None
    device: str = "auto"


def compress_run(path: Path, request: CompressionRequest) -> CompressionReport:
    """Write a smaller run, its plan.json and report.json; test images only serve the report.

    Raises UserError where the run has no gater, the plan is another model's or `out` is not new.
    """
    _check(request)
    run = open_run(path)
    model = saved_models.load(path)
    if not isinstance(model, GaterNet):
        raise UserError(f"{path} has no gater: compress takes networks that one gates")
    model = model.to(choose_device(request.device))
    recorded = _Part(run, request, request.split, model)
    record = collect(model, (images for images, _ in recorded))
    size = run.config.recipe.data
    if request.plan is None:
        made = plan(
            model,
            record,
            request.tolerance,
            one_mask=request.one_mask,
            split=request.split,
        )
    else:
        made = read_plan(request.plan)
    make = one_mask if made.one_mask else apply
    small = make(model, made)
    columns = list(backbone_of(small).columns)
    (macs, unknown), (macs_after, _) = (macs_per_image(m, size) for m in (model, small))
    report = CompressionReport(
        recorded=len(record),
        split=request.split,
        tolerance=made.tolerance,
        one_mask=made.one_mask,
        removed=len(made.gates("removed")),
        always_on=len(made.gates("always_on")),
        unneeded=len(made.gates("unneeded")),
        before=Size(_parameters(model), macs, model.gate_count, _open_share(record)),
        after=Size(_parameters(small), macs_after, len(columns), _open_share(record, columns)),
        uncounted=unknown,
        verification=verify_batches(model, small, (images for images, _ in recorded)),
        unseen=compare_unseen(model, small, _Part(run, request, "test", model)),
        unseen_split="test",
    )
    _write(run, request.out, small, report)
    return report


class _Part:
    """Images from all over a split with their labels, as a network takes them, again and again."""

    def __init__(self, run: Run, request: CompressionRequest, split: str, model: GaterNet) -> None:
        images = split_images(run, request.data, split)
        self.images = images if request.images is None else spread(images, request.images)
        self.data = run.config.recipe.data
        self.count = request.images
        self.device = next(model.parameters()).device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.count
        loading = Loading(self.device)
        for _, pixels, labels in evaluation_batches(self.images, self.data, BATCH_SIZE, loading):
            yield normalise(pixels[:left], self.data.mean, self.data.std), labels[:left]
            left = None if left is None else left - len(pixels)
            if left is not None and left <= 0:
                return


def _check(request: CompressionRequest) -> None:
    if request.images is not None and request.images < 1:
        raise UsageError(f"--images {request.images} is less than 1")
    if request.tolerance < 0:
        raise UsageError(f"--tolerance {request.tolerance} is less than 0")
    if request.plan is not None and (request.tolerance or request.one_mask):
        raise UsageError("--plan says what is removed: leave --tolerance and --one-mask out")
    if request.one_mask and request.tolerance:
        raise UsageError("--one-mask leaves no gate: leave --tolerance out")
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise UserError(f"{request.out} exists already; choose another --out")


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _open_share(record: GateRecord, columns: list[int] | slice = slice(None)) -> float:
    counts = record.open_counts()[columns]
    return float(counts.mean()) / len(record) if len(counts) else 1.0


def _write(
    run: Run, out: Path, small: GaterNet | CompressedBackbone, report: CompressionReport
) -> None:
    source = checkpoint.newest(run.checkpoints)
    epoch, _ = checkpoint.position(source)
    values = {checkpoint.MODEL: asdict(model_config.describe(small))}
    made = create_run(out, run.config)
    made.save_checkpoint(epoch, {checkpoint.MODEL: small.state_dict()}, values)
    write_plan(backbone_of(small).plan, out / "plan.json")
    try:
        (out / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out / 'report.json'}: {error.strerror}") from error
