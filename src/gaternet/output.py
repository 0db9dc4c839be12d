"""What others read: text that a terminal only shows, and JSON that every reader takes."""

import json
from math import isfinite
from typing import Any


def printable(text: str) -> str:
    """Return text in which escapes stand for what a terminal would obey rather than show.

    Names of classes and files are others': "a\\x1b[31m" colours whatever is printed behind it.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def json_text(value: Any) -> str:
    """Return JSON; NaN and infinities, for which it has no numbers, become null."""
    return json.dumps(_without_nan(value), indent=2, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
