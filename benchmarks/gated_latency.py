"""ResNet-50 with random gates: what skipping closed filters saves, beside dense and slim networks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from gaternet.analysis.latency_figure import latency_figure
from gaternet.run_latency import LatencyRequest, RandomGatesRequest, time_network
from report import publish

Layers = Literal["outer", "inner", "both"]
SETTINGS: tuple[tuple[Layers, float, tuple[int, ...]], ...] = (
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
    for layers, share, batches in SETTINGS:
        wanted = RandomGatesRequest(network, share, layers, BLOCK, None)
        found = time_network(wanted, LatencyRequest(batches, seconds, None, device))
        named = {"points": layers, "share": share}
        measured += [named | asdict(row) for row in found.rows]
        if figure is not None and not figure.exists():
            latency_figure(found, figure)
    publish({"network": network, "block": BLOCK, "rows": measured}, torch.device("cpu"), out)


if __name__ == "__main__":
    tyro.cli(main)
