"""Tensors and values on disk: safetensors and JSON, with the SHA-256 of every file.

A checkpoint is a directory that appears whole or not at all, and is read where no file of it was
altered. Nothing here reads a pickle.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from gaternet import tensor_files
from gaternet.disk import new_directory
from gaternet.errors import DamagedCheckpointWarning, UserError
from gaternet.given_files import (
    MAX_JSON_BYTES,
    compose_json,
    describe_pickle_file,
    reaching,
    size_of,
    validate,
)
from gaternet.given_files import read_json as read_json_file
from gaternet.trained import suggestion

MANIFEST = "manifest.json"
MODEL = "model"

_ENTRY_BYTES = 100
"""Of a tensor's name, shape and place in a safetensors file, about."""
_BLOCK_BYTES = 4096

_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


def write(
    directory: Path, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]
) -> None:
    """Write NAME.safetensors and NAME.json files and their manifest, whole or not at all.

    Raises UserError where the directory exists, the disk does not take it, or `read_json` would not
    take a value.
    """
    texts = {f"{name}.json": _composed(directory, name, value) for name, value in values.items()}
    with new_directory(directory, _bytes_needed(tensors, texts)) as partial:
        for name, group in tensors.items():
            _save_tensors(group, partial / f"{name}.safetensors")
        for name, text in texts.items():
            (partial / name).write_text(text)
        manifest = {
            file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size}
            for file in sorted(partial.iterdir())
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    # A copy each: safetensors refuses tensors that share memory.
    packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    file.touch()
    mode = file.stat().st_mode
    save_file(packed, file)
    file.chmod(mode)  # safetensors leaves it to its owner alone, whatever the umask says


def _composed(directory: Path, name: str, value: object) -> str:
    try:
        return compose_json(value)
    except ValueError as error:
        raise UserError(
            f"{directory / name}.json cannot be written, since it could not be read again: {error}"
        ) from None


def _bytes_needed(tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> int:
    """Return about how much a disk must have left for a checkpoint."""
    held = [tensor for group in tensors.values() for tensor in group.values()]
    written = sum(tensor.nbytes + _ENTRY_BYTES for tensor in held) + sum(map(len, texts.values()))
    files = len(tensors) + len(texts) + 1  # and the manifest; a disk gives them whole blocks
    return written + files * _BLOCK_BYTES


@dataclass(frozen=True)
class Verified:
    """A checkpoint whose files were all there, unaltered, when they were looked at, once."""

    path: Path
    names: frozenset[str]

    def holds(self, name: str) -> bool:
        """Return whether there are tensors of this name."""
        return f"{name}.safetensors" in self.names

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of NAME.safetensors, on the CPU."""
        return tensor_files.read_tensors(self._file(f"{name}.safetensors"))

    def read_shapes(self, name: str) -> tensor_files.Shapes:
        """Return the shapes of the tensors of NAME.safetensors, none of which is read."""
        return tensor_files.read_shapes(self._file(f"{name}.safetensors"))

    def read_json(self, name: str) -> Any:
        """Return the content of NAME.json."""
        return read_json_file(self._file(f"{name}.json"))

    def _file(self, name: str) -> Path:
        if name not in self.names:
            raise UserError(f"{self.path / name} is not in {MANIFEST}")
        return self.path / name


def verify(directory: Path) -> Verified:
    """Return a checkpoint; raise UserError unless all of its files are there, unaltered."""
    file = directory / MANIFEST
    with reaching(file):
        is_listed = file.exists()
    if not is_listed:
        raise UserError(_no_model(directory))
    try:
        expected = validate(dict[str, _Listed], read_json_file(file))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    for name, listed in expected.items():
        with reaching(directory / name):
            _check_file(directory, name, listed)
    return Verified(directory, frozenset(expected))


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of NAME.safetensors, on the CPU, after verifying the whole checkpoint."""
    return verify(directory).read_tensors(name)


def read_json(directory: Path, name: str) -> Any:
    """Return the content of NAME.json, after verifying the whole checkpoint."""
    return verify(directory).read_json(name)


def newest(checkpoints: Path, *, strict: bool = False) -> Path:
    """Return where a run's newest checkpoint is that is whole, as `verify_newest` finds it."""
    return verify_newest(checkpoints, strict=strict).path


def verify_newest(checkpoints: Path, *, strict: bool = False) -> Verified:
    """Return a run's newest checkpoint that is whole, and warn of those behind it that are not.

    Raises UserError where there is none; if `strict`, already where the newest is damaged.
    """
    found = finished(checkpoints)
    if not found:
        raise UserError(
            f"{checkpoints} holds no checkpoint yet: the run ended before its first epoch"
        )
    faults = []
    for path in reversed(found):
        try:
            sound = verify(path)
        except UserError as error:
            faults.append(str(error))
        else:
            break
        if strict:
            raise UserError(f"{faults[0]}; without --strict the checkpoint before it is taken")
    else:
        raise UserError(
            f"{faults[0]}; no earlier checkpoint is left: remove {checkpoints} to begin anew"
        )
    if faults:
        message = f"{'; '.join(faults)}; going back to {sound.path.name}"
        warnings.warn(message, DamagedCheckpointWarning, stacklevel=2)
    return sound


def name_of(epoch: int, step: int = 0) -> str:
    """Return the name of a checkpoint behind `epoch` epochs and `step` steps of the next."""
    return f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")


def position(path: Path) -> tuple[int, int]:
    """Return (finished epochs, steps of the next one) of a checkpoint, from its name."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path.name} is not a checkpoint's name")
    return int(found[1]), int(found[2] or 0)


def finished(checkpoints: Path) -> list[Path]:
    """Return a run's checkpoints, the newest last."""
    with reaching(checkpoints):  # which glob would take for an empty one where it is closed
        children = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
        found = (path for path in children if _NAME.fullmatch(path.name))
        return sorted((path for path in found if path.is_dir()), key=position)


@dataclass(frozen=True)
class _Listed:
    """What a manifest says of a file."""

    sha256: str
    bytes: int | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


def _check_file(directory: Path, name: str, listed: _Listed) -> None:
    """Raise UserError unless a file lies in the directory itself and is the one that was listed."""
    file = directory / name
    if Path(name).name != name:
        raise UserError(
            f"{directory / MANIFEST} names {name!r}: a checkpoint's files lie beside it"
        )
    if not file.is_file():
        raise UserError(f"{file} is missing")
    if file.resolve().parent != directory.resolve():
        raise UserError(f"{file} is a link out of its checkpoint: put the file itself there")
    size = size_of(file)
    if file.suffix == ".json" and size > MAX_JSON_BYTES:
        raise UserError(f"{file} has {size:,} bytes: such a file has at most {MAX_JSON_BYTES:,}")
    if listed.bytes not in (None, size) or _sha256(file) != listed.sha256:
        what = "size" if listed.bytes not in (None, size) else "SHA-256"
        raise UserError(f"{file} was truncated or altered: its {what} differs from {MANIFEST}")


def _no_model(path: Path) -> str:
    """Say what is wrong with a path that a model was expected at."""
    if pickled := describe_pickle_file(path):
        return f"{path} {pickled}; give the directory of a run or of a saved model"
    return f"{path} holds no model: it has no {MANIFEST}{suggestion(path)}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
