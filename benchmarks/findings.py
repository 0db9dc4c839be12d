"""What the gates of a run do, kept for docs/results.md: the paper's findings are judged by it.

    python benchmarks/findings.py RUN [--data DIR] [--out results/findings_NAME.json]

Runs `gaternet analyze` without t-SNE into a temporary directory and keeps its numbers that the page
needs: kinds, entropy and number of open gates layer by layer, how many images open how many gates,
how alike the classes are, what the gates tell of the class, and accuracy under other gates.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from gaternet.analysis import read_record
from gaternet.analysis.behaviour import describe
from gaternet.analysis.command import AnalysisRequest, analyze_run
from gaternet.analysis.saved import GATES
from gaternet.errors import UserError
from gaternet.training.compute import choose_device
from gaternet.training.run import open_run
from report import mistakes_reported, publish


@dataclass(frozen=True)
class Arguments:
    """Which run, on what."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    data: str | None = None
    """Folder or hub name of the images; none: as the run was trained."""
    split: str = "test"
    device: str = "auto"
    out: Path | None = None
    """JSON file to write; none: results/findings_NAME.json, by the name of the run's directory."""


def main(arguments: Arguments) -> None:
    """Analyze a run and write what is kept of it."""
    run = open_run(arguments.run)
    if run.result is None:
        raise UserError(f"{run.path} has not finished training: go on with its --resume first")
    with tempfile.TemporaryDirectory() as folder:
        request = AnalysisRequest(
            arguments.data, arguments.split, Path(folder), tsne=False, device=arguments.device
        )
        found = analyze_run(arguments.run, request)
        assert found is not None  # one process alone
        record = read_record(Path(folder) / arguments.split / GATES)
    out = arguments.out or Path("results") / f"findings_{arguments.run.name}.json"
    figures = asdict(describe(found, record, run.result))
    publish(figures, choose_device(arguments.device), out)


if __name__ == "__main__":
    with mistakes_reported():
        main(tyro.cli(Arguments, description=__doc__))
