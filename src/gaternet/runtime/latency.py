"""Time that the forms of a network take, measured in turns: `gaternet bench latency`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom

from gaternet.runtime.compiler import synchronise
from gaternet.runtime.forms import Form, Forms

SHORT = 0.05
"""Seconds: whatever takes less runs once untimed before it is timed, threads and caches its own."""

FEWEST = 6
"""Values whose lowest and highest enclose the median of all with 95 % confidence."""

ROUNDS = 7
"""At least."""


@dataclass(frozen=True)
class LatencyRow:
    """What one form of a network takes for one batch.

    interval_ms: in which the median lies with 95 % confidence
    runs: how often it was timed
    """

    variant: str
    batch: int
    median_ms: float
    p95_ms: float
    interval_ms: tuple[float, float]
    runs: int
    open_share: float
    macs_per_image: float
    threads: int


def measure(
    forms: Forms, batch: int, seconds: float, device: torch.device
) -> tuple[LatencyRow, ...]:
    """Time all forms alternately for about so many seconds.

    Each is timed at least `ROUNDS` times, and on every batch.
    """
    taken: dict[str, list[float]] = {one.variant: [] for one in forms.ready}
    began, rounds = time.perf_counter(), 0
    while rounds < max(ROUNDS, forms.turns) or time.perf_counter() - began < seconds:
        for one in forms.ready:
            times = taken[one.variant]
            if not times or times[-1] < SHORT:
                _seconds(one, device)
            times.append(_seconds(one, device))
        rounds += 1
    return tuple(_row(one, batch, taken[one.variant]) for one in forms.ready)


def _seconds(one: Form, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    one.run()
    synchronise(device)
    return time.perf_counter() - start


def _row(one: Form, batch: int, taken: Sequence[float]) -> LatencyRow:
    milliseconds = 1e3 * np.sort(taken)
    low, high = median_ranks(len(taken))
    return LatencyRow(
        one.variant,
        batch,
        float(np.median(milliseconds)),
        float(np.percentile(milliseconds, 95)),
        (float(milliseconds[low]), float(milliseconds[high])),
        len(taken),
        one.open_share,
        one.macs,
        torch.get_num_threads(),
    )


def median_ranks(count: int) -> tuple[int, int]:
    """Return which of `count` sorted values, from 0, enclose the median with 95 % confidence.

    The number of values below the median is binomial with p = 1/2: it lies outside with twice the
    chance that at most `low` are below it.

    Raises ValueError for fewer than `FEWEST`, whose lowest and highest do so less often.
    """
    if count < FEWEST:
        raise ValueError(f"{count} values enclose no median with 95 % confidence: {FEWEST} do")
    below = np.arange(count // 2)
    low = int(below[2 * binom.cdf(below, count, 0.5) <= 0.05][-1])
    return low, count - 1 - low
