"""Trains with the command line's own words, and says when steps are done; tests send it signals.

python stoppable.py PAUSE WORDS …       PAUSE: seconds that every step and evaluation takes longer
"""

import sys
import time
from typing import Any

import torch

from gaternet import cli
from gaternet.training import loop
from gaternet.training.trainer import Trainer

_step, _evaluate = Trainer.step, loop.evaluate


def main(pause: float, words: list[str]) -> int:
    def step(self: Trainer, *batch: Any) -> Any:
        print("step", flush=True)
        time.sleep(pause)
        return _step(self, *batch)

    def evaluate(*arguments: Any) -> Any:
        print("evaluation", flush=True)
        time.sleep(pause)
        return _evaluate(*arguments)

    torch.set_num_threads(1)
    Trainer.step = step  # type: ignore[method-assign,assignment]
    loop.evaluate = evaluate  # type: ignore[assignment]
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
