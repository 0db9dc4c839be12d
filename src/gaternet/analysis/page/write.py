"""A page's arrays, pictures and programs put into one HTML file."""

import base64
import html
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gaternet.analysis.page.arrays import pack, page_arrays
from gaternet.analysis.page.contents import Page
from gaternet.analysis.page.sprite import make_sprite
from gaternet.disk import make_directory, write_file

PROGRAMS = (
    *("text.js", "data.js", "state.js", "scatter.js", "strips.js", "extremes.js", "charts.js"),
    *("classes.js", "comparisons.js", "main.js"),
)
"""In the order in which they are put together."""


def write_page(page: Page, path: Path) -> None:
    """Write one HTML file that holds all it needs and sends no request.

    Raises UserError where the disk does not take it; what was there before then stays.
    """
    make_directory(path.parent)
    # Names of files may have bytes that are no text.
    write_file(path, render(page).encode("utf-8", "replace").decode("utf-8"))


def render(page: Page) -> str:
    """Return a page's HTML."""
    from plotly.offline import get_plotlyjs

    sprite = make_sprite(page.images)
    arrays, packed = pack(page_arrays(page))
    header = {
        "title": page.title,
        "classes": page.classes,
        "layers": _layers(page),
        "images": len(page.bits),
        "gates": page.gate_count,
        "drawnFrom": page.drawn_from,
        "names": page.names,
        "ratesOf": page.rates_of,
        "backboneMacs": page.backbone_macs,
        "sprite": {"columns": sprite.columns, "width": sprite.width, "height": sprite.height},
        "against": page.against,
        "bars": [asdict(bar) for bar in page.bars],
        "chance": page.chance,
        "tables": [asdict(table) for table in page.tables],
        "arrays": arrays,
    }
    parts = {
        "title": html.escape(page.title),
        "style": _read("page.css"),
        "plotly": get_plotlyjs(),
        # Within a script element only < could end it, or begin a comment.
        "header": json.dumps(header).replace("<", "\\u003c"),
        "arrays": _base64(packed),
        "sprite": _base64(sprite.data),
        "program": "\n".join(_read(name) for name in PROGRAMS),
    }
    text = _read("page.html")
    before, *rest = text.split("{{")
    filled = [before]
    for piece in rest:
        name, after = piece.split("}}", 1)
        filled += (parts[name], after)
    return "".join(filled)


def _layers(page: Page) -> list[dict[str, Any]]:
    counts = page.open_counts()
    shown = np.zeros(page.gate_count, dtype=bool)
    shown[page.shown_gates()] = True
    return [
        {
            "name": name,
            "first": columns.start,
            "gates": columns.stop - columns.start,
            "on": int(((counts[columns] > 0) & ~shown[columns]).sum()),
            "off": int(((counts[columns] == 0) & ~shown[columns]).sum()),
        }
        for name, columns in page.slices.items()
    ]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _read(name: str) -> str:
    return files("gaternet.analysis.page").joinpath(name).read_text(encoding="utf-8")
