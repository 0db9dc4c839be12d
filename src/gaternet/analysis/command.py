"""What `gaternet analyze` does: a run in; figures, numbers and a report out.

OUT/SPLIT/gates/         every image's gates, label and prediction, for later questions
OUT/SPLIT/numbers.json   what was found, as plain numbers
OUT/SPLIT/gates.csv      a row for each gate, and the images that most open or close it
OUT/SPLIT/*.png, *.svg   figures
OUT/SPLIT/report.html    the same and each image's gates, for a browser
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from gaternet import checkpoint, saved_models
from gaternet.accounting import count_macs
from gaternet.analysis.derived import derive
from gaternet.analysis.drawing import draw_figures, write_figures
from gaternet.analysis.embedding import Embedding, embed, why_no_embedding
from gaternet.analysis.findings import Findings, Measured, Subject, find, to_json
from gaternet.analysis.gate_rows import gates_csv
from gaternet.analysis.missing import NO_PAGE
from gaternet.analysis.page import write_page
from gaternet.analysis.page.report import report_page
from gaternet.analysis.saved import (
    GATES,
    PAGE,
    analysis_of,
    check_record_place,
    read_record,
    source_of,
    weights_of,
    write_record,
)
from gaternet.analysis.split_record import SplitRecord, labelled_batches, observe
from gaternet.analysis.swaps import swap_gates
from gaternet.commands import check_classes, split_images
from gaternet.data.batches import Batch, Images, evaluation_batches
from gaternet.data.streams import HubStream
from gaternet.disk import make_directory, remove_directory, remove_file, write_file
from gaternet.errors import UsageError, UserError
from gaternet.model import GatedModel
from gaternet.training.compute import ComputePlan, choose_device, keep_freed_memory, plan
from gaternet.training.processes import ALONE, Processes
from gaternet.training.run import Run, open_run

BATCH_SIZE = 250


@dataclass(frozen=True)
class AnalysisRequest:
    """What to analyze a run on.

    out: directory that is written to; None: where `analysis_of` has it
    against: another split whose gates are compared; None: validation, if images were held out
    """

    data: str | None = None
    split: str = "test"
    out: Path | None = None
    against: str | None = None
    tsne: bool = True
    device: str = "auto"


@dataclass(frozen=True)
class _Network:
    """A run's newest network, and how it is run."""

    run: Run
    model: GatedModel
    weights: str
    plan: ComputePlan
    console: Console

    def batches(self, images: Images, title: str) -> Iterator[Batch]:
        """Yield this process's share of the images, and show how far it is."""
        data = self.run.config.recipe.data
        found = (
            Batch(index, pixels.contiguous(memory_format=self.plan.memory_format), labels)
            for index, pixels, labels in labelled_batches(
                images, data, self.plan.loading, BATCH_SIZE
            )
        )
        share = len(images) // self.plan.processes.count
        return _shown(found, -(-share // BATCH_SIZE), title, self.console)


def analyze_run(
    path: Path,
    request: AnalysisRequest,
    processes: Processes = ALONE,
    console: Console | None = None,
) -> Findings | None:
    """Analyze a run's newest network; return what was found, None in all processes but the first.

    The images are run by all processes together. `console` shows how far it is.

    Raises UserError where the run has no gates, where data or flags do not go with it, or the disk
    does not take the files.
    """
    console = console if console and processes.first else Console(quiet=True)
    network = _load(path, request, processes, console)
    run, out = network.run, request.out or analysis_of(path)
    directory = out / request.split
    against = request.against or _held_out(run, request.split)
    for split in filter(None, (request.split, against)):
        check_record_place(out / split / GATES)
    images = split_images(run, request.data, request.split)
    make_directory(directory)
    record = _recorded(network, images, request.split, directory)
    other = None
    if against:
        others = split_images(run, request.data, against)
        other = _recorded(network, others, against, out / against)
    batches = network.batches(images, "gates swapped")
    swaps = swap_gates(network.model, batches, record, processes)
    if not processes.first:
        return None
    missing = {} if against else {"agreement": "no images to compare with: give --against SPLIT"}
    if loses_places(images, processes):
        missing["page"] = NO_PAGE
    embedding = _embedded(record, missing, console) if request.tsne else None
    console.print("statistics and figures")
    subject = Subject(str(path), run.config.recipe.name, images.name, request.split)
    counter = count_macs(network.model.cpu(), run.config.recipe.data.input_size)
    measured = Measured(tuple(swaps), embedding, against, other, missing)
    derived = derive(record, counter)
    found = find(subject, record, derived, counter, measured)
    write_file(directory / "numbers.json", to_json(found) + "\n")
    write_file(directory / "gates.csv", gates_csv(record, derived))
    write_figures(dict(draw_figures(record, derived, found, measured)), directory)
    remove_file(directory / PAGE)
    if "page" not in missing:
        loading = replace(network.plan.loading, rank=0, ranks=1)
        seen = evaluation_batches(images, run.config.recipe.data, BATCH_SIZE, loading)
        write_page(report_page(found, record, derived, measured, seen), directory / PAGE)
    return found


def loses_places(images: Images, processes: Processes) -> bool:
    """Return whether one process sees images at other places than all of them together did."""
    return processes.count > 1 and isinstance(images, HubStream)


def _load(path: Path, request: AnalysisRequest, processes: Processes, console: Console) -> _Network:
    if request.against == request.split:
        raise UsageError(f"--against {request.against} is the split that is analyzed")
    run = open_run(path)
    device = choose_device(request.device)
    newest = checkpoint.newest(run.checkpoints)
    model = saved_models.load(newest)
    if not isinstance(model, GatedModel):
        raise UserError(f"{path} is a plain network: it has no gates to analyze")
    check_classes(model, run)
    compute = replace(run.config.recipe.compute, sync_batch_norm=False)  # matters in training only
    used = plan(compute, device, processes)
    keep_freed_memory()
    model = model.to(device, memory_format=used.memory_format)  # type: ignore[call-overload]
    return _Network(run, model, weights_of(newest), used, console)


def _held_out(run: Run, split: str) -> str | None:
    """Return the split that the gates are compared on where none is asked for."""
    imported = (run.result or {}).get("imported_from")
    held_out = run.config.recipe.validation and not imported
    return "validation" if held_out and split != "validation" else None


def _recorded(network: _Network, images: Images, split: str, directory: Path) -> SplitRecord:
    """Return the record of a split: an earlier pass's where it still holds, else a new one."""
    processes, console = network.plan.processes, network.console
    place, source = directory / GATES, _source(network, images, split)
    record = _read(place) if source_of(place) == source else None
    # All processes must go the same way, and all must ask.
    have = torch.tensor(float(record is not None), device=network.plan.device)
    all_have = int(processes.total(have)) == processes.count
    if record is not None and all_have:
        console.print(f"gates of {len(record):,} {split} images: {place}", soft_wrap=True)
        return record
    batches = network.batches(images, f"gates of {len(images):,} {split} images")
    record = observe(network.model, batches, images.classes, processes)
    if processes.first:
        make_directory(directory)
        if place.exists():
            remove_directory(place)
        write_record(record, place, source)
    return record


def _read(place: Path) -> SplitRecord | None:
    try:
        return read_record(place)
    except UserError:  # it is damaged, and can be made again
        return None


def _source(network: _Network, images: Images, split: str) -> dict[str, Any]:
    binarizer, loading = network.model.binarizer, network.plan.loading
    return {
        "weights": network.weights,
        "form": str(binarizer.form),
        "threshold": binarizer.threshold,
        "split": split,
        "data": images.name,
        "fingerprint": images.fingerprint,
        "images": len(images),
        # Where an image of a stream has its place depends on who reads it.
        "readers": [loading.ranks, loading.workers] if isinstance(images, HubStream) else None,
    }


def _embedded(record: SplitRecord, missing: dict[str, str], console: Console) -> Embedding | None:
    reason = why_no_embedding(record.gates)
    if reason:
        missing["embedding"] = reason
        return None
    console.print("embedding: PCA and t-SNE")
    return embed(record.gates)


def _shown(batches: Iterable[Batch], count: int, title: str, console: Console) -> Iterator[Batch]:
    """Yield batches under a progress bar, or behind a plain line where there is no terminal."""
    if console.is_terminal:
        return iter(track(batches, escape(title), total=count, console=console))
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    return iter(batches)
