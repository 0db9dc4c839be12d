"""Error against multiply-accumulates and time: gated networks beside plain ones."""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt

import numpy as np

from gaternet.paired import NORMAL, PairedDifference
from gaternet.reproduction.comparison import compare_on_images
from gaternet.reproduction.markdown import table
from gaternet.reproduction.results import Curve, CurvePoint, Measurement
from gaternet.reproduction.targets import titled

TITLE = "Error against multiply-accumulates and time"
HEADS = (
    *("network", "epochs", "threshold", "test error", "multiply-accumulates"),
    *("milliseconds", "fastest form"),
)

INTRODUCTION = """\
Gated networks at several thresholds, the logit from which a gate is open (the middle one is what
each was trained for), beside plain ones, one run each. Multiply-accumulates are what a test image
needs on average, the gater's included; epochs are the backbone's, before and with gates. The
control was trained further without gates. What was trained further, with gates or without, had a
second schedule for that, at a lower rate; other plain networks had one of as many epochs as both.
Times are medians with 95 % intervals, measured alternately: of plain networks the fastest way to
run them, of gated ones this package's runtime. Two processes may differ by more than an interval.
Fronts are of measured errors, one run each, without an interval."""
MASKS = """\
Where all images have the same gates, the filters that these close are taken out: a plain network
without a gater is left. *One mask* was trained to its budget as gates are; *gates of most images*
are those of the network above that are open for more than half of the training images, and nothing
was trained for them: `gaternet compress --one-mask` makes such a network."""
DIFFERENCE_HEADS = (
    *("network", "against", "percentage points", "the first has"),
    "multiply-accumulates needed",
)
ONE_OF_EACH = """\
Differences are on the same test images, judged by McNemar's exact test at 5 %: they compare these
networks, not what other seeds would do. Multiply-accumulates are a multiple of the second's."""
NAMES = {"trained": "one mask", "majority": "gates of most images"}
"""Of masks for all images."""


def curve_section(
    curves: Sequence[Measurement[Curve]], results: str, figures: str
) -> Iterator[str]:
    """Yield the lines on what networks cost; results, figures: folders, seen from the page."""
    if not curves:
        return
    yield f"## {TITLE}"
    yield ""
    yield INTRODUCTION
    if any(point.mask for measured in curves for point in measured.found.rows):
        yield MASKS
    for measured in curves:
        yield from ("", *_of_curve(measured, results, figures))
    yield ""


def label(point: CurvePoint) -> str:
    """Return what a network is called: ResNet-20, budget 0.5."""
    name = titled(point.backbone)
    if point.plain:
        return f"{name}-Control" if point.goes_on else name
    kind = f"budget {point.budget:g}" if point.budget else point.run.rpartition("/")[2]
    return ", ".join([name, kind, *([NAMES[point.mask]] if point.mask else [])])


def unbeaten(points: Sequence[CurvePoint], cost: Callable[[CurvePoint], float]) -> list[CurvePoint]:
    """Return the points beside which no other has at most their cost and error, and less of one."""

    def beats(one: CurvePoint, other: CurvePoint) -> bool:
        pair = (cost(one), one.error_percent), (cost(other), other.error_percent)
        return pair[0] != pair[1] and all(a <= b for a, b in zip(*pair, strict=True))

    return [point for point in points if not any(beats(other, point) for other in points)]


def _of_curve(measured: Measurement[Curve], results: str, figures: str) -> Iterator[str]:
    curve = measured.found
    images = "one image" if curve.batch == 1 else f"{curve.batch} images"
    yield (
        f"[{measured.name}]({results}/{measured.file}): `{measured.command}`, "
        f"{measured.hardware}, {measured.date}; times of {images}."
    )
    yield ""
    yield f"![Error over multiply-accumulates, and over time]({figures}/{measured.name}.png)"
    yield ""
    yield from table(HEADS, map(_cells, curve.rows))
    yield ""
    yield from _masks_compared(curve.rows)
    yield verdict(curve)


def _masks_compared(points: Sequence[CurvePoint]) -> Iterator[str]:
    """Yield what choosing by image is worth, and training a mask, on the same test images."""
    networks = as_trained(points)
    masks = {(each.run, each.mask): each for each in networks}
    pairs = []
    for gated in networks:
        most = masks.get((gated.run, "majority"))
        if gated.threshold is None or most is None:
            continue
        pairs.append((gated, most))
        pairs += [
            (one, trained)
            for trained in networks
            if trained.mask == "trained" and _alike(trained, gated)
            for one in (gated, most)
        ]
    if pairs:
        yield from table(DIFFERENCE_HEADS, (_difference(*pair) for pair in pairs))
        yield ""
        yield ONE_OF_EACH
        yield ""


