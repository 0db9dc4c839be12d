"""Names that may have been meant."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from itertools import takewhile

SHOWN = 3


def near_names(name: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """Return up to three of the `known` names that are like `name`, the nearest first.

    Of equally near ones those come first that begin like it, then those that are first in `known`.

    likeness: the least that counts, in [0, 1]; 1 is the name itself
    """
    known = list(known)
    close = set(get_close_matches(name, known, n=max(1, len(known)), cutoff=likeness))
    matcher = SequenceMatcher(b=name)

    def nearness(candidate: str) -> tuple[float, int]:
        matcher.set_seq1(candidate)
        letters = zip(name, candidate, strict=False)
        return matcher.ratio(), len(list(takewhile(lambda pair: pair[0] == pair[1], letters)))

    return sorted((k for k in known if k in close), key=nearness, reverse=True)[:SHOWN]


def did_you_mean(name: str, known: Iterable[str], otherwise: str, likeness: float = 0.6) -> str:
    """Return a question with the near names, or `otherwise` where there are none."""
    near = near_names(name, known, likeness)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
