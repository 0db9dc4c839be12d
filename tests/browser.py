"""A headless Chromium that opens pages from disk and notices what they should not do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LAPTOP = {"width": 1366, "height": 768}


class Visit:
    """An open page, and what went wrong on it."""

    def __init__(self, tab: "Tab") -> None:
        self.tab = tab
        self.wrong: list[str] = []
        tab.on("console", lambda message: self._heard(message.type, message.text))
        tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        tab.on("request", lambda request: self._asked(request.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.wrong.append(text)

    def _asked(self, url: str) -> None:
        if url.split(":")[0] not in ("file", "data", "blob"):
            self.wrong.append(url)

    def open(self, file: Path) -> None:
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def text(self, selector: str) -> str:
        return self.tab.inner_text(selector)

    def table(self, selector: str) -> list[list[str]]:
        """Return the text of a table's body, cell by cell."""
        rows = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        found: list[list[str]] = self.tab.eval_on_selector_all(f"{selector} tbody tr", rows)
        return found

    def drawn(self, figure: str) -> list[dict[str, Any]]:
        """Return the traces that Plotly drew of a figure: name, x, y."""
        code = (
            "id => document.getElementById(id).data"
            ".map(t => ({name: t.name, x: [...t.x ?? []], y: [...t.y ?? []]}))"
        )
        traces: list[dict[str, Any]] = self.tab.evaluate(code, figure)
        return traces


@contextmanager
def visiting(profile: Path) -> Iterator[Visit]:
    """Start Chromium with an empty profile; skip the test where it, or playwright, is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=list(FLAGS), viewport=LAPTOP
        )
        yield Visit(context.pages[0])
        context.close()
