"""What differences of test errors support, in sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gaternet.reproduction.comparison import Difference, holm
from gaternet.reproduction.markdown import listed
from gaternet.reproduction.targets import Row

GROUPS = {"lower error": "a lower error than", "higher error": "a higher error than"}
"""Verdicts, as they are said of one network against others."""
ALIKE = 0.05
"""Costs that differ by at most this share explain no difference of errors."""


@dataclass(frozen=True)
class Comparison:
    """Two rows' errors beside each other.

    cost: what the first needs for an image, as a multiple of what the second does; None: not known
    """

    first: Row
    second: Row
    found: Difference
    cost: float | None


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say what differences support, of whichever side has fewer networks one after another."""
    known = [each for each in comparisons if each.found.p is not None]
    if not known:
        return "Too few seeds to say whether any difference is more than chance."
    seconds = {each.second.label for each in known}
    firsts = {each.first.label for each in known}
    said = _by_second if len(seconds) < len(firsts) else _by_first
    return " ".join((*said(known), *_together(known), *_power(known)))


def _by_first(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a sentence on each network that is measured against others."""
    for first in dict.fromkeys(each.first.label for each in comparisons):
        mine = [each for each in comparisons if each.first.label == first]
        parts = []
        for group, words in GROUPS.items():
            such = [each for each in mine if each.found.verdict == group]
            others = [each.second.label + _at_cost(each) for each in such]
            if others:
                parts.append(f"{words} {listed(others)}")
        has = [f"has {' and '.join(parts)}"] if parts else []
        unknown = [each for each in mine if each.found.verdict not in GROUPS]
        others = [each.second.label + _at_cost(each) for each in unknown]
        same = [f"does not differ significantly from {listed(others)}"] if others else []
        yield f"{first} {', and '.join(has + same)}."


def _by_second(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a sentence on those that have a lower error than a network, a higher one, neither."""
    for second in dict.fromkeys(each.second.label for each in comparisons):
        mine = [each for each in comparisons if each.second.label == second]
        for group, words in GROUPS.items():
            such = [each for each in mine if each.found.verdict == group]
            firsts = [each.first.label + _at_cost(each) for each in such]
            if firsts:
                yield f"{words.capitalize()} {second}: {'; '.join(firsts)}."
        unknown = [each for each in mine if each.found.verdict not in GROUPS]
        firsts = [each.first.label + _at_cost(each) for each in unknown]
        if firsts:
            yield f"No significant difference from {second}: {'; '.join(firsts)}."


def _together(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield which differences stand when the number of questions is corrected for."""
    kept = holm([each.found.p for each in comparisons if each.found.p is not None])
    significant = [each for each in comparisons if each.found.significant]
    if len(comparisons) < 2 or not significant:
        return
    lost = [
        f"{each.first.label} against {each.second.label}"
        for each, stands in zip(comparisons, kept, strict=True)
        if each.found.significant and not stands
    ]
    corrected = f"Corrected for the table's {len(comparisons)} comparisons (Holm)"
    if not lost:
        yield f"{corrected} all significant differences stand."
    elif len(lost) == len(significant):
        yield f"{corrected} none is significant any more."
    else:
        yield f"{corrected} these are not significant any more: {'; '.join(lost)}."


def _at_cost(each: Comparison) -> str:
    """Return at what cost a network has its error; nothing where the other's is about the same."""
    if each.cost is None or abs(each.cost - 1) <= ALIKE:
        return ""
    return f" (at {each.cost:.2f} times the cost)"


def _power(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield how large a difference must be to show, and what those on the same images mean."""
    found = [each.found for each in comparisons]
    of_seeds = [each for each in found if each.freedom]
    widths = [each.half_width for each in of_seeds if each.verdict not in GROUPS]
    if sizes := [width for width in widths if width]:
        freedom = of_seeds[0].freedom
        least, most = (f"{width:.1f}" for width in (min(sizes), max(sizes)))
        size = least if least == most else f"{least} to {most}"
        yield (
            f"Not significant does not mean equal: with {freedom} degrees of freedom only "
            f"differences above {size} points are significant."
        )
    if images := max(each.images for each in found):
        yield (
            f"Where a difference is of the same {images:,} test images, it is judged at 5 % for "
            "these very networks: by McNemar's exact test where there is one seed of each, else by "
            "the interval. Seeds vary besides, which so few do not show: more than one in twenty "
            "changes without effect will seem to have one."
        )
