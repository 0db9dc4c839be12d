"""One run directory, one process that writes to it.

The lock is a POSIX record lock (fcntl) on RUN/.lock, and the file says who holds it. The kernel
takes such a lock back when its process ends, killed or not, so none is ever stale; NFS and the file
systems of clusters keep it over all their machines; and, other than flock's, processes that are
forked to decode images do not keep it alive. A file whose mere existence is the lock would have to
be removed by hand whenever a machine died. Where a file system has no locks, the process that the
file names is looked for: one on this machine by its number and the time at which it began.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gaternet.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_WAIT_SECONDS = 1.0
"""How long a process that has just taken the lock may need to say who it is."""


class InUseError(UserError):
    """Another process writes to a run."""


@dataclass(frozen=True)
class Holder:
    """The process that writes to a run."""

    host: str
    pid: int
    since: str
    began: str | None
    """When the process began, as its system has it: a number is given to another one some day."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def lives(self) -> bool:
        """Whether it may be running; of another machine's process nobody can tell."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.began in (None, _beginning(self.pid))


@contextmanager
def locked(run: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a run directory, which is made, for this process.

    say: takes a line where the process that held it before ended without a word

    Raises InUseError, naming the other process, where another one holds it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(run, say)
    except FileExistsError:
        raise UserError(f"{run} is a file; choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot write {run}: {error.strerror}") from error
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)  # while it is held: nobody else's is removed
        os.close(descriptor)


def check_free(run: Path) -> None:
    """Raise InUseError, naming it, where another process writes to a run; change nothing."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        _refuse_if_held(run, descriptor)
    finally:
        os.close(descriptor)


def _acquire(run: Path, say: Callable[[str], object]) -> int:
    file = run / LOCK
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _refuse_if_held(run, descriptor)
            if file.exists() and os.path.samestat(file.stat(), os.fstat(descriptor)):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it has removed the file meanwhile
    left = _read(descriptor)
    if left:
        say(f"{run} was left locked by {left}, which has ended; going on")
    here = Holder(socket.gethostname(), os.getpid(), _now(), _beginning(os.getpid()))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(here)).encode(), 0)
    os.fsync(descriptor)
    return descriptor


def _refuse_if_held(run: Path, descriptor: int) -> None:
    """Take the lock; raise InUseError where another process has it."""
    taken = _lock(descriptor)
    holder = _read(descriptor)
    if taken is False:
        holder = holder or _read_soon(descriptor)
    elif taken is True or holder is None or not holder.lives:
        return
    hint = "" if taken is False else f"; if that one has ended, remove {run / LOCK}"
    raise InUseError(f"{run} is in use by {holder or 'another process'}{hint}")


def _lock(descriptor: int) -> bool | None:
    """Return whether the lock could be taken; None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return True


def _read_soon(descriptor: int) -> Holder | None:
    until = time.monotonic() + _WAIT_SECONDS
    while (holder := _read(descriptor)) is None and time.monotonic() < until:
        time.sleep(0.05)
    return holder


def _read(descriptor: int) -> Holder | None:
    try:
        values = json.loads(os.pread(descriptor, 4096, 0))
        began = values["began"]
        return Holder(
            str(values["host"]),
            int(values["pid"]),
            str(values["since"]),
            None if began is None else str(began),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _beginning(pid: int) -> str | None:
    """Return when a process began, in ticks since this boot; None where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Its second field, the command in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
