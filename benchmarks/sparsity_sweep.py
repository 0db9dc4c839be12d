"""Choose λ, the weight of the L1 term, on validation images: one short gated run for each value.

    python benchmarks/sparsity_sweep.py --data cifar10 --runs runs/sweep \
        [--recipe cifar10/resnet56-gated-short] [--epochs 6] [--values 0 0.1 0.3 1]

The backbone and the gater are pre-trained once, on the 45,000 images that are left when 5,000 are
held out, and every gated run starts from them. Runs that are there already are not trained again,
so an interrupted sweep goes on where it stopped. Test images play no part in the choice.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from gaternet import recipes
from gaternet.training.compute import choose_device
from gaternet.training.config import Sources
from gaternet.training.phases import Options, train_or_continue
from gaternet.training.progress import plain_console
from gaternet.training.run import Run
from gaternet.training.starting import pretraining
from report import publish


@dataclass(frozen=True)
class Arguments:
    """What to sweep, and for how long."""

    data: str
    """Folder or hub name of the images."""
    runs: Path
    """Directory for the runs of this recipe, one for each value."""
    recipe: str = "cifar10/resnet20-gated-short"
    values: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0)
    epochs: int = 6
    """Epochs of each phase."""
    validation: int = 5000
    device: str = "auto"
    out: Path | None = None
    """JSON file to write; none: results/sparsity_sweep_RECIPE.json."""


def main(arguments: Arguments) -> None:
    """Train what is missing and write the table of validation errors."""
    joint = replace(
        recipes.get(arguments.recipe), epochs=arguments.epochs, validation=arguments.validation
    )
    options = Options(arguments.device, "python benchmarks/sparsity_sweep.py", plain_console())
    parts = {
        part: train_or_continue(
            pretraining(part, joint), Sources(arguments.data), arguments.runs / part, options
        )
        for part in ("backbone", "gater")
    }
    sources = Sources(arguments.data, parts["backbone"].path, parts["gater"].path)
    rows = []
    for value in arguments.values:
        assert joint.gating is not None
        recipe = replace(joint, gating=replace(joint.gating, sparsity=value))
        run = train_or_continue(recipe, sources, arguments.runs / f"lambda-{value:g}", options)
        rows.append(_row(value, run))
    name = f"sparsity_sweep_{joint.name.replace('/', '-')}.json"
    out = arguments.out or Path("results") / name
    publish({**_plain(arguments), "rows": rows}, choose_device(arguments.device), out)


def _row(value: float, run: Run) -> dict[str, Any]:
    probe = run.metrics()[-1]["probe"]
    assert probe["images_from"] == "validation"
    gates = probe["hard"]["gates"]
    return {
        "sparsity": value,
        "validation_error_percent": probe["hard"]["error_percent"],
        "validation_error_percent_soft_gates": probe["soft"]["error_percent"],
        "validation_loss": probe["hard"]["loss"],
        **{name: gates[name] for name in ("total", "always_on", "always_off", "mean_open")},
    }


def _plain(arguments: Arguments) -> dict[str, Any]:
    values = asdict(arguments) | {"data": Path(arguments.data).name}
    return {name: v for name, v in values.items() if name not in ("runs", "out", "device")}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
