"""SIGTERM and Ctrl-C: the step is finished and saved; and when a checkpoint is due anyway.

Of several processes all stop behind the same step, whichever of them was told.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType

from torch.distributed import is_torchelastic_launched

from gaternet.errors import Interrupted
from gaternet.training.processes import ALONE, Processes

ECHO_SECONDS = 1.0
"""Under torchrun a signal this soon behind the first is its echo: a terminal passes it on too."""

LOOK_SECONDS = 1.0
"""How often, about, several processes agree: it makes them wait for each other."""

MOST_STEPS = 100
"""Steps between two agreements, at most."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """The signal that this process was told to end by.

    While training, the first one waits until the step is saved; elsewhere nothing would be lost,
    and it ends what runs by `Interrupted`. A second one ends the process at once.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal's number; 0: none came."""
        self._deferred = False
        self._at = 0.0

    @contextmanager
    def listening(self) -> Iterator["Interruption"]:
        """Take the two signals until the context ends; only the main thread may."""
        before = [signal.signal(number, self._take) for number in _SIGNALS]
        try:
            yield self
        finally:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait until it is asked for; at the latest, until the context ends."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.received:
            raise Interrupted(self.received)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if not is_torchelastic_launched() or now - self._at > ECHO_SECONDS:
                _exit_at_once(number)
            return
        self.received, self._at = number, now
        if not self._deferred:
            raise Interrupted(number)


def _exit_at_once(number: int) -> None:
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(128 + number)


class Watch:
    """Says behind every step whether to save and whether to stop, alike in all processes."""

    def __init__(
        self,
        interruption: Interruption | None = None,
        processes: Processes = ALONE,
        minutes: float = inf,
    ) -> None:
        self.interruption = interruption or Interruption()
        self._processes = processes
        self._minutes = minutes
        self._saved = self._looked = time.monotonic()
        self._steps = 0
        """Taken since the processes last agreed."""
        self._wait = 1
        """Steps until they agree again."""

    def saved(self) -> None:
        """Count the time to the next checkpoint from now."""
        self._saved = time.monotonic()

    def look(self, *, at_once: bool = False) -> tuple[bool, int]:
        """Return whether a checkpoint is due, and the signal to stop by, 0 for none.

        at_once: ask the other processes, even if they agreed a moment ago
        """
        now = time.monotonic()
        due = now - self._saved > 60 * self._minutes
        if self._processes.count == 1:
            return due, self.interruption.received
        self._steps += 1
        if self._steps < self._wait and not at_once:
            return False, 0
        pace = self._steps / max(now - self._looked, 1e-9)
        wait = min(max(1, int(pace * LOOK_SECONDS)), MOST_STEPS)
        own = (int(due), self.interruption.received, wait)
        saves, received, self._wait = self._processes.largest(own)
        self._steps, self._looked = 0, time.monotonic()
        return bool(saves), received
