"""A split's record on disk, so that later questions need no second pass over its images."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gaternet import checkpoint
from gaternet.analysis.record import GateRecord
from gaternet.analysis.split_record import Extremes, SplitRecord
from gaternet.errors import UserError
from gaternet.trained import located, name_of

GATES = "gates"
PAGE = "report.html"
VERSION = 1
"""Of the layout of what is written; a record of another one is made anew."""


def analysis_of(run: Path) -> Path:
    """Return where the analysis of a run lies where nothing else is said: RUN/analysis.

    Of a network of the package, which stays as it is, NAME-analysis in the current directory.
    """
    name = name_of(located(run))
    return Path(f"{name}-analysis") if name else run / "analysis"


def write_record(record: SplitRecord, directory: str | Path, source: Mapping[str, Any]) -> None:
    """Write a record as safetensors and JSON with their SHA-256, whole or not at all.

    `source` says what it was made from, in JSON's own types. Raises UserError where the directory
    exists or the disk does not take it.
    """
    arrays = {
        "bits": record.gates.bits,
        "index": record.index,
        "labels": record.labels,
        "predictions": record.predictions,
        **asdict(record.extremes),
    }
    about = {
        "version": VERSION,
        "source": dict(source),
        "classes": record.classes,
        "layers": [[name, c.start, c.stop] for name, c in record.gates.slices.items()],
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    checkpoint.write(Path(directory), {GATES: tensors}, {GATES: about})


def read_record(directory: str | Path) -> SplitRecord:
    """Read what `write_record` wrote; raise UserError where it is missing, altered or another's."""
    path = Path(directory)
    about = checkpoint.read_json(path, GATES)
    try:
        if about["version"] != VERSION:
            raise UserError(f"{path} was written by another version; remove it and analyze again")
        found = {name: t.numpy() for name, t in checkpoint.read_tensors(path, GATES).items()}
        extremes = (found[name] for name in Extremes.__dataclass_fields__)
        return SplitRecord(
            GateRecord(
                found["bits"],
                {name: slice(start, stop) for name, start, stop in about["layers"]},
            ),
            found["index"],
            found["labels"],
            found["predictions"],
            tuple(about["classes"]),
            Extremes(*extremes),
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} holds no record of gates; remove it and analyze again") from None


def check_record_place(directory: Path) -> None:
    """Raise UserError where something lies that `write_record` did not write: it is not replaced.

    A damaged record is one still.
    """
    if not os.path.lexists(directory):
        return
    about = {checkpoint.MANIFEST, f"{GATES}.json"}
    is_folder = directory.is_dir() and not directory.is_symlink()
    found = {file.name for file in directory.iterdir()} if is_folder else set()
    if not about <= found <= about | {f"{GATES}.safetensors"}:
        raise UserError(
            f"{directory} is where gates are recorded, and holds something else: give another --out"
        )


def source_of(directory: Path) -> dict[str, Any] | None:
    """Return what a record was made from; None where there is none of this version."""
    file = directory / f"{GATES}.json"
    try:
        about = json.loads(file.read_text())
        return dict(about["source"]) if about["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_of(directory: Path) -> str:
    """Return the SHA-256 of a checkpoint's architecture and weights, from its manifest."""
    manifest = json.loads((directory / checkpoint.MANIFEST).read_text())
    names = (f"{checkpoint.MODEL}.json", f"{checkpoint.MODEL}.safetensors")
    return "-".join(str(manifest[name]["sha256"]) for name in names)
