"""The paper's findings on gates (section 4.2.1), each beside what a run's gates do here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from gaternet.analysis import figures
from gaternet.analysis.behaviour import (
    Behaviour,
    Trend,
    chance_distance,
    class_likeness,
    depth_trend,
)
from gaternet.analysis.findings import Costs
from gaternet.analysis.swaps import OTHER_CLASS
from gaternet.measured_runs import MeasuredRun
from gaternet.paired import paired_difference
from gaternet.reproduction.gate_swaps import class_section, swap_section, trained_for
from gaternet.reproduction.results import Measurement

TITLE = "What the gates do"
HOLDS, FAILS, UNCLEAR = "holds", "contradicted", "inconclusive"
UNIFORM_DISTANCE = 0.057
"""Kolmogorov's distance of a uniform distribution from the normal one with its mean and deviation:
at z = 0.804, where the normal density is 1 / √12."""

SAME_GATES = "no gate depends on the image: all images have the same."
RULES = """\
The paper judges by eye, and the gates of ResNet-164-Gated: 1,567 of its 7,200 gates (22 %) depend
on the image, and an image opens 5,453 (76 %) on average. Here a trend with depth is Kendall's τ
over the gated layers, significant where p < 0.05; a difference is judged by its 95 % interval; the
gater has taken over where, under the gates of an image of another class, more images are given that
class than keep their own, while how far gates set classes apart is reported and not judged; and a
distribution is roughly normal where it is nearer to the normal one than a uniform one is, by
Kolmogorov's distance; *holds* says no more than that. Each network is judged by itself, with no
correction for asking several questions; figures are of the one with the lowest error alone."""


@dataclass(frozen=True)
class Finding:
    """What the paper says of its ResNet-164-Gated, and what is measured here."""

    title: str
    paper: str
    here: str
    verdict: str
    figure: str | None
    caption: str


def findings(behaviour: Behaviour) -> list[Finding]:
    """Return the paper's five findings and what becomes of them."""
    judges = (_redundancy, _dependence, _classes, _division_of_labour, _normality)
    return [judge(behaviour) for judge in judges]


def findings_section(
    behaviours: Sequence[Measurement[Behaviour]],
    runs: Sequence[MeasuredRun],
    results: str,
    pictures: str,
) -> Iterator[str]:
    """Yield the lines on gates; results, pictures: folders, seen from the page."""
    groups = trained_alike(behaviours)
    if len(behaviours) > 1:
        yield from class_section([measured.found for networks in groups for measured in networks])
    for place, networks in enumerate(groups):
        yield f"## {TITLE}: {networks[0].found.recipe}, {trained_for(networks[0].found)} epochs"
        yield ""
        for measured in networks:
            yield _subject(measured, runs, results)
            yield ""
        if place == 0:
            yield RULES
            yield ""
        seeds = [measured.found.seed for measured in networks]
        for found in zip(*(findings(measured.found) for measured in networks), strict=True):
            yield from _finding_lines(list(zip(seeds, found, strict=True)))
            if place == 0 and (figure := found[0].figure):
                yield f"![{found[0].caption}]({pictures}/{networks[0].name}-{figure}.png)"
                yield ""
        yield from swap_section([measured.found for measured in networks])


def trained_alike(
    behaviours: Sequence[Measurement[Behaviour]],
) -> list[list[Measurement[Behaviour]]]:
    """Return networks by how they were trained and what their gates were asked on, best first."""
    groups: dict[tuple[object, ...], list[Measurement[Behaviour]]] = {}
    for measured in sorted(behaviours, key=lambda each: -each.found.accuracy):
        found = measured.found
        before = tuple(sorted((found.pretrain_epochs or {}).items()))
        kind = (found.recipe, found.epochs, before, found.data, found.split, found.images)
        groups.setdefault(kind, []).append(measured)
    return list(groups.values())


def _finding_lines(found: Sequence[tuple[int, Finding]]) -> Iterator[str]:
    """Yield what becomes of one finding of the paper, by seed."""
    first = found[0][1]
    verdicts = {each.verdict for _, each in found}
    by_seed = ", ".join(f"{each.verdict} for seed {seed}" for seed, each in found)
    yield f"### {first.title}: {first.verdict if len(verdicts) == 1 else by_seed}"
    yield ""
    yield f"Paper: {first.paper}"
    yield ""
    for seed, each in found:
        yield f"{'Here' if len(found) == 1 else f'Seed {seed}'}: {each.here}"
        yield ""


