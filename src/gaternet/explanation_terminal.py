"""What a run opens for a user's own images, in a terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from math import ceil
from pathlib import Path

from rich.console import Console

from gaternet.explanation import Explanation
from gaternet.tables import likeliest_classes, new_table, print_json

MOST_CELLS = 32
"""Marks that stand for the gates of one layer."""


def print_explanation(found: Explanation, page: Path | None, *, as_json: bool) -> None:
    """Print the likeliest classes of each image, and a line for each layer: a mark for each gate.

    Where there are more gates than marks, each mark stands for the share of some neighbours.
    """
    if as_json:
        images = [
            asdict(view.prediction)
            | {
                "layers": [
                    asdict(layer) | {"open": sum(layer.gates), "total": len(layer.gates)}
                    for layer in view.layers
                ],
                "compared": found.compared,
            }
            for view in found.images
        ]
        print_json(images)
        return
    console = Console(markup=False, highlight=False)
    for view in found.images:
        console.print(likeliest_classes(view.prediction))
        headers = ["gates in", "", "open", "of"]
        known = view.layers and view.layers[0].distance is not None
        layers = new_table(*headers, *(("away", "usually") if known else ()))
        for layer in view.layers:
            row = [layer.name, cells(layer.gates), str(sum(layer.gates)), str(len(layer.gates))]
            if layer.distance is not None and layer.usual is not None:
                row += [f"{layer.distance:.1f}", f"{layer.usual:.1f}"]
            layers.add_row(*row)
        console.print(layers)
    lines = ["▇ open, · closed; in wide layers a mark is several neighbours: ▁ few open, █ all"]
    if found.compared:
        lines.append(
            f"away: gates away from the mean of the class, over {found.compared}; usually: how far "
            "images of the class are"
        )
    else:
        lines.append("to compare with the class's mean: gaternet analyze RUN first")
    if page is not None:
        lines.append(f"page: {page}")
    console.print(*lines, sep="\n", soft_wrap=True)


def cells(gates: Sequence[int], most: int = MOST_CELLS) -> str:
    """Return gates in a line of at most so many marks."""
    if len(gates) <= most:
        return "".join("▇" if gate else "·" for gate in gates)
    edges = [len(gates) * place // most for place in range(most + 1)]
    shares = [sum(gates[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join("▁▂▃▄▅▆▇█"[ceil(8 * share) - 1] if share else "·" for share in shares)
