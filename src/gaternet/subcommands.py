"""The commands of the command line: their arguments, and the call that they go to."""

import shlex
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from gaternet.bench import subcommands as bench
from gaternet.errors import UsageError
from gaternet.flags import DataName, DeviceName, Json, RunPath, SplitName, Switch, Threshold
from gaternet.train_command import interruptible, train_recipe

GateFormName = Literal["hard", "soft", "noisy"]


def demo(out: Path = Path("gaternet-demo"), device: DeviceName = "auto") -> None:
    """Gate a small CNN on scikit-learn's digits: offline, a few minutes, ends with a figure.

    Args:
        out: Directory for the runs and the figure.
    """
    from gaternet import demo as demonstration

    again = shlex.join(["gaternet", "demo", "--out", str(out)])
    with interruptible(out / "gated", again) as interruption:
        demonstration.run(out, device, interruption)


def recipes(
    action: Positional[Literal["list", "show"]],
    name: Annotated[Positional[str | None], arg(metavar="[NAME]")] = None,
) -> None:
    """List the recipes, or show every setting of one and what it costs.

    Args:
        action: `list`, or `show` with a name.
        name: The recipe to show, or a text that the listed names contain; none: all.
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


def models(json: Json = False) -> None:
    """List the trained networks that come with gaternet: give a name wherever a run is expected."""
    from gaternet import presentation, trained

    presentation.trained_models(trained.models(), as_json=json)


def train(recipe: Annotated[Positional[str], arg(metavar="RECIPE")]) -> None:
    """Train a recipe; `gaternet train RECIPE --help` shows its flags and settings.

    Args:
        recipe: A name from `gaternet recipes list`; it comes first.
    """
    train_recipe(recipe, [])


def evaluate(
    run: RunPath,
    data: DataName = None,
    split: SplitName = "test",
    gates: GateFormName | None = None,
    threshold: Threshold = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Measure a run's error, top-1 and top-5, and what its gates do.

    Args:
        split: Images to measure on.
        gates: hard (the paper's evaluation), soft (no binarization), noisy (training noise, hard);
            none: what the run's binarizer is evaluated with.
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


def analyze(
    run: RunPath,
    data: DataName = None,
    split: SplitName = "test",
    out: Path | None = None,
    against: SplitName | None = None,
    tsne: Switch = True,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Say what a run's gates have learned: statistics, figures, and whether they mean anything.

    Args:
        split: Images to analyze.
        out: Directory to write into, a folder for each split; none: RUN/analysis, or
            NAME-analysis for a name.
        against: Other images to compare the gates on; none: validation, if there are such images.
        tsne: Leave out the picture of images by their gates, which takes longest.
    """
    from gaternet import presentation
    from gaternet.analysis.command import AnalysisRequest, analyze_run
    from gaternet.analysis.saved import analysis_of
    from gaternet.analysis.terminal import print_findings
    from gaternet.training.compute import choose_device
    from gaternet.training.processes import joined

    request = AnalysisRequest(data, split, out, against, tsne, device)
    with joined(choose_device(device)) as processes:
        found = analyze_run(run, request, processes, presentation.progress_console())
        if found:
            written = (out or analysis_of(run)) / split
            print_findings(found, written, as_json=json)


