"""What becomes of a network's accuracy where images get other gates than their own."""

from collections.abc import Sequence

from gaternet.analysis.swaps import OWN, Swap
from gaternet.reproduction.markdown import table

HEADS = ("gates of the backbone", "images", "accuracy", "change", "owner's class")


def swap_table(swaps: Sequence[Swap]) -> list[str]:
    """Return a line for each kind of gates: accuracy, its change in points, whom images follow."""
    return table(HEADS, map(_row, swaps))


def _row(swap: Swap) -> list[str]:
    change = f"{100 * swap.change:+.1f} ± {100 * swap.interval:.1f}"
    shown = "" if swap.gates == OWN else change
    owner = "" if swap.followed is None else f"{100 * swap.followed:.1f} %"
    return [swap.gates, f"{swap.images:,}", f"{100 * swap.accuracy:.1f} %", shown, owner]
