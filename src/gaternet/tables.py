"""The pieces that results are printed with: tables, shares, JSON."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from gaternet.output import json_text, printable

if TYPE_CHECKING:
    from gaternet.commands import Prediction

SHOWN_CLASSES = 5


def new_table(*headers: str) -> Table:
    """Return a table without a box; its columns' headers are bold."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def share_of(count: float, total: int) -> str:
    """Return a count beside how many there are: 3 of 12 (25.0 %)."""
    shown = f"{count:,}" if isinstance(count, int) else f"{count:,.1f}"
    return f"{shown} of {total:,} ({100 * count / total:.1f} %)"


def part_of(macs: float, backbone: int) -> str:
    """Return multiply-accumulates, and how much of the backbone's that is."""
    return f"{macs:,.0f} ({100 * macs / backbone:.1f} %)"


def likeliest_classes(prediction: "Prediction") -> Table:
    """Return the likeliest classes of an image, and how likely."""
    table = new_table(printable(prediction.image), "probability")
    likeliest = zip(prediction.classes, prediction.probabilities, strict=True)
    for name, p in list(likeliest)[:SHOWN_CLASSES]:
        table.add_row(printable(name), f"{100 * p:.1f} %")
    return table


def print_json(value: Any) -> None:
    """Print a value as JSON, indented."""
    print(json_text(value))