def compress(
    run: RunPath,
    out: Path,
    data: DataName = None,
    split: Literal["train", "validation"] = "train",
    images: int | None = None,
    tolerance: int = 0,
    one_mask: Switch = False,
    plan: Path | None = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Remove the filters that never open and the gates that never close; say what it changed.

    Args:
        out: Directory of the smaller run, its plan.json and report.json; it must be new.
        split: Images whose gates decide what goes; test images only serve the report.
        images: How many of them, and of the test images, at most, from all over the split; none:
            all.
        tolerance: Gates that open for fewer images than this go too; 0: those that open for none.
        one_mask: Remove every gate; filters stay that open for more than half of the images: a
            plain network is left, without a gater.
        plan: Plan of an earlier compression of the same run, in place of a new one.
    """
    from gaternet import presentation
    from gaternet.compression.command import CompressionRequest, compress_run

    request = CompressionRequest(out, data, split, images, tolerance, one_mask, plan, device)
    presentation.compression(compress_run(run, request), str(out), as_json=json)


def predict(
    run: RunPath,
    images: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="IMAGE [IMAGE …]", help_behavior_hint="(required)"),
    ],
    explain: Annotated[tuple[Path, ...] | None, arg(metavar="[FILE.html]")] = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Classify images; show the probabilities and how many gates each layer opens.

    Args:
        images: Image files.
        explain: Show gate by gate what is open, beside the class's mean where the run was analyzed;
            with a file behind it, also as a page for a browser.
    """
    from gaternet import presentation
    from gaternet.commands import predict_images

    if not images:
        raise UsageError("predict needs at least one image file")
    if explain is None:
        presentation.predictions(predict_images(run, images, device), as_json=json)
        return
    page = _page_file(explain)
    from gaternet.analysis.page import write_page
    from gaternet.explanation import explain_images
    from gaternet.explanation_terminal import print_explanation

    found = explain_images(run, images, device)
    if page is not None:
        write_page(found.page, page)
    print_explanation(found, page, as_json=json)


def _page_file(words: Sequence[Path]) -> Path | None:
    """Return the file behind --explain, None where there is none."""
    if len(words) > 1:
        raise UsageError("--explain takes one FILE.html; the images come before it")
    for file in words:
        if file.suffix != ".html":
            raise UsageError(f"--explain {file}: a page ends in .html, and images come before it")
    return words[0] if words else None


def export(
    model: Positional[Path],
    out: Path,
    run: Path | None = None,
    data: str | None = None,
    compiled: Switch = False,
    json: Json = False,
) -> None:
    """Write a model as an ONNX or torch.export file, verified, that runs without this package.

    Args:
        model: Run directory, directory that a model was saved in, or name from `gaternet models`.
        out: File to write; it ends in .onnx or .pt2 and must be new.
        run: Run whose classes and scaling of images the file states; none: the model's own.
        data: Folder or hub name of images to verify the file on; none: random images alone.
        compiled: Only .pt2: compute open filters only, where gaternet.runtime is imported.
    """
    from gaternet import presentation
    from gaternet.commands import export_model

    presentation.exported(export_model(model, out, run, data, compiled=compiled), as_json=json)


def import_authors(file: Positional[Path], out: Path, data: str | None = None) -> None:
    """Make a run of a checkpoint that the paper's authors released.

    Args:
        file: ResNet-20-Gated.pth or ResNet-56-Gated.pth; tensors are read from it, no code is run.
        out: Directory of the run; it must be new.
        data: Folder or hub name whose class names the run takes; none: CIFAR-10's names.
    """
    from gaternet import authors, presentation

    presentation.imported(authors.import_run(file, out, data))


def reproduce(
    target: Positional[Literal["table1", "ablations", "efficient"]],
    data: Path | None = None,
    rows: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    short: Switch = False,
    epochs: int | None = None,
    pretrain_epochs: int | None = None,
    budget: float = inf,
    runs: Path = Path("runs"),
    results: Path = Path("results"),
    report: Path = Path("docs/results.md"),
    device: DeviceName = "auto",
) -> None:
    """Train what is missing of a table of results, and write down what was measured.

    The same command goes on where it was stopped; several may work on one table at once. A gated
    run of seed S starts from plain ones of seeds S + 2000 and S + 1000.

    Args:
        target: table1 (the paper's, and the plain network trained on for as long), ablations
            (ResNet-20-Gated with one thing changed), or efficient (gates on several budgets of
            multiply-accumulates, one mask for all images on the same, and smaller networks that are
            trained for as many epochs as these in both phases; --short alone).
        data: Folder that holds cifar10/ and cifar100/; none: their names on the hub.
        rows: Recipes of the target, such as cifar10/resnet20-gated or 'cifar10/*'; none: all.
        seeds: Of the gated networks and the controls.
        short: Train by the recipes with a tenth of the paper's schedule.
        epochs: Of each phase; none: the recipe's.
        pretrain_epochs: Of what starts from fresh weights; none: as of each phase. With more of
            them a shorter joint phase still starts from good networks; -gated-scratch has both.
        budget: Hours to train for; what is begun then is saved. 0: only write the report.
        runs: Directory for the runs.
        results: Directory for what they measured, a file each.
        report: Page to write from all of these files.
    """
    from gaternet.reproduction.command import ReproductionRequest
    from gaternet.reproduction.command import reproduce as run
    from gaternet.reproduction.jobs import Length
    from gaternet.reproduction.training import Places
    from gaternet.training.phases import Options

    places = Places(runs, results, data)
    request = ReproductionRequest(
        target, places, report, rows, seeds, Length(short, epochs, pretrain_epochs), budget
    )
    with interruptible(runs, "the same command") as interruption:
        left = run(request, Options(device, interruption=interruption))
    if left:
        print(f"runs still missing: {len(left)}; run the same command again to go on")


def ledger(results: Path | None = None, json: Json = False) -> None:
    """Show the paper's tables beside this code: gated filters, parameters, measured errors.

    Args:
        results: Folder of measured runs (result.json files); none: ./results, if there is one.
    """
    from gaternet import ledger as tables
    from gaternet import presentation

    if results is None and Path("results").is_dir():
        results = Path("results")
    presentation.ledger(tables.rows(results), as_json=json)


def info(json: Json = False) -> None:
    """Show versions, devices and what `auto` settings come to here."""
    from gaternet import presentation
    from gaternet.commands import environment

    presentation.environment(environment(), as_json=json)


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
    "predict": predict,
    "compress": compress,
    "export": export,
    "recipes": recipes,
    "models": models,
    "ledger": ledger,
    "reproduce": reproduce,
    "import-authors": import_authors,
    "info": info,
}


GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "bench": (
        "Measure what an image costs, in multiply-accumulates and time, and what training costs.",
        {"macs": bench.macs, "latency": bench.latency, "train": bench.train},
    ),
}
"""Commands of two words: the first word, what it is for, and the second words."""
