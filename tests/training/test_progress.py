"""What a run shows, in a terminal and elsewhere."""

import io
from typing import Any

import pytest
from rich.console import Console

from gaternet.training import progress
from gaternet.training.progress import (
    BarReporter,
    LineReporter,
    describe_epoch,
    describe_numbers,
    reporting,
)
from small_runs import quiet, shown

NUMBERS = {"loss": 1.25, "error_percent": 37.5, "images_per_second": 1234.5}
GATED = NUMBERS | {"open_share": 0.625}
PROBE: dict[str, Any] = {
    "images_from": "validation",
    "form": "hard",
    "hard": {"error_percent": 40.0},
    "soft": {"error_percent": 38.0},
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_numbers_in_one_line() -> None:
    assert describe_numbers(NUMBERS) == "loss 1.250 · error 37.50 % · 1,234 images/s"
    assert "open 62.5 %" in describe_numbers(GATED)


def test_epoch_in_one_line() -> None:
    metrics = GATED | {"epoch": 2, "seconds": 61.2, "probe": PROBE}
    assert describe_epoch(metrics, 9) == (
        "epoch 2/9 · loss 1.250 · error 37.50 % · open 62.5 % · 1,234 images/s "
        "· validation error 40.00 % (soft gates 38.00 %) · 61 s"
    )


def test_lines_come_once_a_minute_with_the_time_left(clock: Clock) -> None:
    console = quiet()
    reporter = LineReporter(console, total_steps=1000, epochs=10)
    for seconds in range(0, 150, 10):
        clock.now = 100.0 + seconds
        reporter.step(1, 1 + seconds, NUMBERS)
    written = shown(console).splitlines()
    # A step a second: after 60 of them 939 are left, after 120 seconds 879.
    assert [line.split(" · ")[0].strip() for line in written] == ["step 61/1000", "step 121/1000"]
    assert [line.rsplit(" · ")[-1] for line in written] == ["16 min left", "15 min left"]


def test_without_a_terminal_there_are_plain_lines() -> None:
    console = quiet()
    with reporting("digits/resnet8", 2000, 10, console) as reporter:
        assert isinstance(reporter, LineReporter)
        reporter.step(1, 200, NUMBERS)
        reporter.epoch(NUMBERS | {"epoch": 1, "seconds": 1.0, "probe": PROBE})
    first, second = shown(console).splitlines()
    assert first == "digits/resnet8: 10 epochs, 2,000 steps"
    assert second.startswith("epoch 1/10 · loss 1.250")
    assert "\x1b" not in shown(console)


def test_in_a_terminal_there_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    with reporting("digits/resnet8", 200, 10, console) as reporter:
        assert isinstance(reporter, BarReporter)
        reporter.step(3, 60, GATED)
        reporter.epoch(GATED | {"epoch": 3, "seconds": 1.0, "probe": PROBE})
    written = shown(console)
    assert "━" in written
    assert "epoch 3/10 · loss 1.250 · error 37.50 % · open 62.5 %" in written
    assert "30 %" in written
    assert "validation error 40.00 %" in written
