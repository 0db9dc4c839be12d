"""One process of a run in which something goes wrong: `faulty_rank.py FAULT RECORD train …`.

FAULT: none; kill, stop (SIGSTOP), overflow: in process 1 at step 5 of epoch 2, in the first attempt
    alone; stop-behind: when that step is done; kill-first: in process 0; end: SIGTERM to itself
RECORD: a file for what every step was made of, with the rank and ".jsonl" behind its name
"""

import json
import os
import signal
import sys
import time
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaternet import cli
from gaternet.training import interruption, lock, processes
from gaternet.training.trainer import Trainer

AT = (1, 4)
LAYER = "stage2.block1.conv1"
RANK = int(os.environ.get("RANK", "0"))
SIGNALS = {
    "kill": signal.SIGKILL,
    "kill-first": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "end": signal.SIGTERM,
}
OF_FIRST = ("end", "kill-first")


class Overflow:
    """Makes a layer's output infinite wherever one sample, of one epoch, is in the batch."""

    def __init__(self, key: int) -> None:
        self.key, self.meets = key, False

    def look(self, module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Tensor]) -> None:
        self.meets = "keys" in kwargs and self.key in kwargs["keys"].tolist()

    def spoil(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output * float("inf") if self.meets else output


def write_step(trainer: Trainer, record: Path, batch: tuple[Tensor, ...]) -> None:
    """Write which samples are in a batch of this process and what was drawn for them."""
    pixels, labels, keys = batch
    line = {
        "epoch": trainer.epoch,
        "step": trainer.steps,
        "keys": keys.tolist(),
        "labels": labels.tolist(),
        "images": [zlib.crc32(image.contiguous().numpy().tobytes()) for image in pixels],
        "lr": trainer.optimizer.param_groups[0]["lr"],
    }
    with record.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def arrange(fault: str, record: Path) -> None:
    """Have the fault come, and every step recorded."""
    real = Trainer.step
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    mine = fault != "none" and first and (0 if fault in OF_FIRST else 1) == RANK

    def step(self: Trainer, *batch: Tensor) -> Any:
        if mine and (self.epoch, self.steps) == AT:
            if fault in SIGNALS:
                os.kill(os.getpid(), SIGNALS[fault])
            elif fault == "overflow":
                spoiler = Overflow(int(batch[2][-1]))
                self.model.register_forward_pre_hook(spoiler.look, with_kwargs=True)
                layer = self.model.get_submodule(f"backbone.{LAYER}")
                layer.register_forward_hook(spoiler.spoil)
        write_step(self, record, batch)
        done = real(self, *batch)
        if mine and fault == "stop-behind" and (self.epoch, self.steps) == AT:
            os.kill(os.getpid(), signal.SIGSTOP)
        return done

    Trainer.step = step  # type: ignore[method-assign, assignment]


def look_slowly_at_locks() -> None:
    """Hold every lock that is looked at for so long that another process meets that moment."""
    real = lock._read

    def read(descriptor: int) -> lock.Holder | None:
        time.sleep(1)
        return real(descriptor)

    lock._read = read


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.TIMEOUT = timedelta(seconds=20)
    fault, record, *words = sys.argv[1:]
    interruption.LOOK_SECONDS = 0.0  # processes agree behind every step
    look_slowly_at_locks()
    arrange(fault, Path(f"{record}-{RANK}.jsonl"))
    sys.exit(cli.main(words))
