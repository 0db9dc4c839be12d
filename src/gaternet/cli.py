"""The command line: arguments in, calls out; nothing else."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import AvoidSubcommands, FlagCreatePairsOff, Positional

from gaternet.errors import UsageError, UserError

GateFormName = Literal["hard", "soft", "noisy"]
SplitName = Literal["test", "train", "validation"]


def demo(out: Path = Path("gaternet-demo"), device: str = "auto") -> None:
    """Gate a small CNN on scikit-learn's digits: offline, a few minutes, ends with a figure.

    Args:
        out: Directory for the runs and the figure.
        device: auto, cpu, cuda or cuda:N.
    """
    from gaternet import demo as demonstration

    demonstration.run(out, device)


def recipes(
    action: Positional[Literal["list", "show"]], name: Positional[str | None] = None
) -> None:
    """List the recipes, or show every setting of one and what it costs.

    Args:
        action: `list`, or `show` with a name.
        name: The recipe to show, or a part of the names to list, such as cifar10/resnet20.
    """
    from gaternet import presentation
    from gaternet.recipes import RECIPES, get

    if action == "list":
        found = [recipe for recipe in RECIPES.values() if (name or "") in recipe.name]
        if not found:
            raise UsageError(f"no recipe's name contains {name!r}; `recipes list` lists them all")
        presentation.recipe_list(found)
    elif name is None:
        raise UsageError("`recipes show` needs a name; `recipes list` lists them")
    else:
        presentation.recipe_settings(get(name))


def train(recipe: Positional[str]) -> None:
    """Train a recipe; `gaternet train RECIPE --help` shows its flags and settings.

    Args:
        recipe: A name from `gaternet recipes list`; it comes first.
    """
    _train_recipe(recipe, [])


def evaluate(
    run: Positional[Path],
    data: str | None = None,
    split: SplitName = "test",
    gates: GateFormName | None = None,
    threshold: float | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measure a run's error, top-1 and top-5, and what its gates do.

    Args:
        run: Run directory.
        data: Folder or hub name; default: the hub name of the run's data set.
        split: Images to measure on.
        gates: hard (the paper's evaluation), soft (no binarization), noisy (training noise, hard).
            Default: what the run's binarizer is evaluated with.
        threshold: Logit from which a gate is open; lower opens more. Default: the run's.
        device: auto, cpu, cuda or cuda:N.
        json: Print JSON and nothing else.
    """
    from gaternet import presentation
    from gaternet.commands import EvaluationRequest, evaluate_run
    from gaternet.training.compute import choose_device
    from gaternet.training.processes import joined

    request = EvaluationRequest(data, split, gates, threshold, device)
    with joined(choose_device(device)) as processes:
        measured = evaluate_run(run, request, processes)
        if processes.first:
            presentation.evaluation(measured, as_json=json)


def predict(
    run: Positional[Path],
    images: Positional[tuple[Path, ...]],
    device: str = "auto",
    json: bool = False,
) -> None:
    """Classify images; show the probabilities and how many gates each layer opens.

    Args:
        run: Run directory.
        images: Image files.
        device: auto, cpu, cuda or cuda:N.
        json: Print JSON and nothing else.
    """
    from gaternet import presentation
    from gaternet.commands import predict_images

    if not images:
        raise UsageError("predict needs at least one image file")
    presentation.predictions(predict_images(run, images, device), as_json=json)


def import_authors(file: Positional[Path], out: Path, data: str | None = None) -> None:
    """Make a run of a checkpoint that the paper's authors released.

    Args:
        file: ResNet-20-Gated.pth or ResNet-56-Gated.pth; tensors are read from it, no code is run.
        out: Directory of the run; it must be new.
        data: Folder or hub name whose class names the run takes. Default: CIFAR-10's names.
    """
    from gaternet import authors, presentation

    presentation.imported(authors.import_run(file, out, data))


def ledger(results: Path | None = None, json: bool = False) -> None:
    """Show the paper's tables beside this code: gated filters, parameters, measured errors.

    Args:
        results: Folder of measured runs (result.json files). Default: ./results, if there is one.
        json: Print JSON and nothing else.
    """
    from gaternet import ledger as tables
    from gaternet import presentation

    if results is None and Path("results").is_dir():
        results = Path("results")
    presentation.ledger(tables.rows(results), as_json=json)


def info(json: bool = False) -> None:
    """Show versions, devices and what `auto` settings come to here.

    Args:
        json: Print JSON and nothing else.
    """
    from gaternet import presentation
    from gaternet.commands import environment

    presentation.environment(environment(), as_json=json)


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "recipes": recipes,
    "ledger": ledger,
    "import-authors": import_authors,
    "info": info,
}


def _train_recipe(name: str, words: Sequence[str]) -> None:
    from gaternet.arguments import applied, parse, sources
    from gaternet.recipes import get

    if name.startswith("-"):
        raise UsageError(f"the recipe comes first: gaternet train RECIPE {name} …")
    recipe = get(name)
    arguments = parse(recipe, words)
    recipe = applied(recipe, arguments)

    from gaternet.training.compute import choose_device
    from gaternet.training.phases import Options, train
    from gaternet.training.processes import joined

    # --resume is left out: what is typed anew for the same figures starts anew.
    typed = [word for word in words if word != "--resume"]
    with joined(choose_device(arguments.device)) as processes:
        options = Options(
            arguments.device, shlex.join(["gaternet", "train", name, *typed]), processes=processes
        )
        train(recipe, sources(arguments), arguments.out, options, resume=arguments.resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 for a mistake in files, 2 in arguments."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["train"] and arguments[1:] not in ([], ["-h"], ["--help"]):
            _train_recipe(arguments[1], arguments[2:])
        else:
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="gaternet",
                description="CNNs that choose their filters per input.",
                args=arguments,
                config=(FlagCreatePairsOff, AvoidSubcommands),
            )
    except UserError as error:
        print(f"gaternet: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gaternet: interrupted; a training run goes on with --resume", file=sys.stderr)
        return 130
    return 0
