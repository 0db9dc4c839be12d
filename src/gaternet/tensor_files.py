"""Safetensors files that somebody gave: their header first, within bounds, then their tensors."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gaternet.errors import UserError
from gaternet.given_files import describe_pickle, parse_json, size_of

MAX_HEADER_BYTES = 4 * 2**20
"""Of 40,000 tensors; ResNet-1001 with the state of its optimiser has 10,000."""

_LENGTH_BYTES = 8
_MAX_SIDE = 2**63 - 1

Shapes = dict[str, tuple[int, ...]]


def read_shapes(file: Path) -> Shapes:
    """Return the shapes of a file's tensors, none of which is read.

    Raises UserError, naming the file, where its header is not one that covers the file exactly.
    """
    _check_header(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return a file's tensors on the CPU; raise UserError as `read_shapes` does."""
    _check_header(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _check_header(file: Path) -> None:
    """Raise UserError for what safetensors' own checks let through.

    These are long headers, keys twice, and sides of empty tensors that torch has no numbers for.
    """
    size = size_of(file)
    try:
        with file.open("rb") as stream:
            head = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(head, "little")
            if len(head) == _LENGTH_BYTES and length <= min(MAX_HEADER_BYTES, size):
                _check_sides(parse_json(stream.read(length)))
                return
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} cannot be read: in its header, {error}") from None
    with file.open("rb") as stream:
        pickled = describe_pickle(stream.read(_LENGTH_BYTES * 512))
    reason = f"is not a safetensors file: it has {size:,} bytes, and a header of {length:,}"
    raise UserError(f"{file} {pickled or reason}")


def _check_sides(header: Any) -> None:
    """Raise ValueError for a side of more than `_MAX_SIDE`; what is no header is left as it is."""
    for name, entry in header.items() if isinstance(header, dict) else ():
        sides = entry.get("shape") if isinstance(entry, dict) else None
        for side in sides if isinstance(sides, list) else ():
            if isinstance(side, int) and side > _MAX_SIDE:
                raise ValueError(f"{name[:80]!r} has a side of more than {_MAX_SIDE:,}")
