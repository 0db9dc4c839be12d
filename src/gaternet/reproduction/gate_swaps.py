"""What gates tell of the class, and what becomes of the accuracy where images get other gates."""

from collections.abc import Iterator, Sequence

from gaternet.analysis.behaviour import Behaviour
from gaternet.analysis.swaps import MAJORITY, OTHER_CLASS, OWN, Swap
from gaternet.reproduction.markdown import table

HEADS = ("gates of the backbone", "images", "accuracy", "change", "owner's class")
CLASS_HEADS = (
    *("network", "epochs", "seed", "accuracy", "class by the nearest gates"),
    *("another class's gates: own class", "that class", "most images' gates"),
)
CLASS_TITLE = "What the gates tell of the class"
CLASS_RULES = """\
How many images a vote of the ten with the nearest gates gives their class; and where images get the
gates of an image of another class, how many are given their own class and how many that one. Where
the gates tell the class and are believed, the gater classifies. Accuracies are of the images that
got other gates."""

OTHER_GATES = """\
Changes are in percentage points, with 95 % intervals, of the same images; the owner's class is that
of the image whose gates an image got, and the share that is given it."""


def class_section(networks: Sequence[Behaviour]) -> Iterator[str]:
    """Yield how well gates tell the class, and who is believed, the best network first."""
    yield f"## {CLASS_TITLE}"
    yield ""
    yield CLASS_RULES
    yield ""
    best_first = sorted(networks, key=lambda each: -each.accuracy)
    yield from table(CLASS_HEADS, map(_class_row, best_first))
    yield ""


def swap_section(networks: Sequence[Behaviour]) -> Iterator[str]:
    """Yield what becomes of the accuracy of networks that were trained alike."""
    swapped = [network for network in networks if network.swaps]
    if not swapped:
        return
    yield "### What becomes of the accuracy under other gates"
    yield ""
    yield OTHER_GATES
    yield ""
    for network in swapped:
        if len(networks) > 1:
            yield f"Seed {network.seed}:"
            yield ""
        yield from swap_table(network.swaps)
        yield ""


def swap_table(swaps: Sequence[Swap]) -> list[str]:
    """Return a line for each kind of gates: accuracy, its change in points, whom images follow."""
    return table(HEADS, map(_row, swaps))


def _row(swap: Swap) -> list[str]:
    change = f"{100 * swap.change:+.1f} ± {100 * swap.interval:.1f}"
    shown = "" if swap.gates == OWN else change
    owner = "" if swap.followed is None else f"{100 * swap.followed:.1f} %"
    return [swap.gates, f"{swap.images:,}", f"{100 * swap.accuracy:.1f} %", shown, owner]


def _class_row(network: Behaviour) -> list[str]:
    swaps = {swap.gates: swap for swap in network.swaps}
    own, other, most = (swaps.get(gates) for gates in (OWN, OTHER_CLASS, MAJORITY))
    return [
        network.recipe,
        trained_for(network),
        str(network.seed),
        _percent(own.accuracy if own else network.accuracy),
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
