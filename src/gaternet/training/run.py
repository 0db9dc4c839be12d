"""A run directory: resolved config, metrics, checkpoints, TensorBoard, result.

RUN/config.json        what decides what the run computes
RUN/metrics.jsonl      one line an epoch
RUN/tensorboard/       the same, for TensorBoard
RUN/checkpoints/       epoch-0007/ …: model, training state, SHA-256 manifest
RUN/result.json        test error and costs, when the run has ended
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from gaternet import checkpoint
from gaternet.errors import UserError
from gaternet.given_files import describe_pickle_file, read_json, validate
from gaternet.training.config import Recipe, recipe_from_dict, recipe_to_dict

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class RunConfig:
    """What a run directory says about itself."""

    recipe: Recipe
    data_name: str
    data_fingerprint: str
    classes: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    """Where the initial weights of a gated network's parts come from."""


class Run:
    """A run directory that exists. Of several processes the first one alone writes to it."""

    def __init__(self, path: Path, config: RunConfig, *, writes: bool = True) -> None:
        self.path = path
        self.config = config
        self.writes = writes

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        return bool(checkpoint.finished(self.checkpoints))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one epoch's metrics; raise UserError where the disk does not take them."""
        if not self.writes:
            return
        file = self.path / "metrics.jsonl"
        try:
            with file.open("a") as stream:
                stream.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every finished epoch."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        lines = file.read_text().splitlines(keepends=True)
        # A line without its end was being written when the run was killed.
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError:
            raise UserError(f"{file} is damaged; restore it, or remove the run") from None

    def save_checkpoint(
        self, epoch: int, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]
    ) -> None:
        """Write the checkpoint of a finished epoch and drop those that are no longer needed."""
        if not self.writes:
            return
        checkpoint.write(self.checkpoints / f"epoch-{epoch:04d}", tensors, values)
        for old in checkpoint.finished(self.checkpoints)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def rewind(self, epoch: int) -> None:
        """Forget the metrics of epochs that were begun or finished after checkpoint `epoch`."""
        if not self.writes:
            return
        lines = [json.dumps(line) for line in self.metrics() if line["epoch"] <= epoch]
        _write(self.path / "metrics.jsonl", "".join(line + "\n" for line in lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        if not self.writes:
            return
        _write(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None while the run has not ended."""
        file = self.path / "result.json"
        try:
            return validate(dict[str, Any], read_json(file)) if file.exists() else None
        except (UserError, ValueError):
            raise UserError(
                f"{file} is damaged; remove it to measure again with --resume"
            ) from None


def create_run(path: Path, config: RunConfig) -> Run:
    """Make a new run directory; raise UserError where there is something already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if (path / "config.json").exists():
            raise UserError(
                f"{path} holds a run already; choose another --out, or go on with its training by "
                "gaternet train … --resume"
            )
        kind = "is not empty" if path.is_dir() else "is a file"
        raise UserError(f"{path} {kind}; choose another --out")
    try:
        (path / "checkpoints").mkdir(parents=True)
        values = {
            "gaternet": version("gaternet"),
            "data": {
                "name": config.data_name,
                "fingerprint": config.data_fingerprint,
                "classes": config.classes,
            },
            "recipe": recipe_to_dict(config.recipe),
            "weights": dict(config.weights),
        }
        _write(path / "config.json", json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return Run(path, config)


def open_run(path: Path, *, writes: bool = True) -> Run:
    """Open an existing run; raise UserError where `path` holds none or its config is damaged."""
    file = path / "config.json"
    if not path.is_dir():
        if pickled := describe_pickle_file(path):
            raise UserError(f"{path} {pickled}; give the directory of a run")
        raise UserError(f"{path}: there is no such run directory")
    if not file.exists():
        raise UserError(f"{path} holds no run: it has no config.json")
    try:
        values = read_json(file)
        data = values["data"]
        config = RunConfig(
            recipe_from_dict(values["recipe"], str(file)),
            validate(str, data["name"]),
            validate(str, data["fingerprint"]),
            validate(tuple[str, ...], data["classes"]),
            validate(dict[str, str], values.get("weights", {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); this run cannot be used") from None
    return Run(path, config, writes=writes)


def _write(file: Path, text: str) -> None:
    """Replace a file whole or not at all; raise UserError where the disk does not take it."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
