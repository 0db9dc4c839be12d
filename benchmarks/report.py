"""How a benchmark states what it measured."""

import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gaternet.training.compute import hardware


def publish(figures: Mapping[str, Any], device: torch.device, out: Path | None) -> None:
    """Print the figures as JSON with command, hardware and date; write them to `out` as well."""
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware(device),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        **figures,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
