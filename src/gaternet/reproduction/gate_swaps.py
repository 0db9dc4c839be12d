"""What gates tell of the class, and what becomes of the accuracy where images get other gates."""

from collections.abc import Sequence

from gaternet.analysis.behaviour import Behaviour
from gaternet.analysis.swaps import MAJORITY, OTHER_CLASS, OWN, Swap
from gaternet.reproduction.markdown import table

HEADS = ("gates of the backbone", "images", "accuracy", "change", "owner's class")
CLASS_HEADS = (
    *("network", "epochs", "seed", "accuracy", "class by the nearest gates"),
    *("another class's gates: own class", "that class", "most images' gates"),
)


def swap_table(swaps: Sequence[Swap]) -> list[str]:
    """Return a line for each kind of gates: accuracy, its change in points, whom images follow."""
    return table(HEADS, map(_row, swaps))


def _row(swap: Swap) -> list[str]:
    change = f"{100 * swap.change:+.1f} ± {100 * swap.interval:.1f}"
    shown = "" if swap.gates == OWN else change
    owner = "" if swap.followed is None else f"{100 * swap.followed:.1f} %"
    return [swap.gates, f"{swap.images:,}", f"{100 * swap.accuracy:.1f} %", shown, owner]


def class_table(networks: Sequence[Behaviour]) -> list[str]:
    """Return a line for each network: how well its gates tell the class, and who is believed."""
    return table(CLASS_HEADS, map(_class_row, networks))


def _class_row(network: Behaviour) -> list[str]:
    swaps = {swap.gates: swap for swap in network.swaps}
    other, most = swaps.get(OTHER_CLASS), swaps.get(MAJORITY)
    return [
        network.recipe,
        trained_for(network),
        str(network.seed),
        _percent(network.accuracy),
        _percent(network.probes.neighbours if network.probes else None),
        _percent(other.accuracy if other else None),
        _percent(other.followed if other else None),
        _percent(most.accuracy if most else None),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def trained_for(network: Behaviour) -> str:
    """Say for how long a network was trained: 30, then 15."""
    before = " and ".join(map(str, dict.fromkeys((network.pretrain_epochs or {}).values())))
    return f"{before}, then {network.epochs}" if before else str(network.epochs)
