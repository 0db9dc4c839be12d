"""The page of an analyzed split, from what the analysis found."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gaternet.analysis.classes import class_agreement, mutual_information
from gaternet.analysis.findings import Findings, Measured
from gaternet.analysis.page.contents import Page, PageTable
from gaternet.analysis.page.sprite import tile_size
from gaternet.analysis.sampling import some_rows
from gaternet.analysis.split_record import SplitRecord
from gaternet.data.batches import Batch

MOST_IMAGES = 10_000
"""On a page; of more, so many are drawn at random."""
MOST_CLASSES = 1000
"""With more classes their similarity is not on the page."""


def report_page(
    found: Findings,
    record: SplitRecord,
    measured: Measured,
    batches: Iterator[Batch],
    macs: NDArray[np.float64],
) -> Page:
    """Return the page of a split: its images in the plane where they were embedded.

    batches: the split's images, (N, C, H, W) uint8, in any order
    macs: (N,), multiply-accumulates that each image of the record needs
    """
    embedding = measured.embedding
    rows = some_rows(len(record), MOST_IMAGES) if embedding is None else embedding.rows
    rows, first = np.sort(rows[:MOST_IMAGES]), np.argsort(rows[:MOST_IMAGES], kind="stable")
    places = record.index[rows]
    return Page(
        title=f"{found.recipe} on {found.data}, {found.split} images",
        classes=record.classes,
        slices=record.gates.slices,
        bits=record.gates.bits[rows],
        images=_pictures(batches, places),
        predictions=record.predictions[rows],
        labels=record.labels[rows],
        numbers=None if np.array_equal(places, np.arange(len(places))) else places,
        drawn_from=None if len(rows) == len(record) else len(record),
        shown=record.gates.dependent(),
        embedding=None if embedding is None else embedding.points[first],
        mutual_information=mutual_information(record),
        similarity=class_agreement(record) if len(record.classes) <= MOST_CLASSES else None,
        macs=macs[rows],
        backbone_macs=found.costs.backbone,
        tables=tuple(_tables(found)),
    )


def _pictures(batches: Iterator[Batch], index: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the images at those places, ascending, as small as a page has room for."""
    pictures: NDArray[np.uint8] | None = None
    for places, images, _ in batches:
        at = np.searchsorted(index, places.cpu().numpy())
        kept = index[np.minimum(at, len(index) - 1)] == places.cpu().numpy()
        if not kept.any():
            continue
        size = tile_size(images.shape[2], images.shape[3], len(index))
        chosen = images[torch.from_numpy(kept).to(images.device)]
        if images.shape[2:] != size:
            chosen = F.interpolate(chosen.float(), size, mode="area").round().to(torch.uint8)
        chosen = chosen.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu()
        if pictures is None:
            pictures = np.empty((len(index), *size, 3), dtype=np.uint8)
        pictures[at[kept]] = chosen.numpy()
    if pictures is None:
        raise ValueError("the batches have none of the record's images")
    return pictures


def _tables(found: Findings) -> Iterator[PageTable]:
    """Yield what has no figure of its own."""
    if found.swaps:
        yield PageTable(
            "Do the gates mean anything?",
            "accuracy with other gates in place of each image's own",
            ("gates", "images", "accuracy", "change", "95 % interval"),
            tuple(
                (
                    swap.gates,
                    f"{swap.images:,}",
                    f"{100 * swap.accuracy:.2f} %",
                    f"{100 * swap.change:+.2f}".replace("-", "−"),
                    f"± {100 * swap.interval:.2f}",
                )
                for swap in found.swaps
            ),
        )
    if found.probes:
        probes = found.probes
        yield PageTable(
            "What gates alone tell of the class",
            f"accuracy on one half of {probes.images:,} images, learned from the gates of the "
            "other",
            ("by", "accuracy"),
            (
                ("always the commonest class", f"{100 * probes.chance:.2f} %"),
                ("the 10 nearest gate vectors", f"{100 * probes.neighbours:.2f} %"),
                ("logistic regression", f"{100 * probes.linear:.2f} %"),
                ("the model itself", f"{100 * probes.model:.2f} %"),
            ),
        )
    rows = [("different gate vectors", f"{found.distinct:,}")]
    if found.agreement and found.against:
        agreement = found.agreement
        rows += [
            (
                f"gates of the same kind on {found.against} images",
                f"{agreement.same_kind:,} of {found.kinds.total:,}",
            ),
            ("difference of opening rates, mean", f"{100 * agreement.mean_difference:.2f} %"),
            ("by chance, about", f"{100 * agreement.by_chance:.2f} %"),
        ]
    rows += [(f"not found out: {name}", reason) for name, reason in found.missing.items()]
    yield PageTable("Besides", "", ("", ""), tuple(rows))
