"""Compress a run by the gates of its training images, and keep the report as a result.

    python benchmarks/compression.py RUN --data DIR --out results/compression_resnet164.json

The smaller run itself is not kept.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import tyro
from tyro.conf import Positional

from gaternet.compression.command import CompressionRequest, compress_run
from gaternet.errors import UserError
from gaternet.training.compute import choose_device
from gaternet.training.run import open_run
from report import mistakes_reported, publish

TOLD = ("recipe", "epochs", "pretrain_epochs", "seed", "test_error_percent")


def main(
    run: Positional[Path],
    data: str,
    images: int | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Compress a run into a temporary directory.

    Args:
        run: Run directory.
        data: Folder or hub name of the images.
        images: How many of the training images, and of the test images, at most; none: all.
        out: JSON file to write as well.
        device: auto, cpu, cuda or cuda:N.
    """
    trained = open_run(run)
    if trained.result is None:
        raise UserError(f"{run} has not finished training: go on with its --resume first")
    gating = trained.config.recipe.gating
    about = {name: trained.result[name] for name in TOLD}
    about |= {"sparsity": gating.sparsity if gating else None}
    about |= {"batch_size": trained.config.recipe.schedule.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        request = CompressionRequest(Path(folder) / "small", data, images=images, device=device)
        report = compress_run(run, request)
    publish({"run": about, **asdict(report)}, choose_device(device), out)


if __name__ == "__main__":
    with mistakes_reported():
        tyro.cli(main)
