"""Worker processes that are killed and that hang: told in time, and none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pictures import encoded

from gaternet.data import loading
from gaternet.data.batches import Order, training_batches
from gaternet.data.image_files import ImageFiles
from gaternet.data.loading import Loading
from gaternet.data.readers import Row
from gaternet.data.settings import Augmentation
from gaternet.errors import UserError
from gaternet.randomness import permutation
from small_runs import PICTURES

AS_IT_IS = Augmentation(crop_padding=0, mirror=False)
COUNT = 64


class Rows:
    """Images of which one is like no other."""

    def __init__(self, special: int, read: Callable[[], object]) -> None:
        self.special, self.read = special, read

    def __getitem__(self, number: int) -> Row:
        if number == self.special:
            self.read()
        return Row(encoded(number), number % 2, f"{number}", None)


def batches_of(read: Callable[[], object], batch: int = 7) -> Iterator[object]:
    """Yield batches of 4 that two workers read; `read` is called within one of them."""
    order = Order(0, 0, 4, AS_IT_IS, PICTURES)
    special = int(permutation(0, 0, COUNT)[4 * batch + 1])
    images = ImageFiles(
        Rows(special, read), torch.arange(COUNT), ("even", "odd"), "pictures", "train", "0" * 16
    )
    return training_batches(images, order, Loading(torch.device("cpu"), workers=2))


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ended(pid: int) -> bool:
    """Whether there is no such process any more, or nothing but its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def error_of(batches: Iterator[object]) -> str:
    """Go through the batches to their error; return it when all workers have ended."""
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    assert len(workers) == 2
    with pytest.raises(UserError) as caught:
        list(batches)
    # Although the error, with all that it refers to, is still there.
    assert all(ended(pid) for pid in workers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_killed_worker_is_reported_and_the_others_end() -> None:
    start = time.monotonic()
    message = error_of(batches_of(kill_itself))
    assert "has died (DataLoader worker (pid(s) " in message
    assert "fewer --compute.workers" in message
    assert "--resume" in message
    assert time.monotonic() - start < 20


@pytest.fixture
def no_other_loader() -> Iterator[None]:
    """What hears of dying processes in a process that has had none of torch's own loaders yet."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_worker_that_is_killed_during_a_step_does_not_interrupt_it(no_other_loader: None) -> None:
    batches = batches_of(lambda: None)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    time.sleep(0.3)  # the step that is being taken
    with pytest.raises(UserError, match=r"has died \(DataLoader worker"):
        list(batches)


def test_workers_leave_signals_to_the_run() -> None:
    """Slurm, systemd and terminals tell every process of a run to end."""
    batches = batches_of(lambda: None)
    seen = [next(batches)]
    for number in (signal.SIGTERM, signal.SIGINT):
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, number)
        seen += [next(batches)]
    assert len([*seen, *batches]) == COUNT // 4


class Batches:
    """What torch's loader answers, one after the other."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("broken", [EOFError(), ConnectionResetError(104), FileNotFoundError(2)])
def test_worker_that_dies_as_it_hands_a_batch_over_is_waited_for_to_be_dead(
    broken: Exception,
) -> None:
    dead = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    part = loading._next(Batches(broken, dead), timeout=20)  # type: ignore[arg-type]
    assert part is not None
    assert part.fault is not None
    assert "has died (DataLoader worker (pid(s) 5)" in part.fault


def test_error_from_within_a_worker_is_passed_on() -> None:
    found = Batches(FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."))
    with pytest.raises(FileNotFoundError, match="worker process 0"):
        loading._next(found, timeout=20)  # type: ignore[arg-type]


@pytest.mark.slow
def test_hanging_worker_is_reported_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "image.png"
    os.mkfifo(fifo)
    monkeypatch.setattr(loading, "WORKER_TIMEOUT", 2)
    start = time.monotonic()
    message = error_of(batches_of(fifo.read_bytes))
    assert "hangs: no batch for 2 seconds" in message
    assert "its disk does not answer" in message
    assert "--resume" in message
    assert time.monotonic() - start < 20


def test_slow_batches_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LOOK_EVERY", 0.1)
    assert len(list(batches_of(lambda: time.sleep(1)))) == COUNT // 4


def test_workers_end_with_an_iterator_that_is_left(tmp_path: Path) -> None:
    batches = batches_of(lambda: None)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    del batches
    assert all(ended(pid) for pid in workers)


def with_tests_on_path() -> dict[str, str]:
    paths = [str(Path(__file__).parent), *sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


LEFT = """
import multiprocessing, sys
from pathlib import Path
from test_workers import batches_of
batches = batches_of(Path(sys.argv[1]).read_bytes, batch=3)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
raise ValueError("the step goes wrong")
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_leaves_them_and_an_error_behind(tmp_path: Path) -> None:
    """The error keeps the iterator; one worker waits for a file that never comes."""
    fifo = tmp_path / "image.png"
    os.mkfifo(fifo)
    done = subprocess.run(
        [sys.executable, "-c", LEFT, str(fifo)],
        env=with_tests_on_path(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ValueError: the step goes wrong" in done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    assert all(ended(pid) for pid in workers)


ORPHANS = """
import multiprocessing, sys, time
from pathlib import Path
from test_workers import batches_of
batches = batches_of(Path(sys.argv[1]).read_bytes, batch=3)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    """One of them waits for a file that never comes: it would for ever."""
    fifo = tmp_path / "image.png"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(fifo)],
        stdout=subprocess.PIPE,
        env=with_tests_on_path(),
        text=True,
    ) as run:
        assert run.stdout is not None
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(1)  # until one has come to the file
        assert not any(ended(pid) for pid in workers)
        run.kill()
    assert wait_for(lambda: all(ended(pid) for pid in workers), 10)
