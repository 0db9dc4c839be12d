"""What `gaternet analyze` costs on a run, and the statistics of as many gates as the paper has.

    python benchmarks/analysis.py RUN [--data DIR] [--out results/analysis_cost.json]

`gaternet analyze RUN` is a process of its own: its seconds from start to end, its peak resident
memory, the bytes of the page and of the record of gates that it wrote. Then a record of generated
gates, 50,000 images × 47,872 gates of 1,000 classes: its bytes, the seconds of each statistic, and
the peak resident memory of this process, libraries included. Prints JSON; Linux and macOS only.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from gaternet.analysis import (
    class_agreement,
    count_kinds,
    distinct_vectors,
    layer_table,
    mutual_information,
    special_gates,
    summarise_open_gates,
)
from gaternet.analysis.record import GateRecord
from gaternet.analysis.split_record import Extremes, SplitRecord
from gaternet.training.compute import choose_device
from report import mistakes_reported, publish

KILOBYTES = 1024 if sys.platform == "linux" else 1
"""Bytes in the unit that the system gives peak memory in."""
LAYERS = 96

STATISTICS: dict[str, Callable[[SplitRecord], object]] = {
    "count_kinds": lambda record: count_kinds(record.gates),
    "summarise_open_gates": lambda record: summarise_open_gates(record.gates),
    "distinct_vectors": lambda record: distinct_vectors(record.gates.bits),
    "layer_table": lambda record: layer_table(record.gates),
    "mutual_information": mutual_information,
    "class_agreement": class_agreement,
    "special_gates": special_gates,
}


@dataclass(frozen=True)
class Settings:
    """What is analyzed, and how many gates are generated."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: str | None = None
    device: str = "auto"
    images: int = 50_000
    gates: int = 47_872
    classes: int = 1000
    out: Path | None = None


def analysis_cost(settings: Settings) -> dict[str, Any]:
    """Run `gaternet analyze` as a child; return what it took and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["analyze", str(settings.run), "--out", folder, "--device", settings.device]
        words += ["--data", settings.data] if settings.data else []
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "gaternet", *words],
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            sys.exit(f"gaternet {' '.join(words)} failed")
        written = Path(folder) / "test"
        found = json.loads((written / "numbers.json").read_text())
        return {
            "recipe": found["recipe"],
            "images": found["images"],
            "gates": found["kinds"]["total"],
            "seconds": seconds,
            "peak_bytes": used.ru_maxrss * KILOBYTES,
            "page_bytes": (written / "report.html").stat().st_size,
            "record_bytes": sum(file.stat().st_size for file in (written / "gates").iterdir()),
        }


def generated_record(settings: Settings) -> SplitRecord:
    """Return a record in which every gate is open for about half of the images, at random."""
    generator = np.random.default_rng(0)
    width = -(-settings.gates // 8)
    bits = generator.integers(0, 256, (settings.images, width), dtype=np.uint8)
    bits[:, -1] &= 255 << (8 * width - settings.gates) & 255
    edges = np.linspace(0, settings.gates, LAYERS + 1).astype(int).tolist()
    slices = {f"layer{n}": slice(*edges[n : n + 2]) for n in range(LAYERS)}
    labels = np.arange(settings.images) % settings.classes
    nothing = np.empty((0, settings.gates), dtype=np.int64)
    logits = nothing.astype(np.float32)
    return SplitRecord(
        GateRecord(bits, slices),
        np.arange(settings.images),
        labels,
        labels,
        tuple(f"class {number}" for number in range(settings.classes)),
        Extremes(nothing, logits, nothing, logits),
    )


def statistics_cost(settings: Settings) -> dict[str, Any]:
    """Return what a generated record and its statistics take."""
    record = generated_record(settings)
    seconds = {}
    for name, compute in STATISTICS.items():
        began = time.perf_counter()
        compute(record)
        seconds[name] = time.perf_counter() - began
    return {
        "images": settings.images,
        "gates": settings.gates,
        "classes": settings.classes,
        "record_bytes": record.gates.bits.nbytes,
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTES,
    }


def main(settings: Settings) -> None:
    """Measure both, and say on what."""
    figures = {
        "threads": torch.get_num_threads(),
        "analysis": analysis_cost(settings),
        "generated": statistics_cost(settings),
    }
    publish(figures, choose_device(settings.device), settings.out)


if __name__ == "__main__":
    with mistakes_reported():
        main(tyro.cli(Settings))
