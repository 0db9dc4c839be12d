"""How property tests draw: the same few examples on every machine, and no deadline on any."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gaternet.errors import UserError

T = TypeVar("T")

few = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    # A fixture that gives a path or fixed bytes is the same for all examples of a test.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def unless_refused(call: Callable[[], T], begins: str) -> T | None:
    """Return what a call returns; None where it refuses, in one line that begins with that."""
    try:
        return call()
    except UserError as error:
        message = str(error)
    assert message.startswith(begins)
    assert "\n" not in message
    return None


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes with one of them flipped, some cut out, or others put in: never the same."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["flip", "cut", "put in", "end"]))
    if kind == "flip":
        flipped = content[at] ^ draw(st.integers(1, 255))
        return content[:at] + bytes([flipped]) + content[at + 1 :]
    if kind == "cut":
        return content[:at] + content[at + draw(st.integers(1, 64)) :]
    if kind == "put in":
        return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
    return content[:at]
