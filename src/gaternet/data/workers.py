"""Processes that decode images: what they hear of signals, and how they end.

Who ends a run may tell all its processes: a terminal, Slurm, systemd. Workers leave that to the one
that started them, which still needs their batches; they end with it, whatever becomes of it.
"""

import atexit
import ctypes
import functools
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_WAIT_SECONDS = 5.0
"""How long a killed process is waited for: one whose disk does not answer may not end."""


def prepare_worker(_: int) -> None:
    """Leave signals to the process that started this one, and do not outlive it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextmanager
def starting(workers: list[BaseProcess]) -> Iterator[None]:
    """Add the workers that are started within the context to `workers`.

    They inherit that signals wait: none reaches one that is not prepared yet. And torch is kept
    from raising errors wherever this process is when a worker dies: within a step, or a destructor;
    whoever waits for a batch looks for itself.
    """
    others = set(multiprocessing.active_children())
    with _signals_waiting(), _told_of_no_child():
        try:
            yield
        finally:
            workers += set(multiprocessing.active_children()) - others


@contextmanager
def ending() -> Iterator[list[BaseProcess]]:
    """Kill whoever is in the list and left when the context ends, or this process before it.

    Workers do not hear the SIGTERM that torch and multiprocessing would end them by.
    """
    workers: list[BaseProcess] = []
    kill = functools.partial(_kill, workers)
    atexit.register(kill)
    try:
        yield workers
    finally:
        atexit.unregister(kill)
        kill()


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_WAIT_SECONDS)


@contextmanager
def _signals_waiting() -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _told_of_no_child() -> Iterator[None]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield  # torch does nothing there
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
