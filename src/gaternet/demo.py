"""`gaternet demo`: the whole way once, offline, on scikit-learn's digits."""

from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from gaternet import checkpoint, recipes
from gaternet.analysis.figures import gates_per_layer
from gaternet.analysis.record import collect
from gaternet.data.batches import normalised_batches
from gaternet.data.sources import load
from gaternet.model import GaterNet
from gaternet.training.phases import Sources, train_or_continue

GATED = "digits/resnet8-gated"


def run(out: Path, device: str = "auto") -> None:
    """Train a plain and a gated network into `out`, compare them, and draw the gates."""
    console = Console()
    console.print(
        "Digits of 8×8 pixels. A backbone and a gater are trained each by itself, then jointly:\n"
        "the gater opens and closes the backbone's filters for each image.\n",
        soft_wrap=True,
        highlight=False,
    )
    recipe = recipes.get(GATED)
    gated = train_or_continue(recipe, Sources("digits"), out / "gated", device, console)
    plain_result = train_or_continue(
        recipes.get("digits/resnet8"),
        Sources("digits"),
        out / "gated" / "backbone",
        device,
        console,
    ).result
    gated_result = gated.result
    assert plain_result is not None
    assert gated_result is not None
    console.print()
    console.print(_comparison(plain_result, gated_result))
    figure = out / "gates.png"
    model = checkpoint.load(gated.path)
    assert isinstance(model, GaterNet)
    test = load("digits", recipe.data, "test")
    images = normalised_batches(test, recipe.data, "cpu")
    gates_per_layer(collect(model, images).layers(), "Gates per layer, digits, test images", figure)
    digit = out / f"digit-{int(test.labels[0])}.png"
    Image.fromarray(test.images[0, 0].numpy()).save(digit)
    console.print(f"\nGates per layer: {figure}", soft_wrap=True, highlight=False)
    console.print("\nWhat to type next:", highlight=False)
    for line in (
        f"gaternet evaluate {gated.path} --gates soft",
        f"gaternet predict {gated.path} {digit}",
        "gaternet recipes list",
        "gaternet train cifar10/resnet20-gated-short --data FOLDER-or-hub-name --out runs/first",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _comparison(plain: dict[str, Any], gated: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("", "plain backbone", "gated model"):
        table.add_column(header, justify="left" if not header else "right")
    gates = gated["gates"]

    def share(count: float) -> str:
        return f"{count:g} of {gates['total']} ({100 * count / gates['total']:.0f} %)"

    table.add_row("test error", *(f"{r['test_error_percent']:.2f} %" for r in (plain, gated)))
    table.add_row("parameters", *(f"{r['parameters']:,}" for r in (plain, gated)))
    table.add_row(
        "multiply-accumulates, gater included",
        *(f"{r['macs_per_image']:,}" for r in (plain, gated)),
    )
    table.add_row("gates always on", "", share(gates["always_on"]))
    table.add_row("gates always off", "", share(gates["always_off"]))
    table.add_row("gates input-dependent", "", share(gates["input_dependent"]))
    table.add_row("gates open an image, mean", "", share(round(gates["mean_open"], 1)))
    return table