def finding_figures(behaviour: Behaviour) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of the findings, and their names."""
    yield "kinds", figures.layer_kinds(behaviour.layers)
    yield "entropy", figures.layer_entropy(behaviour.layers, behaviour.entropy)
    if class_likeness(behaviour.agreement):
        agreement = np.array(behaviour.agreement, dtype=np.float64)
        yield "classes", figures.class_agreement_heat_map(agreement, behaviour.classes)
    opened = np.arange(len(behaviour.opened)) + behaviour.open_gates.least
    images = np.repeat(opened, behaviour.opened)
    yield "open-gates", figures.open_gates_histogram(images, behaviour.open_gates)


def _redundancy(behaviour: Behaviour) -> Finding:
    layers = behaviour.layers
    closed = [1 - n / layer.total for n, layer in zip(behaviour.open, layers, strict=True)]
    off = [layer.always_off / layer.total for layer in layers]
    trend = depth_trend(off)
    count = sum(layer.always_off for layer in layers)
    if trend is None:
        rest = "so that no layer differs from another in this"
    else:
        rest = f"{_ends(off)} ({_statistics(trend)})"
    return Finding(
        "Shallow layers are more redundant than deep ones",
        "in shallow blocks up to 68.75 % of the gates are off for all test images; the share falls "
        "with depth.",
        f"{count:,} of {behaviour.gates:,} gates are off for all of {behaviour.images:,} images, "
        f"{rest}. An image closes {_ends(closed)}{_trend_of(closed)}.",
        _trend_verdict(trend, rises=False),
        "kinds",
        "Kinds of gates, layer by layer",
    )


def _dependence(behaviour: Behaviour) -> Finding:
    dependent = [layer.input_dependent / layer.total for layer in behaviour.layers]
    trend = depth_trend(dependent)
    count = _dependent(behaviour)
    bits = behaviour.entropy
    return Finding(
        "More gates depend on the input in deep layers than in shallow ones",
        "the share rises with depth, to about 45 % in the last two blocks.",
        f"{count:,} of {behaviour.gates:,} gates depend on the image, {_ends(dependent)}"
        f"{_trend_of(dependent)}. The entropy of a gate, which also says how evenly it opens and "
        f"closes, is {bits[0]:.2f} bits in the first layer and {bits[-1]:.2f} in the last"
        f"{_trend_of(bits)}.",
        _trend_verdict(trend, rises=True),
        "entropy",
        "Entropy of a gate, layer by layer",
    )


def _classes(behaviour: Behaviour) -> Finding:
    likeness, probes = class_likeness(behaviour.agreement), behaviour.probes
    here, verdict = "there are no classes of two images each to compare.", UNCLEAR
    if not _dependent(behaviour):
        here = SAME_GATES
    elif likeness:
        difference = likeness.within - likeness.across
        points = f"{100 * difference:.1f} ± {100 * likeness.half_width:.1f} points"
        here = (
            f"of the input-dependent gates, two images of one class have "
            f"{100 * likeness.within:.1f} % alike and two of different classes "
            f"{100 * likeness.across:.1f} %: {points} between them, the interval over classes."
        )
        verdict = _verdict(difference, likeness.half_width)
    if probes:
        here += (
            f" By the ten nearest gate vectors {100 * probes.neighbours:.1f} % of the images are "
            f"given their class, by the network {100 * probes.model:.1f} %, by chance "
            f"{100 * probes.chance:.1f} %."
        )
    return Finding(
        "Images of a class use similar gates",
        "where gates place images in a plane (t-SNE) those of a class lie together.",
        here,
        verdict,
        "classes" if likeness else None,
        "Share of gates that images of two classes have alike",
    )


def _division_of_labour(behaviour: Behaviour) -> Finding:
    """Ask who is believed where gates and image are of different classes."""
    swap = next((swap for swap in behaviour.swaps if swap.gates == OTHER_CLASS), None)
    here, verdict = "there are no images of two classes.", UNCLEAR
    if swap and swap.followed is None:
        here = "not measured: the file is of an earlier version."
    elif not _dependent(behaviour):
        here = SAME_GATES
    elif swap and swap.followed is not None:
        own, theirs = swap.accuracy, swap.followed
        here = (
            f"under the gates of an image of another class, {100 * theirs:.1f} % of "
            f"{swap.images:,} images are given that class and {100 * own:.1f} % their own."
        )
        images = swap.images
        difference = paired_difference(own * images, theirs * images, images)
        verdict = _verdict(difference.value, difference.half_width)
    for where, accuracy in behaviour.probes.model_by_neighbours if behaviour.probes else ():
        here += (
            f" Where a vote of the ten nearest gate vectors is {where}, the network is right for "
            f"{100 * accuracy:.1f} %."
        )
    return Finding(
        "The gater does not take over the prediction",
        "the gates are far from setting classes apart; the backbone does the essential part.",
        here,
        verdict,
        None,
        "",
    )


def _dependent(behaviour: Behaviour) -> int:
    """Return how many gates depend on the image."""
    return sum(layer.input_dependent for layer in behaviour.layers)


def _normality(behaviour: Behaviour) -> Finding:
    opened = behaviour.open_gates
    here = (
        f"an image opens {opened.least:,} to {opened.most:,} gates, {opened.mean:,.1f} on average "
        f"with a standard deviation of {opened.deviation:.1f}."
    )
    if opened.most == behaviour.gates:
        here += f" {_that_open_all(behaviour.opened[-1], behaviour.all_open or {})}."
    verdict = UNCLEAR
    if opened.distance is not None:
        margin = chance_distance(behaviour.images)
        here += (
            f" Kolmogorov's distance from the normal distribution of that mean and deviation is "
            f"{opened.distance:.3f} ± {margin:.3f}; a uniform one has {UNIFORM_DISTANCE:.3f}."
        )
        if opened.distance > margin:
            here += " So it is not exactly normal."
        verdict = _verdict(UNIFORM_DISTANCE - opened.distance, margin)
    if behaviour.costs:
        here += f" {_cost(behaviour.costs)}"
    return Finding(
        "The number of open gates of an image is roughly normal",
        "5,380 to 5,506 of 7,200, about 5,453 on average; it seems to obey a normal distribution.",
        here,
        verdict,
        "open-gates",
        "How many gates images open",
    )


def _cost(costs: Costs) -> str:
    """Say what images cost, and whether those that are hard cost more."""
    mean, deviation = (100 * each / costs.backbone for each in (costs.mean, costs.deviation))
    needs = (
        f"An image needs {mean:.1f} % of the plain backbone's multiply-accumulates on average, the "
        f"gater's included, with a standard deviation of {deviation:.1f} points"
    )
    outcome = costs.by_outcome
    if outcome.difference is None or outcome.interval is None:
        return f"{needs}."
    more, width = (100 * each / costs.backbone for each in (outcome.difference, outcome.interval))
    return (
        f"{needs}; images that are classified wrongly need {abs(more):.1f} ± {width:.1f} points "
        f"{'more' if more > 0 else 'less'} than the others."
    )


def _that_open_all(count: int, by_class: Mapping[str, int]) -> str:
    """Say how many images open every gate and, where known, which class most of them are of."""
    name = max(by_class, key=lambda each: by_class[each], default="")
    if count == 1:
        return f"One image, of class {name}, opens all" if name else "One image opens all"
    most = f", {by_class[name]:,} of them of class {name}" if name else ""
    return f"{count:,} images open all{most}"


def _subject(measured: Measurement[Behaviour], runs: Sequence[MeasuredRun], results: str) -> str:
    """Say which run this is, with the file of what was measured of it where there is one."""
    found = measured.found
    same = (found.recipe, found.seed, found.epochs, found.pretrain_epochs)
    files = [
        run.file
        for run in runs
        if (run.recipe, run.seed, run.epochs, run.pretrain_epochs) == same and not run.differs
    ]
    name = f"seed {found.seed}, {found.epochs} epochs"
    shown = f"[{name}]({results}/{files[0]})" if files else name
    return (
        f"[{measured.name}]({results}/{measured.file}): the run of `{found.recipe}` with {shown} "
        f"in the last phase, on {found.images:,} {found.split} images of {found.data}; accuracy "
        f"{100 * found.accuracy:.2f} %. `{measured.command}`, {measured.hardware}, {measured.date}."
    )


def _ends(shares: Sequence[float]) -> str:
    first, last = 100 * shares[0], 100 * shares[-1]
    return f"{first:.0f} % of the first layer's gates and {last:.0f} % of the last layer's"


def _statistics(trend: Trend) -> str:
    p = f"p = {trend.p:.2g}" if trend.p >= 0.001 else "p < 0.001"
    return f"τ = {trend.tau:+.2f}, {p}"


def _trend_of(shares: Sequence[float]) -> str:
    trend = depth_trend(shares)
    return f" ({_statistics(trend)})" if trend else ""


def _trend_verdict(trend: Trend | None, *, rises: bool) -> str:
    if trend is None or not trend.significant:
        return UNCLEAR
    return HOLDS if (trend.tau > 0) == rises else FAILS


def _verdict(margin: float, half_width: float) -> str:
    """Return what an interval around a margin says that should be above 0."""
    if abs(margin) <= half_width:
        return UNCLEAR
    return HOLDS if margin > 0 else FAILS
