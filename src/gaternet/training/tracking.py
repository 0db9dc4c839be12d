"""Metrics for TensorBoard, beside the metrics.jsonl that is always written."""

import io
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from gaternet.disk import refused
from gaternet.training.run import Run

_FILES = "events.out.tfevents."


class Board:
    """Writes every number of an epoch's metrics into the run's TensorBoard directory.

    It is made anew from metrics.jsonl, so that a run that goes on has every epoch once. Nothing is
    left to a thread, as TensorBoard's own writer does: a full disk is reported here, in one line.

    Raises UserError where the disk does not take it.
    """

    def __init__(self, run: Run) -> None:
        folder = run.path / "tensorboard"
        self._file = folder / f"{_FILES}{time.time():.0f}.{socket.gethostname()}"
        try:
            folder.mkdir(exist_ok=True)
            for old in folder.glob(f"{_FILES}*"):
                old.unlink()
        except OSError as error:
            raise refused(folder, error, 0) from error
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        for metrics in run.metrics():
            self.add_epoch(metrics)

    def add_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Write one epoch's metrics; nested ones as `outer/inner`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _numbers(metrics)]
        summary = Summary(value=values)
        self._append(Event(wall_time=time.time(), step=metrics["epoch"], summary=summary))

    def _append(self, event: Event) -> None:
        records = io.BytesIO()
        RecordWriter(records).write(event.SerializeToString())
        try:
            with self._file.open("ab") as stream:
                stream.write(records.getvalue())
        except OSError as error:
            raise refused(self._file, error, len(records.getvalue())) from error


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            yield prefix + name, value
