"""What an analysis found, in a terminal."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from gaternet.analysis.findings import Findings, to_json
from gaternet.analysis.saved import PAGE
from gaternet.analysis.swaps import OWN, Swap
from gaternet.tables import new_table, part_of, share_of

SHOWN_LAYERS = 24
SHOWN_GATES = 5


def print_findings(found: Findings, out: Path, *, as_json: bool) -> None:
    """Print what the gates do, what they tell of the class, and whether it matters."""
    if as_json:
        print(to_json(found))
        return
    console = Console(markup=False, highlight=False)
    console.print(_gate_summary(found))
    if len(found.layers) <= SHOWN_LAYERS:
        console.print(_layer_summary(found.layers))
    console.print("", swap_table(found.swaps), sep="\n")
    table = new_table("the gates that tell most of the class", "open", "bits")
    for row in found.informative[:SHOWN_GATES].to_dict("records"):
        name = f"{row['layer']}, gate {row['number']}"
        table.add_row(name, f"{100 * row['rate']:.1f} %", f"{row['information']:.3f}")
    console.print("", table, sep="\n")
    if len(found.similar):
        table = new_table("classes that use the most similar gates", "alike")
        for first, second, alike in found.similar[:SHOWN_GATES].itertuples(index=False):
            table.add_row(f"{first}, {second}", f"{100 * alike:.1f} %")
        console.print("", table, sep="\n")
    for what, why in found.missing.items():
        console.print(f"not found out: {what}: {why}", soft_wrap=True)
    console.print(f"\nfigures, numbers.json and gates.csv: {out}", soft_wrap=True)
    if "page" not in found.missing:
        console.print(f"page to explore, for a browser: {out / PAGE}", soft_wrap=True)


def swap_table(swaps: Iterable[Swap]) -> Table:
    """Return the accuracy under each image's own gates and under others, and what that changes."""
    table = new_table("gates", "images", "accuracy", "change", "owner's class")
    for swap in swaps:
        change = f"{100 * swap.change:+.2f} ± {100 * swap.interval:.2f}"
        shown = "" if swap.gates == OWN else change
        owner = "" if swap.followed is None else f"{100 * swap.followed:.2f} %"
        table.add_row(swap.gates, f"{swap.images:,}", f"{100 * swap.accuracy:.2f} %", shown, owner)
    return table


def _gate_summary(found: Findings) -> Table:
    kinds, opened, info, costs = found.kinds, found.open_gates, found.information, found.costs
    table = new_table(f"{found.recipe} on {found.data}, {found.split} images", "")
    table.add_row("images", f"{found.images:,}")
    table.add_row("accuracy", f"{100 * found.accuracy:.2f} %")
    for name in ("always_on", "always_off", "input_dependent"):
        share = share_of(getattr(kinds, name), kinds.total)
        table.add_row(f"gates {name.replace('_', '-' if name[0] == 'i' else ' ')}", share)
    table.add_row("  open for 1 to 99 % of the images", f"{kinds.often:,}")
    table.add_row(
        "open gates of an image", f"{opened.least:,} to {opened.most:,}, mean {opened.mean:,.1f}"
    )
    if opened.distance is not None:
        fit = f"deviation {opened.deviation:.2f}, Kolmogorov distance {opened.distance:.3f}"
        table.add_row("  as a normal distribution", fit)
    table.add_row("different gate vectors", f"{found.distinct:,}")
    table.add_row(
        "what a gate says of the class",
        f"{info.mean:.4f} bits, mean; {info.most:.3f} at most; {info.chance:.5f} by chance",
    )
    table.add_row("multiply-accumulates, mean", f"{part_of(costs.mean, costs.backbone)}")
    spread = 100 * costs.deviation / costs.backbone
    table.add_row("  standard deviation", f"{spread:.2f} % of the backbone's")
    outcome = costs.by_outcome
    if outcome.difference is not None and outcome.interval is not None:
        parts = (100 * x / costs.backbone for x in (outcome.difference, outcome.interval))
        table.add_row(
            "  wrongly classified less others",
            "{:+.2f} ± {:.2f} % of the backbone's".format(*parts),
        )
    if found.probes:
        probes = found.probes
        table.add_row("class from the gates alone", f"chance {100 * probes.chance:.1f} %")
        table.add_row("  10 nearest neighbours", f"{100 * probes.neighbours:.1f} %")
        for where, accuracy in probes.model_by_neighbours:
            table.add_row(f"    the model, where these are {where}", f"{100 * accuracy:.1f} %")
        table.add_row("  logistic regression", f"{100 * probes.linear:.1f} %")
    if found.agreement:
        other = found.agreement
        table.add_row(
            f"on {other.images:,} {found.against} images",
            f"rates differ by {other.mean_difference:.4f}, mean; by chance {other.by_chance:.4f}",
        )
        table.add_row("  gates of the same kind", share_of(other.same_kind, kinds.total))
    return table


def _layer_summary(layers: pd.DataFrame) -> Table:
    table = new_table(
        "\nlayer", "gates", "on", "off", "dependent", "open", "bits per gate", "vectors"
    )
    for row in layers.to_dict("records"):
        names = ("gates", "always_on", "always_off", "input_dependent")
        shown = (f"{row[name]:,}" for name in names)
        open_share = f"{100 * row['open'] / row['gates']:.1f} %"
        table.add_row(
            row["layer"], *shown, open_share, f"{row['entropy']:.3f}", f"{row['distinct']:,}"
        )
    return table
