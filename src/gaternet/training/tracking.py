"""Metrics for TensorBoard, beside the metrics.jsonl that is always written."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from gaternet.training.run import Run


class Board(AbstractContextManager["Board"]):
    """Writes every number of an epoch's metrics into the run's TensorBoard directory."""

    def __init__(self, run: Run) -> None:
        self._writer = SummaryWriter(str(run.path / "tensorboard"))

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def add_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Write one epoch's metrics; nested ones as `outer/inner`."""
        for name, value in _numbers(metrics):
            self._writer.add_scalar(name, value, metrics["epoch"])
        self._writer.flush()


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            yield prefix + name, value
