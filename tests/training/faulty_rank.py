"""One process of a run in which something goes wrong: `faulty_rank.py FAULT RECORD train …`.

FAULT: none; kill, stop (SIGSTOP), overflow: in process 1 at step 5 of epoch 2, in the first attempt
    alone; end: SIGTERM to itself at that step
RECORD: a file for what every step was made of, with the rank and ".jsonl" behind its name
"""

import json
import os
import signal
import sys
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaternet import cli
from gaternet.training import processes
from gaternet.training.trainer import Trainer

AT = (1, 4)
LAYER = "stage2.block1.conv1"
RANK = int(os.environ.get("RANK", "0"))
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "end": signal.SIGTERM}


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
    mine = fault != "none" and first and (0 if fault == "end" else 1) == RANK

    def step(self: Trainer, *batch: Tensor) -> Any:
        if mine and (self.epoch, self.steps) == AT:
            if fault in SIGNALS:
                os.kill(os.getpid(), SIGNALS[fault])
            else:
                spoiler = Overflow(int(batch[2][-1]))
                self.model.register_forward_pre_hook(spoiler.look, with_kwargs=True)
                layer = self.model.get_submodule(f"backbone.{LAYER}")
                layer.register_forward_hook(spoiler.spoil)
        write_step(self, record, batch)
        return real(self, *batch)

    Trainer.step = step  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.TIMEOUT = timedelta(seconds=20)
    fault, record, *words = sys.argv[1:]
    arrange(fault, Path(f"{record}-{RANK}.jsonl"))
    sys.exit(cli.main(words))