def _alike(one: CurvePoint, other: CurvePoint) -> bool:
    """Whether two networks are the same backbone, trained as long for one budget."""
    return (one.backbone, one.epochs, one.budget) == (other.backbone, other.epochs, other.budget)


def _difference(one: CurvePoint, other: CurvePoint) -> list[str]:
    found = compare_on_images([one.judged.bits], [other.judged.bits])
    points = f"{found.difference:+.2f} ± {found.half_width:.2f}"
    return [label(one), label(other), points, found.verdict, f"{one.macs / other.macs:.2f} ×"]


def _cells(point: CurvePoint) -> list[str]:
    low, high = point.interval_ms
    return [
        label(point),
        str(point.epochs),
        "" if point.threshold is None else f"{point.threshold:+z.2f}",
        f"{point.error_percent:.2f} %",
        f"{point.macs / 1e6:.1f} M",
        f"{point.median_ms:.2f} ({low:.2f}-{high:.2f})",
        point.form.removeprefix("dense-"),
    ]


def verdict(curve: Curve) -> str:
    """Say which networks no other beats, and on which side of the plain ones the gated ones lie."""
    return " ".join(_verdicts(curve.rows))


def _verdicts(points: Sequence[CurvePoint]) -> Iterator[str]:
    """Yield which networks of as many epochs as the gated ones have had no other beats."""
    for epochs in sorted({point.epochs for point in points if not point.plain}):
        rivals = [point for point in points if point.epochs == epochs]
        plain = sum(point.plain for point in rivals)
        masks = sum(point.mask is not None for point in rivals)
        chosen = f"{len(rivals) - plain - masks} gated points"
        counted = (
            f"{plain} plain, {masks} masked and {chosen}"
            if masks
            else f"{plain} plain and {chosen}"
        )
        yield f"Of the {counted} of {epochs} epochs, on the Pareto front of test error and"
        yield f"multiply-accumulates: {_front(rivals, millions)}. On that of error and time:"
        yield f"{_front(rivals, milliseconds)}."
        beside = {each: beside_plain(each, rivals) for each in as_trained(rivals)}
        gaps = [f"{label(each)} {shown(gap)}" for each, gap in beside.items() if gap is not None]
        if gaps:
            yield "Against straight lines between the plain networks that no other plain one beats,"
            yield "each at the threshold that it was trained for, in percentage points of error,"
            yield "with 95 % intervals of other images:"
            yield f"{'; '.join(gaps)}."


def as_trained(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Return each network at the threshold that it was trained for, and each mask."""
    return [point for point in points if not point.offset]


def beside_plain(point: CurvePoint, points: Sequence[CurvePoint]) -> PairedDifference | None:
    """Return the error of a point less that of straight lines between the plain ones of `points`.

    In percentage points, with the interval of other images. Of the plain ones those count that no
    other plain one beats: a line through a worse one would flatter. None for a plain one, and where
    its multiply-accumulates lie beside all of theirs.
    """
    plain = sorted(unbeaten([each for each in points if each.plain], millions), key=millions)
    if point.plain or not plain or not plain[0].macs <= point.macs <= plain[-1].macs:
        return None
    macs = [each.macs for each in plain]
    wrong = [np.where(each.judged.bits, 0.0, 100.0) for each in (point, *plain)]
    shares = [np.interp(point.macs, macs, corner) for corner in np.eye(len(plain))]
    difference = wrong[0] - np.tensordot(shares, wrong[1:], axes=1)
    half_width = NORMAL * difference.std() / sqrt(len(difference))
    return PairedDifference(float(difference.mean()), float(half_width))


def shown(gap: PairedDifference) -> str:
    """Return percentage points with their interval: +1.1 ± 0.6."""
    return f"{gap.value:+z.1f} ± {gap.half_width:.1f}"


def _front(points: Sequence[CurvePoint], cost: Callable[[CurvePoint], float]) -> str:
    """Return the points that no other beats, the cheapest first."""
    kept = sorted(unbeaten(points, cost), key=cost)
    return "; ".join(label(point) + _at(point) for point in kept)


def millions(point: CurvePoint) -> float:
    """Return a point's multiply-accumulates in millions."""
    return point.macs / 1e6


def milliseconds(point: CurvePoint) -> float:
    """Return a point's time."""
    return point.median_ms


def _at(point: CurvePoint) -> str:
    return "" if point.threshold is None else f" at {point.threshold:+z.2f}"
