"""Tables and lists in Markdown."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [_line(heads), _line(["---"] * len(heads)), *map(_line, rows)]


def listed(names: Sequence[str]) -> str:
    """Return names as a phrase: a, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
