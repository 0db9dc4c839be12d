"""Training in rounds, each of which times everything that is compared once."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from rich.console import Console
from torch import Tensor, nn

from gaternet.data.batches import Images
from gaternet.data.cropping import scale
from gaternet.runtime.compiler import synchronise
from gaternet.training.compute import ComputePlan
from gaternet.training.config import Recipe
from gaternet.training.loop import Probe, probe_metrics
from gaternet.training.progress import LineReporter
from gaternet.training.run import Run
from gaternet.training.tracking import Board
from gaternet.training.trainer import Trainer

STEPS_A_ROUND = 3
"""Steps of each network that a round's step ratio is taken from."""

UNTIMED = 4
"""Steps before each timed piece, at least: caches are warm."""
MADE_AHEAD = 2
"""Batches that each worker of a DataLoader makes ahead: they are used up before what is timed."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W) uint8, labels and keys, (N,) int64."""


class Pieces(Trainer):
    """A trainer whose epochs are pieces of real ones, `length` steps long."""

    def __init__(self, model: nn.Module, recipe: Recipe, plan: ComputePlan, length: int) -> None:
        super().__init__(model, recipe, plan)
        self.length = length
        self.supply: Iterator[Batch] = iter(())
        self.waited = 0.0
        """Seconds until the batches of the last piece were there."""

    def endless(self, images: Images) -> Iterator[Batch]:
        """Yield the batches of one epoch after the other."""
        while True:
            yield from super().batches(images)

    def batches(
        self, images: Images, augmentation: object = None, first: int = 0
    ) -> Iterator[Batch]:
        self.waited = 0.0
        for _ in range(self.length):
            start = time.perf_counter()
            batch = next(self.supply)
            self.waited += time.perf_counter() - start
            yield batch

    def steps_per_epoch(self, images: Images) -> int:
        return self.length


def fitting(batch: Batch, trainer: Trainer) -> Batch:
    """Return the batch as a trainer's network takes it: a gater's images may be smaller."""
    pixels, labels, keys = batch
    size = trainer.recipe.data.image_size
    if pixels.shape[-1] != size:
        pixels = scale(pixels, size)
    return pixels, labels, keys


@contextmanager
def _searching() -> Iterator[None]:
    """Let cuDNN search for the fastest convs, as usual loops do; ours do not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class Contest:
    """Everything that is timed in turns."""

    gated: Pieces
    plain: dict[str, Trainer]
    images: Images
    batch: Batch
    probe: Probe
    run: Run
    board: Board
    usual: Iterator[int] | None

    def round(self, number: int) -> dict[str, float]:
        """Time everything once; return seconds, of steps, a checkpoint, an evaluation."""
        times = self._steps()
        pieces = [
            ("resident", self._resident, self._resident),
            ("epoch", self._supplied, self._epoch),
        ]
        if self.usual is not None:
            pieces.append(("usual", self._usual, self._usual))
        untimed = max(UNTIMED, MADE_AHEAD * self.gated.plan.workers)
        # Whoever was first is last in the next round: a drift favours nobody.
        for name, before, piece in pieces if number % 2 else reversed(pieces):
            before(untimed)
            times[name] = self._seconds(piece, self.gated.length) / self.gated.length
        times["data"] = self.gated.waited / self.gated.length
        times["logging"] = self._seconds(self._log, {"epoch": number, "loss": 0.0})
        times["checkpoint"] = self._seconds(self._checkpoint, number)
        times["probe"] = self._seconds(probe_metrics, self.gated, self.probe)
        return times

    def _steps(self) -> dict[str, float]:
        """Return what a step of each network takes, from several in turns."""
        trainers = self.plain | {"gated": self.gated}
        times = dict.fromkeys(trainers, 0.0)
        for trainer in trainers.values():
            trainer.model.train()
        for _ in range(STEPS_A_ROUND):
            for name, trainer in trainers.items():
                batch = fitting(self.batch, trainer)
                times[name] += self._seconds(trainer.step, *batch) / STEPS_A_ROUND
        return times

    def _seconds(self, action: Callable[..., object], *given: object) -> float:
        device = self.gated.plan.device
        synchronise(device)
        start = time.perf_counter()
        action(*given)
        synchronise(device)
        return time.perf_counter() - start

    def _resident(self, steps: int) -> None:
        self.gated.model.train()
        for _ in range(steps):
            self.gated.step(*self.batch)

    def _supplied(self, steps: int) -> None:
        self.gated.model.train()
        for batch in islice(self.gated.supply, steps):
            self.gated.step(*batch)

    def _epoch(self, steps: int) -> None:
        """Train a piece of an epoch and write what an epoch writes, but for its checkpoint."""
        self.gated.epoch = 0
        reporter = LineReporter(Console(file=io.StringIO()), steps, 1)
        self._log({"epoch": 1} | self.gated.train_epoch(self.images, reporter))

    def _log(self, metrics: dict[str, float]) -> None:
        self.run.log(metrics)
        self.board.add_epoch(metrics)

    def _checkpoint(self, number: int) -> None:
        self.run.save_checkpoint(number, *self.gated.state())

    def _usual(self, steps: int) -> None:
        assert self.usual is not None
        with _searching():
            sum(islice(self.usual, steps))
