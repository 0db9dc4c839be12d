"""A run directory: resolved config, metrics, checkpoints, TensorBoard, result.

RUN/config.json        what decides what the run computes
RUN/metrics.jsonl      one line an epoch
RUN/tensorboard/       the same, for TensorBoard
RUN/checkpoints/       epoch-0007/ …: model, training state, SHA-256 manifest; within the epoch
                       behind it epoch-0007-step-000120/
RUN/result.json        test error and costs, when the run has ended
RUN/.lock              which process writes to it, while one does
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaternet import checkpoint
from gaternet.disk import append_line, clear_leftovers, leftovers, remove_directory, write_file
from gaternet.errors import UserError
from gaternet.given_files import describe_pickle_file, reaching, read_json, validate
from gaternet.trained import located, suggestion
from gaternet.training.compute import Precision
from gaternet.training.config import Recipe, recipe_from_dict, recipe_to_dict
from gaternet.training.lock import LOCK

KEPT_CHECKPOINTS = 2
"""Of finished epochs; within an epoch there is one more."""


def versions() -> dict[str, str]:
    """Return the versions of what computes a run."""
    return {"gaternet": version("gaternet"), "torch": torch.__version__}


@dataclass(frozen=True)
class RunConfig:
    """What a run directory says about itself."""

    recipe: Recipe
    data_name: str
    data_fingerprint: str
    classes: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    """Where the initial weights of a gated network's parts come from."""
    versions: Mapping[str, str] = field(default_factory=versions)
    changes: tuple[Mapping[str, Any], ...] = ()
    """What was changed when the run was gone on with, because the user allowed it."""
    precision: Precision | None = None
    """What `auto` came to when the run was begun; None: it is not known."""


class Run:
    """A run directory that exists. Of several processes the first one alone writes to it."""

    def __init__(self, path: Path, config: RunConfig, *, writes: bool = True) -> None:
        self.path = path
        self.config = config
        self.writes = writes
        self._changed = False

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
        append_line(self.path / "metrics.jsonl", json.dumps(metrics))

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
        self,
        epoch: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        values: Mapping[str, Any],
        *,
        step: int = 0,
    ) -> None:
        """Write a checkpoint and drop those that are no longer needed.

        epoch, step: how many epochs are finished, and steps of the next one
        """
        path = self.checkpoints / checkpoint.name_of(epoch, step)
        if not self.writes or path.exists():  # a run that was stopped again before its first step
            return
        checkpoint.write(path, tensors, values)
        self._prune(path)

    def _prune(self, newest: Path) -> None:
        """Remove the checkpoints that nobody needs any more.

        newest: not always the one of most steps: with larger batches there are fewer
        """
        found = checkpoint.finished(self.checkpoints)
        within = [path for path in found if checkpoint.position(path)[1]]
        whole = [path for path in found if path not in within]
        for path in (*whole[:-KEPT_CHECKPOINTS], *within):
            if path != newest:
                remove_directory(path)

    def settle(self, *, strict: bool = False) -> None:
        """Remove what a killed process left half-written or had not removed yet, and the newest
        checkpoints if damaged.

        Raises UserError where none is left; if `strict`, already where the newest is damaged.
        """
        if not self.writes:
            return
        for folder in (self.path, self.checkpoints):
            clear_leftovers(folder)
        found = checkpoint.finished(self.checkpoints)
        if found:
            sound = checkpoint.newest(self.checkpoints, strict=strict)
            for damaged in found[found.index(sound) + 1 :]:
                remove_directory(damaged)
            self._prune(sound)

    @property
    def position(self) -> tuple[int, int]:
        """(finished epochs, steps of the next one) of the newest checkpoint."""
        found = checkpoint.finished(self.checkpoints)
        return checkpoint.position(found[-1]) if found else (0, 0)

    def change_config(self, config: RunConfig, changes: list[dict[str, Any]]) -> None:
        """Take another configuration, and note what was changed in it; `keep_config` writes it."""
        self.config = replace(config, changes=(*self.config.changes, *changes))
        self._changed = True

    def keep_config(self) -> None:
        """Write the configuration down where it was changed: the run goes on with it."""
        if self.writes and self._changed:
            _write_config(self.path, self.config)
            self._changed = False

    def rewind(self, epoch: int) -> None:
        """Forget the metrics of epochs that were begun or finished after checkpoint `epoch`."""
        if not self.writes:
            return
        lines = [json.dumps(line) for line in self.metrics() if line["epoch"] <= epoch]
        write_file(self.path / "metrics.jsonl", "".join(line + "\n" for line in lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        if not self.writes:
            return
        write_file(self.path / "result.json", json.dumps(result, indent=2) + "\n")

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


def check_new(path: Path) -> None:
    """Raise UserError where a new run's directory holds something already."""
    if path.exists() and (not path.is_dir() or _holds_something(path)):
        if (path / "config.json").exists():
            raise UserError(
                f"{path} holds a run already; choose another --out, or go on with its training by "
                "gaternet train … --resume"
            )
        kind = "is not empty" if path.is_dir() else "is a file"
        raise UserError(f"{path} {kind}; choose another --out")


def create_run(path: Path, config: RunConfig) -> Run:
    """Make a new run directory; raise UserError where there is something already."""
    check_new(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # First: a process killed here leaves an empty directory or a run.
        _write_config(path, config)
        (path / "checkpoints").mkdir()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return Run(path, config)


def _holds_something(path: Path) -> bool:
    return any(child.name != LOCK for child in set(path.iterdir()) - set(leftovers(path)))


def _write_config(path: Path, config: RunConfig) -> None:
    values = {
        **config.versions,
        "data": {
            "name": config.data_name,
            "fingerprint": config.data_fingerprint,
            "classes": config.classes,
        },
        "recipe": recipe_to_dict(config.recipe),
        "weights": dict(config.weights),
        "changes": list(config.changes),
        **({"precision": config.precision} if config.precision else {}),
    }
    write_file(path / "config.json", json.dumps(values, indent=2) + "\n")


def open_run(path: Path, *, writes: bool = True) -> Run:
    """Open an existing run, or by its name a network of the package (`gaternet.trained`).

    Raises UserError where `path` holds none or its config is damaged.
    """
    path = located(path)
    file = path / "config.json"
    with reaching(path):
        is_folder, is_run = path.is_dir(), file.exists()
    if not is_folder:
        if pickled := describe_pickle_file(path):
            raise UserError(f"{path} {pickled}; give the directory of a run")
        raise UserError(f"{path}: there is no such run directory{suggestion(path)}")
    if not is_run:
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
            # A run of an earlier version does not say which torch computed it.
            {name: validate(str, values[name]) for name in versions() if name in values},
            validate(tuple[Mapping[str, Any], ...], values.get("changes", ())),
            validate(Precision | None, values.get("precision")),  # type: ignore[arg-type]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); this run cannot be used") from None
    return Run(path, config, writes=writes)
