"""ResNet-50 under random gates: what skipping saves, beside dense and slim networks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from gaternet.training.compute import choose_device
from report import mistakes_reported, publish

SETTINGS: tuple[tuple[str, float, tuple[int, ...]], ...] = (
    ("inner", 0.5, (1, 16)),
    ("inner", 0.25, (1, 16)),
    ("both", 0.5, (1,)),
    ("inner", 1.0, (1,)),
)
"""Gated layers, share of the gates that is open, batches."""

BLOCK = 16


def main(
    network: str = "timm/resnet50",
    seconds: float = 20.0,
    device: str = "auto",
    out: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Time a network under random gates.

    Args:
        network: By name.
        seconds: For each batch of each setting, at least.
        device: auto, cpu, cuda or cuda:N.
        out: JSON file to write as well.
        figure: Picture of the first setting to write.
    """
    measured: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for number, (layers, share, batches) in enumerate(SETTINGS):
        # Each in a process of its own: sessions and memory of one would be in another's way.
        command = [sys.executable, "-m", "gaternet", "bench", "latency", "--json"]
        command += ["--model", network, "--points", layers, "--block", str(BLOCK)]
        command += ["--open-share", str(share), "--batches", *map(str, batches)]
        command += ["--seconds", str(seconds), "--device", device]
        if figure is not None and number == 0:
            command += ["--figure", str(figure)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        named = {"points": layers, "share": share}
        found = json.loads(done.stdout)
        measured += [named | row for row in found["rows"]]
        missing |= found["missing"]
    figures = {"network": network, "block": BLOCK, "rows": measured, "missing": missing}
    publish(figures, choose_device(device), out)


if __name__ == "__main__":
    with mistakes_reported():
        tyro.cli(main)
