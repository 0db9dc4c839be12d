"""The page of an analyzed split, from what the analysis found."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gaternet.analysis.derived import Derived
from gaternet.analysis.findings import Findings, Measured
from gaternet.analysis.missing import PAGE_CLASSES
from gaternet.analysis.page.contents import Page, PageBar, PageTable
from gaternet.analysis.page.sprite import tile_size
from gaternet.analysis.sampling import some_rows
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import opening_rates
from gaternet.analysis.swaps import OWN, Swap
from gaternet.data.batches import Batch

MOST_IMAGES = 10_000
"""On a page; of more, so many are drawn at random."""


def report_page(
    found: Findings,
    record: SplitRecord,
    derived: Derived,
    measured: Measured,
    batches: Iterator[Batch],
) -> Page:
    """Return the page of a split: its images in the plane where they were embedded.

    batches: the split's images, (N, C, H, W) uint8, in any order
    """
    embedding, extremes = measured.embedding, record.extremes
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
        mutual_information=derived.information,
        similarity=derived.agreement if len(record.classes) <= PAGE_CLASSES else None,
        macs=derived.macs[rows],
        backbone_macs=found.costs.backbone,
        opening=extremes.opening,
        closing=extremes.closing,
        split_rates=_split_rates(record, measured),
        against=measured.against,
        bars=tuple(PageBar(swap.gates, swap.accuracy, swap.interval) for swap in found.swaps),
        chance=found.probes.chance if found.probes else None,
        tables=tuple(_tables(found)),
    )


def _split_rates(record: SplitRecord, measured: Measured) -> NDArray[np.float64] | None:
    """Return how often each gate is open on this split and on the other one, (2, G)."""
    if measured.other is None:
        return None
    return np.stack((opening_rates(record.gates), opening_rates(measured.other.gates)))


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


def _change(swap: Swap) -> tuple[str, str]:
    if swap.gates == OWN:
        return "", ""
    return f"{100 * swap.change:+.2f}".replace("-", "−"), f"± {100 * swap.interval:.2f}"


def _tables(found: Findings) -> Iterator[PageTable]:
    """Yield what has no figure of its own."""
    if found.swaps:
        yield PageTable(
            "Do the gates mean anything?",
            "accuracy with other gates in place of each image's own",
            ("gates", "images", "accuracy", "change", "95 % interval", "owner's class"),
            tuple(
                (
                    swap.gates,
                    f"{swap.images:,}",
                    f"{100 * swap.accuracy:.2f} %",
                    *_change(swap),
                    "" if swap.followed is None else f"{100 * swap.followed:.2f} %",
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
            ("classifier", "accuracy"),
            (
                ("always the commonest class", f"{100 * probes.chance:.2f} %"),
                ("the 10 nearest gate vectors", f"{100 * probes.neighbours:.2f} %"),
                ("logistic regression", f"{100 * probes.linear:.2f} %"),
                ("the model itself", f"{100 * probes.model:.2f} %"),
                *(
                    (f"the model itself, where neighbours are {where}", f"{100 * accuracy:.2f} %")
                    for where, accuracy in probes.model_by_neighbours
                ),
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
    yield PageTable("Other numbers", "", ("", ""), tuple(rows))
