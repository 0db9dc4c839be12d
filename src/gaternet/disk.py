"""Files and directories that appear whole or not at all, on disks that may be full.

What is being written has a hidden name that ends in .partial; the bytes reach the disk before the
name does, and the name before anything goes on.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from gaternet.errors import UserError

_PARTIAL = ".partial"


def write_file(file: Path, text: str) -> None:
    """Replace a file whole or not at all; raise UserError where the disk does not take it.

    Several processes may write one file: the last to end has written it.
    """
    partial = _partial(file)
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        sync(file.parent)
    except BaseException as error:
        with suppress(OSError):  # where its folder is a file, or its name too long, it never was
            partial.unlink()
        if isinstance(error, OSError):
            raise refused(file, error, len(text.encode())) from error
        raise


def make_directory(directory: Path) -> None:
    """Make a directory and those above it where they are missing.

    Raises UserError where the disk does not take it or a file has its name.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = isinstance(error, FileExistsError)
        reason = "it is a file" if file else error.strerror
        raise UserError(f"cannot write into {directory}: {reason}") from None


def append_line(file: Path, line: str) -> None:
    """Add a line to a file; raise UserError where the disk does not take it whole."""
    try:
        with file.open("a") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise refused(file, error, len(line.encode()) + 1) from error


@contextmanager
def new_directory(directory: Path, needed: int) -> Iterator[Path]:
    """Yield a directory to write files into; it takes its name, whole, when the context ends.

    needed: bytes that will be written, for the message

    Raises UserError where the name is taken or the disk does not take the files.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already; choose another directory or remove it")
    partial = _partial(directory)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            sync(file)
        sync(partial)
        partial.rename(directory)
        sync(directory.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise refused(directory, error, needed) from error


def remove_file(file: Path) -> None:
    """Remove a file where there is one; raise UserError where that is not allowed."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {file}: {error.strerror}") from None


def remove_directory(directory: Path) -> None:
    """Remove a directory so that no half of it is ever found under its name.

    Raises UserError where that is not allowed.
    """
    gone = directory.with_name(f".{directory.name}.removed{_PARTIAL}")
    try:
        shutil.rmtree(gone, ignore_errors=True)
        directory.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise UserError(f"cannot remove {directory}: {error.strerror}") from error


def leftovers(folder: Path) -> list[Path]:
    """Return what a process that was killed had begun to write or to remove in a folder."""
    return sorted(folder.glob(f".*{_PARTIAL}"))


def clear_leftovers(folder: Path) -> None:
    """Remove what a process that was killed had begun to write or to remove in a folder."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def refused(path: Path, error: Exception, needed: int) -> UserError:
    """Return the message of a write that failed: why, and how many bytes it needed."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    message = f"cannot write {path}: {reason}: {needed:,} bytes are needed"
    free = _free_bytes(path.parent)
    return UserError(f"{message}, {free:,} are free there" if free is not None else message)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, have reached the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    """Return the name, this process's own, under which a path is written."""
    return path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
