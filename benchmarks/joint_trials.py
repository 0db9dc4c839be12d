"""Try settings of the joint phase on held-out images: one gated run for each change of a recipe.

    python benchmarks/joint_trials.py --data cifar10 --runs runs/trials \
        --changes gating.sparsity=0 'gating.anneal-from=0 gating.anneal-until=0.3'

A change is one or more flags of `gaternet train`, without their dashes. The backbone and the gater
are pre-trained once, on the images that are left when some are held out; the recipe as it is, its
control without gates and every change start from them. Runs that have ended are not trained again
and those that another process trains are passed over: the same command goes on, and several may
share the work. The one that finds all runs ended writes the table. Test images play no part.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from gaternet import arguments, recipes, saved_models
from gaternet.commands import split_images
from gaternet.errors import UserError
from gaternet.model import GatedModel
from gaternet.recipes.comparisons import control
from gaternet.reproduction.training import check_holds
from gaternet.training.compute import choose_device, plan
from gaternet.training.config import Recipe, Sources, parts
from gaternet.training.evaluation import judge
from gaternet.training.lock import InUseError, check_free
from gaternet.training.phases import Options, train_or_continue
from gaternet.training.progress import plain_console
from gaternet.training.run import Run, open_run
from gaternet.training.starting import pretraining
from report import mistakes_reported, publish

AS_IT_IS, CONTROL = "as-it-is", "control"


@dataclass(frozen=True)
class Arguments:
    """What to try, and for how long."""

    data: str
    """Folder or hub name of the images."""
    runs: Path
    """Directory for the runs of this recipe, one for each change."""
    changes: tuple[str, ...] = ()
    recipe: str = "cifar10/resnet20-gated-short"
    epochs: int = 6
    """Epochs of each phase."""
    validation: int = 5000
    device: str = "auto"
    out: Path | None = None
    """JSON file to write; none: results/trials_RECIPE.json."""


def main(given: Arguments) -> None:
    """Train what is missing and write the table of validation errors."""
    recipe = replace(recipes.get(given.recipe), epochs=given.epochs, validation=given.validation)
    changed = {change: _changed(recipe, change) for change in given.changes}
    tried = {AS_IT_IS: recipe, **changed, CONTROL: control(recipe)}
    begun = {part: pretraining(part, recipe) for part in parts(recipe)}
    for name, each in (begun | tried).items():
        check_holds(_place(given, name), each)
    options = Options(given.device, "python benchmarks/joint_trials.py", plain_console())
    for name, each in begun.items():
        _train(each, Sources(given.data), _place(given, name), options)
    if _left(given, begun, options):
        return
    for name, each in tried.items():
        start = {part: _place(given, part) for part in parts(each) if part in begun}
        sources = Sources(given.data, start.get("backbone"), start.get("gater"))
        _train(each, sources, _place(given, name), options)
    if _left(given, tried, options):
        return
    runs = {name: open_run(_place(given, name)) for name in tried}
    device = choose_device(given.device)
    right, plain = zip(*(_right(run, given.data, device) for run in runs.values()), strict=True)
    rows = [
        {**_row(name, run), **compared(mine, right[0]), **_all_open(others)}
        for (name, run), mine, others in zip(runs.items(), right, plain, strict=True)
    ]
    about = {name: getattr(given, name) for name in ("recipe", "epochs", "validation")}
    out = given.out or Path("results") / f"trials_{given.recipe.replace('/', '-')}.json"
    publish({"data": recipe.data.name, **about, "rows": rows}, device, out)


def compared(right: Tensor, others: Tensor) -> dict[str, Any]:
    """Return the error in percent, and what was gained and lost; both (N,) bool, same images."""
    return {
        "validation_error_percent": _error(right),
        "gained": int((right & ~others).sum()),
        "lost": int((others & ~right).sum()),
    }


def _all_open(right: Tensor | None) -> dict[str, float]:
    return {} if right is None else {"all_open_error_percent": _error(right)}


def _error(right: Tensor) -> float:
    return 100 * float((~right).double().mean())


def _changed(recipe: Recipe, change: str) -> Recipe:
    words = ["--out", "unused", *(f"--{flag}" for flag in change.split())]
    found = arguments.applied(recipe, arguments.parse(recipe, words))
    if found == recipe or found.validation != recipe.validation:
        raise UserError(f"--changes {change!r} changes nothing of the joint phase")
    return found


def _place(given: Arguments, name: str) -> Path:
    return given.runs / name.replace(" ", ",")


def _train(recipe: Recipe, sources: Sources, path: Path, options: Options) -> None:
    """Train a run unless another process does."""
    with suppress(InUseError):
        check_free(path)
        train_or_continue(recipe, sources, path, options)


def _left(given: Arguments, names: Iterable[str], options: Options) -> bool:
    """Say which runs other processes train still; return whether there are any."""
    left = [name for name in names if not _ended(_place(given, name))]
    if left:
        options.console.print(f"trained by others still: {', '.join(left)}", soft_wrap=True)
    return bool(left)


def _ended(path: Path) -> bool:
    return (path / "config.json").exists() and open_run(path).result is not None


def _right(run: Run, data: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return which held-out images a network classifies rightly, and which with every gate open.

    (N,) bool each; the latter is None of a network without gates.
    """
    model = saved_models.load(run.path).to(device)
    recipe, held = run.config.recipe, split_images(run, data, "validation")
    networks = [model, model.backbone] if isinstance(model, GatedModel) else [model]
    found = [judge(each, held, recipe.data, plan(recipe.compute, device))[1] for each in networks]
    right, *plain = (each for each in found if each is not None)
    return right, plain[0] if plain else None


def _row(name: str, run: Run) -> dict[str, Any]:
    last = run.metrics()[-1]
    probe, gated = last["probe"], run.config.recipe.gating is not None
    row: dict[str, Any] = {
        "changes": "" if name == AS_IT_IS else name,
        "gated": gated,
        "training_error_percent": last["error_percent"],
    }
    if gated:
        gates = probe[probe["form"]]["gates"]
        row |= {kind: gates[kind] for kind in ("total", "always_on", "always_off", "mean_open")}
        row["needed_share"] = gates["needed_macs"] / gates["backbone_macs"]
    if "soft" in probe:
        row["soft_error_percent"] = probe["soft"]["error_percent"]
    return row


if __name__ == "__main__":
    with mistakes_reported():
        main(tyro.cli(Arguments, description=__doc__))
