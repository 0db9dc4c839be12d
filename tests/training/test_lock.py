"""Two runs in one directory: the second one is told which process has the first."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaternet.errors import UserError
from gaternet.training.lock import LOCK, Holder, check_free, locked
from small_runs import tree

HOLD = """
import sys, time
from pathlib import Path
from gaternet.training.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(100)
"""


def hold(run: Path, code: str = HOLD) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with hold(tmp_path / "run") as process:
        yield process
        process.kill()


def take(run: Path) -> list[str]:
    """Return what is said where the lock can be taken."""
    said: list[str] = []
    with locked(run, said.append):
        assert (run / LOCK).exists()
    assert not (run / LOCK).exists()
    return said


def test_second_process_names_the_first_and_changes_nothing(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    before = tree(tmp_path)
    expected = rf"run is in use by process {holder.pid} on {socket.gethostname()}, since 20\d\d-.*"
    for attempt in (check_free, take):
        with pytest.raises(UserError, match=expected):
            attempt(tmp_path / "run")
    assert tree(tmp_path) == before


def test_lock_of_a_killed_process_is_taken_with_a_line(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()
    holder.wait()
    check_free(tmp_path / "run")
    (line,) = take(tmp_path / "run")
    assert f"left locked by process {holder.pid} on" in line
    assert take(tmp_path / "run") == []


FORK = """
import os, sys, time
from pathlib import Path
from gaternet.training.lock import locked
with locked(Path(sys.argv[1]), print):
    if not os.fork():
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(100)
"""


def test_forked_child_does_not_keep_its_dead_parent_s_lock(tmp_path: Path) -> None:
    """As processes do that decode images, for a while."""
    with hold(tmp_path / "run", FORK) as parent:
        parent.kill()
    assert len(take(tmp_path / "run")) == 1


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def leave(run: Path, holder: Holder) -> None:
    run.mkdir(exist_ok=True)
    (run / LOCK).write_text(json.dumps(vars(holder)))


def test_file_system_without_locks_goes_by_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_locks(monkeypatch)
    run, here = tmp_path / "run", socket.gethostname()
    assert take(run) == []
    with locked(run, print), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        take(run)
    with subprocess.Popen(["true"]) as dead:
        pass
    leave(run, Holder(here, dead.pid, "2026-01-01", None))
    assert len(take(run)) == 1
    # Its number was given to another process meanwhile.
    leave(run, Holder(here, os.getpid(), "2026-01-01", "another boot 17"))
    assert len(take(run)) == 1
    leave(run, Holder("elsewhere", 1, "2026-01-01", None))
    with pytest.raises(UserError, match=r"process 1 on elsewhere.*has ended, remove .*\.lock"):
        take(run)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', '{"host":"h","pid":"x"}'])
def test_garbled_lock_is_nobody_s(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(content)
    assert take(tmp_path) == []


def test_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; choose another --out"):
        take(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        take(tmp_path / "file" / "run")
