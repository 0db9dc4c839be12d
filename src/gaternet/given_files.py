"""Files that somebody gave: read within bounds, and never run.

A Python pickle runs whatever code is in it when it is loaded. None is loaded here; where one is
given in place of another file it is recognised by its first bytes, and the message says what it is.
"""

import json
import pickletools
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from math import isinf
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from gaternet.errors import UserError

MAX_JSON_BYTES = 4 * 2**20
"""Twice what a compressed network with 50,000 gates takes."""
MAX_CONTAINERS = 2**17
"""Objects and arrays in one file: they take most of the memory; three describe a tensor."""
MAX_DEPTH = 32
"""Of objects and arrays within each other."""
MAX_TEXT = 2**16
"""Characters of one text in a JSON file: names are compared with each other, and printed."""

_LONG = 2**18
"""Characters beyond which JSON is for programs alone: indented, each number has its own line."""
_HEAD = 4096
_PICKLE_PROTOCOLS = range(2, 6)
"""Those that begin with the byte 0x80 and their own number; older ones are text."""
_TEXT_PICKLE = b"(]}c"
"""How text pickles begin: with a mark, a list, a dict or the name of what is to be called."""

T = TypeVar("T")


def size_of(file: Path) -> int:
    """Return the bytes of a regular file; raise UserError where it is none or cannot be reached."""
    try:
        status = file.stat()
    except FileNotFoundError:
        what = "is a link that leads nowhere" if file.is_symlink() else "does not exist"
        raise UserError(f"{file} {what}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
        raise UserError(f"{file} is not a file but a {kind}")
    return status.st_size


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Make a UserError that names `path` of what the system says of it in the body."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_bytes(file: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raise UserError otherwise."""
    if (size := size_of(file)) > limit:
        raise UserError(f"{file} has {size:,} bytes: such a file has at most {limit:,}")
    with reaching(file), file.open("rb") as stream:
        return stream.read(limit)


def read_json(file: Path) -> Any:
    """Return the content of a JSON file of at most `MAX_JSON_BYTES`.

    Raises UserError, naming the file, for whatever `parse_json` refuses.
    """
    content = read_bytes(file, MAX_JSON_BYTES)
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{file} {describe_pickle(content) or f'is damaged: {error}'}") from None


def parse_json(content: bytes) -> Any:
    """Return what JSON text stands for.

    Raises ValueError, in words, for what is no JSON in UTF-8, has a key twice, a number that is not
    finite, more than `MAX_CONTAINERS` objects and arrays or `MAX_DEPTH` levels of them, or a text
    of more than `MAX_TEXT` characters.
    """
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS:
        raise ValueError(f"it has more than {MAX_CONTAINERS:,} objects and arrays")
    try:
        text = content.decode()
        values = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except RecursionError:
        raise ValueError(f"it has more than {MAX_DEPTH} levels") from None
    _check_extent(values)
    return values


def compose_json(values: object) -> str:
    """Return values as JSON that `read_json` takes: indented, or in one line where that is long.

    Raises ValueError, in words, for what it would refuse.
    """
    text = json.dumps(values, indent=2) + "\n"
    if len(text) > _LONG:
        text = json.dumps(values, separators=(",", ":")) + "\n"
    content = text.encode()
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(
            f"it has {len(content):,} bytes: such a file has at most {MAX_JSON_BYTES:,}"
        )
    parse_json(content)
    return text


def validate(kind: type[T], values: object) -> T:
    """Return plain values as a typed one; "3" is no number, and 1 is not true.

    Raises ValueError that says in one line where they are no such thing.
    """
    try:
        # As JSON: there a list is a tuple's form, and everything else may be strict.
        adapter = _adapter(kind)  # type: ignore[arg-type]  # which is hashable
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    raise ValueError(f"{where}: {first['msg']}" if where else first["msg"])


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def describe_pickle(content: bytes) -> str | None:
    """Return what a file is that begins like this, if it is a Python pickle; None: it is none.

    The words follow the file's name.
    """
    head = content[:_HEAD]
    kind = None
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in _PICKLE_PROTOCOLS:
        kind = "Python pickle"
    elif head.startswith(b"PK") and b"data.pkl" in head:
        kind = "PyTorch file, so a Python pickle"
    elif head and head[:1] in _TEXT_PICKLE and _ends_as_pickle(head):
        kind = "Python pickle"
    if kind is None:
        return None
    return f"is a {kind}, which can run any code when it is loaded: it was not read"


def describe_pickle_file(file: Path) -> str | None:
    """Return what `describe_pickle` says of a file; None too where it cannot be read."""
    try:
        size_of(file)
        with file.open("rb") as stream:
            return describe_pickle(stream.read(_HEAD))
    except (OSError, UserError):
        return None


def _ends_as_pickle(content: bytes) -> bool:
    try:
        return any(code.name == "STOP" for code, _, _ in pickletools.genops(content))
    except Exception:  # of all kinds, whatever the bytes are
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} is there twice")
    return found


def _constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is not allowed in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError(f"{text[:80]} is too large for a number")
    return number


def _check_extent(values: object) -> None:
    level = [values]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"it has more than {MAX_DEPTH} levels")


def _children(node: object) -> Iterable[object]:
    """Return what is in an object or array, but for numbers; raise ValueError for a long text."""
    if isinstance(node, dict):
        return [*node, *(value for value in node.values() if isinstance(value, (dict, list, str)))]
    if isinstance(node, list):
        return [value for value in node if isinstance(value, (dict, list, str))]
    if isinstance(node, str) and len(node) > MAX_TEXT:
        raise ValueError(f"a text in it has {len(node):,} characters: {node[:40]!r}…")
    return ()
