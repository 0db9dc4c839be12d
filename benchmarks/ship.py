"""Put a run's network into the package, as a directory that evaluating needs and no more.

    python benchmarks/ship.py runs/cifar10-resnet20-gated-short-30ep-seed1 \\
        results/cifar10-resnet20-gated-short-30ep-seed1.json --name resnet20-gated-cifar10

What lay under that name is replaced. `gaternet models` lists what there is.
"""

import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from tyro.conf import Positional

from gaternet import checkpoint, model_config, saved_models, trained
from gaternet.commands import check_classes
from gaternet.data.augmentation import normalise
from gaternet.data.settings import DataConfig
from gaternet.disk import remove_directory
from gaternet.errors import UsageError, UserError
from gaternet.given_files import read_json, validate
from gaternet.model import GatedModel
from gaternet.training.run import Run, create_run, open_run
from report import mistakes_reported

MAX_BYTES = 3_000_000
"""Of all files of a network together: the package shall stay small."""

SAME = ("recipe", "data", "epochs", "seed", "date", "wall_seconds", "test_error_percent")
"""What a run and its results file must agree in."""
TOLD = (*SAME, "settings", "hardware", "parameters", "command")
"""What a card must say."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ABSOLUTE_PATH = re.compile(r"(^|[\s='\":,(])(/(?!/)|~|[A-Za-z]:\\)")


def main(
    run: Positional[Path], result: Positional[Path], name: str, into: Path = trained.FOLDER
) -> None:
    """Put a finished run's newest network beside those that come with the package.

    Args:
        run: Run directory.
        result: What it measured: its result.json, as results/ has it.
        name: What it is called from now on, such as resnet20-gated-cifar10.
        into: Directory of such networks.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name}: small letters and digits, with - between")
    opened = open_run(run)
    card = read_card(opened, result)
    model = saved_models.load(opened.path, strict=True)
    check_classes(model, opened)
    card["known_logits"] = known_logits(model, opened.config.recipe.data)
    with tempfile.TemporaryDirectory(prefix=".", dir=into) as folder:
        made = Path(folder) / name
        _write(opened, model, card, made)
        size = trained.size(made)
        if size > MAX_BYTES:
            raise UserError(f"{run} takes {size:,} bytes: at most {MAX_BYTES:,} go in")
        if (into / name).exists():
            remove_directory(into / name)
        made.rename(into / name)
    print(f"{into / name}: {size:,} bytes, test error {card['test_error_percent']:.2f} %")


def read_card(run: Run, file: Path) -> dict[str, Any]:
    """Return the content of a results file.

    Raises UserError where the run has not ended, and where the file is another run's, says too
    little or has an absolute path.
    """
    measured = run.result
    if measured is None:
        raise UserError(f"{run.path} has not finished training: go on with its --resume first")
    card = validate(dict[str, Any], read_json(file))
    for name in TOLD:
        if card.get(name) is None:
            raise UserError(f"{file} says nothing of {name!r}: give the run's result.json")
    for name in SAME:
        if card[name] != measured.get(name):
            raise UserError(
                f"{file} is of another run than {run.path}: {name} is {card[name]!r} there, "
                f"{measured.get(name)!r} in the run's own result.json"
            )
    if _ABSOLUTE_PATH.search(str(card["command"])):
        raise UserError(
            f"{file}: the command names a directory of this machine, which says nothing to anybody "
            f"else: shorten its paths ({card['command']})"
        )
    return card


def known_image(data: DataConfig) -> Tensor:
    """Return pixels (1, C, H, W) uint8 that are the same everywhere: a ramp that wraps."""
    count = data.channels * data.image_size**2
    return (torch.arange(count) * 37 % 256).to(torch.uint8).reshape(1, *data.input_size)


@torch.inference_mode()
def known_logits(model: nn.Module, data: DataConfig) -> list[float]:
    """Return the logits (classes,) of the known image, in float32."""
    output = model(normalise(known_image(data), data.mean, data.std))
    logits = output.logits if isinstance(model, GatedModel) else output
    return [float(logit) for logit in logits[0]]


def _write(run: Run, model: nn.Module, card: dict[str, Any], out: Path) -> None:
    epoch, _ = run.position
    # Where its first weights came from is a path on somebody's disk.
    made = create_run(out, replace(run.config, weights={}))
    made.save_checkpoint(
        epoch,
        {checkpoint.MODEL: model.state_dict()},
        {checkpoint.MODEL: asdict(model_config.describe(model))},
    )
    made.finish(card)


if __name__ == "__main__":
    with mistakes_reported():
        tyro.cli(main)
