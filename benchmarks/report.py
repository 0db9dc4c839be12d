"""How a benchmark states what it measured."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import is_torchelastic_launched

from gaternet.disk import make_directory, write_file
from gaternet.errors import UserError
from gaternet.output import printable
from gaternet.training.compute import hardware


def publish(figures: Mapping[str, Any], device: torch.device, out: Path | None) -> None:
    """Print the figures as JSON with command, hardware and date; write them to `out` as well.

    Raises UserError where that cannot be written; it is printed by then.
    """
    report = {
        "command": shlex.join([*launcher(), *sys.argv]),
        "hardware": hardware(device),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        **figures,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if out:
        make_directory(out.parent)
        write_file(out, text + "\n")


@contextmanager
def mistakes_reported() -> Iterator[None]:
    """End the program with one line, in place of a traceback, where what was given is wrong."""
    try:
        yield
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)


def launcher() -> list[str]:
    """Return the words before the script's name: Python's, or torchrun's on one machine."""
    if not is_torchelastic_launched():
        return ["python"]
    return ["torchrun", "--standalone", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
