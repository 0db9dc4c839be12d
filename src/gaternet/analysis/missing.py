"""What an analysis leaves out, and why."""

from collections.abc import Iterator

from gaternet.analysis.macs import CostByOutcome
from gaternet.analysis.probes import why_no_probes
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import OpenGates

COMPARED_CLASSES = 2000
"""With more classes they are not compared in pairs."""
DRAWN_CLASSES = 200
"""With more classes their similarity is not drawn."""
PAGE_CLASSES = 1000
"""With more classes their similarity is not on the page."""

NO_PAGE = (
    "the images come from a stream, which one process reads in another order than several: "
    "analyze without torchrun"
)


def what_is_missing(
    record: SplitRecord, opened: OpenGates, costs: CostByOutcome
) -> Iterator[tuple[str, str]]:
    """Yield what these images cannot show, and why."""
    reason = why_no_probes(record)
    if reason:
        yield "probes", reason
    yield from _of_classes(record)
    if opened.distance is None:
        yield "open_gates.distance", "every image opens the same number of gates"
    if costs.difference is None:
        yield (
            "costs.by_outcome",
            "fewer than two images are classified correctly, or fewer than two wrongly",
        )


def _of_classes(record: SplitRecord) -> Iterator[tuple[str, str]]:
    sizes, known = record.class_sizes, len(record.classes)
    if (sizes > 0).sum() < 2:
        for name in ("special", "similar", "class-agreement"):
            yield name, "the images are of one class"
        yield "swaps", "the images are of one class: there are no gates of another"
    elif not len(record.gates.dependent()):
        for name in ("similar", "class-agreement"):
            yield name, "no gate depends on the input"
    else:
        for name, most in (
            ("similar", COMPARED_CLASSES),
            ("class-agreement", DRAWN_CLASSES),
            ("similarity on the page", PAGE_CLASSES),
        ):
            if known > most:
                yield name, f"{known:,} classes: more than {most:,}"
    if sizes.max() < 2:
        yield "swaps", "no gates of the same class: no class has two images"
