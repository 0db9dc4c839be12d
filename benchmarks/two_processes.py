"""How fast two processes train together against one process that has both their cores.

    torchrun --standalone --nproc-per-node 2 benchmarks/two_processes.py \
        [--recipe NAME] [--data DIR] [--rounds 12] [--out results/two_processes.json]

Both processes train with one thread each, joined over Gloo; in turns with them the first one trains
alone with two threads, while the other waits. Every piece is as many steps of the same global batch
on the recipe's images. A third piece leaves the exchange of gradients out, which says how much of
it the backward hides; in a fourth each process trains a network of its own, on whole batches, as
`gaternet train … --seeds 0 1` does. Prints JSON: ratios with 95 % intervals, and the bytes that a
step exchanges.
"""

import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.nn.parallel import DistributedDataParallel

from gaternet import recipes
from gaternet.bench.training_pace import ratio_of
from gaternet.data.sources import load
from gaternet.training.compute import plan
from gaternet.training.phases import build_model
from gaternet.training.processes import ALONE, Processes, joined
from gaternet.training.trainer import Trainer
from report import mistakes_reported, publish

_TORCHRUN = "torchrun --standalone --nproc-per-node 2"


@dataclass(frozen=True)
class Settings:
    """What is timed, and how often."""

    recipe: str = "cifar10/resnet20-gated-short"
    data: str | None = None
    rounds: int = 12
    steps: int = 12
    out: Path | None = None


class Piece:
    """Some steps of training by these processes, with so many threads each."""

    def __init__(self, settings: Settings, processes: Processes, threads: int) -> None:
        recipe = recipes.get(settings.recipe)
        self.threads, self.steps = threads, settings.steps
        self.trainer = Trainer(
            build_model(recipe), recipe, plan(recipe.compute, torch.device("cpu"), processes)
        )
        self.trainer.model.train()
        source = settings.data or str(recipe.data.hub)
        self.images = load(source, recipe.data, "train", recipe.data.image_size)

    def seconds(self, *, exchange: bool = True) -> float:
        """Time the steps, of new batches each; without `exchange` gradients stay where they are."""
        torch.set_num_threads(self.threads)
        network = self.trainer.network
        self.trainer.step(*next(self.trainer.batches(self.images)))
        start = time.perf_counter()
        for batch in islice(self.trainer.batches(self.images), self.steps):
            if exchange or not isinstance(network, DistributedDataParallel):
                self.trainer.step(*batch)
            else:
                with network.no_sync():
                    self.trainer.step(*batch)
        return time.perf_counter() - start


def exchanged(trainer: Trainer) -> dict[str, int]:
    """Return the bytes that a process gives to the others, a step and an epoch."""
    model = trainer.model
    gradients = [p for p in model.parameters() if p.requires_grad]
    return {
        "gradients_a_step": sum(p.numel() * p.element_size() for p in gradients),
        "batch_norm_statistics_a_step": sum(b.numel() * b.element_size() for b in model.buffers()),
        # Sums of loss, errors and open gates, and their count: float64. Gates themselves stay.
        "gate_statistics_an_epoch": 4 * 8,
    }


def main(settings: Settings) -> None:
    """Time the pieces in turns and print the ratios."""
    device = torch.device("cpu")
    with joined(device) as processes:
        if processes.count < 2:
            raise SystemExit(f"this process is alone: {_TORCHRUN} {sys.argv[0]}")
        together = Piece(settings, processes, 1)
        alone = Piece(settings, ALONE, processes.count) if processes.first else None
        apart = Piece(settings, ALONE, 1)
        times: dict[str, list[float]] = {"together": [], "silent": [], "apart": [], "alone": []}
        for _ in range(1 + settings.rounds):
            processes.wait()
            times["together"].append(together.seconds())
            times["silent"].append(together.seconds(exchange=False))
            processes.wait()
            times["apart"].append(apart.seconds() / processes.count)
            processes.wait()
            if alone:
                times["alone"].append(alone.seconds())
        processes.wait()
        if not processes.first:
            return
        warm = {name: np.array(found[1:]) for name, found in times.items()}
        batch = together.trainer.recipe.schedule.batch_size
        torch.set_num_threads(processes.count)
        figures = {
            "recipe": settings.recipe,
            "rounds": settings.rounds,
            "images_per_second": {
                name: round(batch * settings.steps / float(np.median(found)), 1)
                for name, found in warm.items()
            },
            "throughput_ratio": asdict(ratio_of(warm["alone"], warm["together"])),
            "runs_at_once_ratio": asdict(ratio_of(warm["alone"], warm["apart"])),
            "exchange_share": asdict(ratio_of(warm["together"] - warm["silent"], warm["together"])),
            "bytes": exchanged(together.trainer),
        }
        publish(figures, device, settings.out)


if __name__ == "__main__":
    with mistakes_reported():
        main(tyro.cli(Settings))
