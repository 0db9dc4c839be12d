"""`gaternet demo`: the whole way once, offline, on scikit-learn's digits."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from gaternet import recipes
from gaternet.analysis.command import AnalysisRequest, analyze_run
from gaternet.data.digits import load_digits
from gaternet.training.config import Sources
from gaternet.training.interruption import Interruption
from gaternet.training.phases import Options, train_or_continue
from gaternet.training.progress import plain_console
from gaternet.training.run import open_run

GATED = "digits/resnet8-gated"


def run(out: Path, device: str = "auto", interruption: Interruption | None = None) -> None:
    """Train a plain and a gated network into `out`, compare them, and explore the gates."""
    console = plain_console()
    console.print(
        "Digits of 8×8 pixels. A backbone and a gater are trained each by itself, then jointly:\n"
        "the gater opens and closes the backbone's filters for each image.\n",
        soft_wrap=True,
    )
    recipe = recipes.get(GATED)
    listening = interruption or Interruption()
    options = Options(device, "gaternet demo", console, interruption=listening)
    gated = train_or_continue(recipe, Sources("digits"), out / "gated", options)
    plain_result = open_run(out / "gated" / "backbone").result
    gated_result = gated.result
    assert plain_result is not None
    assert gated_result is not None
    console.print()
    console.print(_comparison(plain_result, gated_result))
    analyze_run(gated.path, AnalysisRequest("digits", device=device))
    test = load_digits("test")
    digit = out / f"digit-{int(test.labels[0])}.png"
    Image.fromarray(test.images[0, 0].numpy()).save(digit)
    report = (gated.path / "analysis" / "test" / "report.html").absolute()
    console.print(f"\nWhat the gates do, to open in a browser: {report}", soft_wrap=True)
    console.print("\nWhat to type next:")
    for words in (
        ["evaluate", str(gated.path), "--gates", "soft"],
        ["analyze", str(gated.path)],
        ["predict", str(gated.path), str(digit)],
        ["recipes", "list"],
        ["train", "cifar10/resnet20-gated-short", "--data", "uoft-cs/cifar10", "--out", "runs/1"],
    ):
        console.print(f"  {shlex.join([_program(), *words])}", soft_wrap=True)


def _program() -> str:
    """Return how to call the command line from here: by name, or by where it was installed."""
    if shutil.which("gaternet"):
        return "gaternet"
    return os.path.relpath(Path(sys.executable).parent / "gaternet")


def _comparison(plain: dict[str, Any], gated: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("", "plain backbone", "gated model"):
        table.add_column(header, justify="left" if not header else "right")
    gates = gated["gates"]

    def share(count: float) -> str:
        return f"{count:g} of {gates['total']} ({100 * count / gates['total']:.0f} %)"

    table.add_row("epochs", str(plain["epochs"]), _epochs(gated))
    table.add_row("test error", *(f"{r['test_error_percent']:.2f} %" for r in (plain, gated)))
    table.add_row("parameters", *(f"{r['parameters']:,}" for r in (plain, gated)))
    table.add_row(
        "multiply-accumulates (with gater)",
        *(f"{r['macs_per_image']:,}" for r in (plain, gated)),
    )
    table.add_row("gates always on", "", share(gates["always_on"]))
    table.add_row("gates always off", "", share(gates["always_off"]))
    table.add_row("gates input-dependent", "", share(gates["input_dependent"]))
    table.add_row("gates open per image, mean", "", share(round(gates["mean_open"], 1)))
    return table


def _epochs(gated: dict[str, Any]) -> str:
    before = gated["pretrain_epochs"]
    return f"{before['backbone']} + {before['gater']}, then {gated['epochs']} jointly"
