"""How results look in a terminal, or as JSON and nothing else."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gaternet.tables import likeliest_classes, new_table, part_of, print_json, share_of

if TYPE_CHECKING:
    from gaternet.commands import Prediction, RunEvaluation
    from gaternet.compression.report import CompressionReport
    from gaternet.ledger import LedgerRow, MeasuredRun
    from gaternet.runtime.export import ExportResult
    from gaternet.trained import TrainedModel
    from gaternet.training.config import Recipe
    from gaternet.training.run import Run


PAPER = "“You Look Twice”, CVPR 2019"
_NOT_IN_PAPER = "not in the paper: "


def recipe_list(recipes: Iterable["Recipe"]) -> None:
    """Print every recipe's name and what it reproduces: by data set, the paper's tables first."""
    groups: dict[str, tuple[list[Recipe], list[Recipe]]] = {}
    for recipe in recipes:
        of_paper, others = groups.setdefault(recipe.data.title, ([], []))
        (of_paper if recipe.reproduces.startswith("Table") else others).append(recipe)
    console = Console(markup=False, highlight=False)
    console.print(f"Tables and sections are those of the paper ({PAPER}).", soft_wrap=True)
    for title, (of_paper, others) in groups.items():
        for found, heading in ((of_paper, "the paper's tables"), (others, "not in its tables")):
            if found:
                console.print(f"\n{title}, {heading}", style="bold", soft_wrap=True)
                console.print(_recipe_table(found))
    console.print(
        "\nrecipes list TEXT: those whose name contains TEXT; recipes show NAME: all of one",
        soft_wrap=True,
    )


def _recipe_table(recipes: Iterable["Recipe"]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("what it is", overflow="fold")
    for recipe in recipes:
        what = recipe.reproduces.removeprefix(_NOT_IN_PAPER)
        # The heading has the data set.
        what = what.replace(f" on {recipe.data.title}", "").replace(f"{recipe.data.name}/", "")
        table.add_row(recipe.name, str(recipe.epochs), what)
    return table


def recipe_settings(recipe: "Recipe") -> None:
    """Print every setting of a recipe and what it costs as JSON."""
    from gaternet.recipes import describe_length
    from gaternet.training.config import recipe_to_dict
    from gaternet.training.cost import cost

    costs = {"length": describe_length(recipe), **asdict(cost(recipe))}
    print_json(recipe_to_dict(recipe) | {"costs": costs})


def trained_models(models: Iterable["TrainedModel"], *, as_json: bool) -> None:
    """Print the networks that come with the package, and their error on test images."""
    if as_json:
        print_json([asdict(model) for model in models])
        return
    console = Console(markup=False, highlight=False)
    table = new_table("name", "recipe", "epochs", "error", "size")
    for model in models:
        error, size = f"{model.test_error_percent:.2f} %", f"{model.bytes / 1e6:.1f} MB"
        table.add_row(model.name, model.recipe, str(model.epochs), error, size)
    console.print(table)
    console.print(
        "\nerror is that on test images; give a name wherever a run is expected: gaternet predict "
        "NAME IMAGE, …",
        soft_wrap=True,
    )


def evaluation(measured: "RunEvaluation", *, as_json: bool) -> None:
    """Print error rates and what the gates do."""
    if as_json:
        print_json(asdict(measured))
        return
    found = measured.evaluation
    table = new_table(f"{measured.recipe} on {measured.data}, {measured.split} images", "")
    table.add_row("images", f"{found.images:,}")
    table.add_row("top-1 error", f"{found.error_percent:.2f} %")
    table.add_row("top-5 error", f"{found.top5_error_percent:.2f} %")
    table.add_row("cross entropy", f"{found.loss:.4f}")
    if found.gates:
        gates = found.gates
        table.add_row("gates", f"{found.form}, threshold {measured.threshold:g}")
        table.add_row("always on", share_of(gates.always_on, gates.total))
        table.add_row("always off", share_of(gates.always_off, gates.total))
        table.add_row("input-dependent", share_of(gates.input_dependent, gates.total))
        table.add_row("open per image, mean", share_of(gates.mean_open, gates.total))
        needed = part_of(gates.needed_macs, gates.backbone_macs)
        table.add_row("multiply-accumulates, mean", f"{needed} of its backbone, all open")
        table.add_row("logits within 1 of the threshold", f"{100 * gates.near_threshold:.1f} %")
    Console(markup=False, highlight=False).print(table)


def progress_console() -> Console:
    """Return a console on standard error: standard output is for results."""
    return Console(stderr=True, markup=True, highlight=False)


def predictions(found: Iterable["Prediction"], *, as_json: bool) -> None:
    """Print the likeliest classes of each image, and its open gates layer by layer."""
    found = list(found)
    if as_json:
        print_json([asdict(prediction) for prediction in found])
        return
    console = Console(markup=False, highlight=False)
    for prediction in found:
        console.print(likeliest_classes(prediction))
        if prediction.layers:
            layers = new_table("gates in", "open", "of", "")
            for layer in prediction.layers:
                bar = "█" * round(24 * layer.open / layer.total)
                layers.add_row(layer.name, str(layer.open), str(layer.total), bar)
            console.print(layers)


def exported(result: "ExportResult", *, as_json: bool) -> None:
    """Print what was written, how far it is from the model, and what it does for speed."""
    if as_json:
        print_json(asdict(result))
        return
    console = Console(markup=False, highlight=False)
    outputs = " and ".join(result.outputs)
    console.print(
        f"{result.path}: {result.format}, {result.bytes / 1e6:.1f} MB, images to {outputs}",
        soft_wrap=True,
    )
    if result.verified_with is None:
        console.print("not verified: pip install onnxruntime, and export again", soft_wrap=True)
    for check in result.checks:
        found = check.found
        shown = (
            f"{check.batch} {check.images} {'image' if check.batch == 1 else 'images'}: "
            f"logits within {found.logit_error:.1e} of the model's, relatively"
        )
        if found.gates:
            shown += f"; {found.flips} of {found.gates:,} gates differ"
        if found.flips:
            shown += ", by rounding"
        console.print(f"{result.verified_with}, {shown}", soft_wrap=True)
    console.print(result.about["speed"], soft_wrap=True)


def compression(report: "CompressionReport", out: str, *, as_json: bool) -> None:
    """Print what compression removed, how equal both models are, and what unseen images say."""
    if as_json:
        print_json(asdict(report))
        return
    before, after, unseen, proof = report.before, report.after, report.unseen, report.verification
    table = new_table(f"{out}", "before", "after")
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}")
    table.add_row("multiply-accumulates, all open", f"{before.macs:,}", f"{after.macs:,}")
    table.add_row("gates", f"{before.gates:,}", f"{after.gates:,}")
    open_shares = (f"{100 * size.open_share:.1f} %" for size in (before, after))
    table.add_row("open per image, mean", *open_shares)
    rates = (f"{100 * c / unseen.images:.2f} %" for c in (unseen.correct_before, unseen.correct))
    table.add_row(f"{report.unseen_split} images classified correctly", *rates)
    console = Console(markup=False, highlight=False)
    console.print(table)
    recorded, differing = f"on {report.recorded:,} {report.split} images", ""
    if report.one_mask:
        what = (
            f"one mask for all images: {report.always_on:,} gates that open for more than half of "
            f"them stay open, {report.removed:,} are closed, {recorded}"
        )
    else:
        what = (
            f"{report.removed:,} gates never opened, {report.always_on:,} never closed, "
            f"{report.unneeded:,} are read by no layer any more, {recorded} "
            f"(tolerance {report.tolerance})"
        )
        differing = (
            f", {proof.flips:,} of {proof.gates:,} gates that are left differ "
            f"({proof.rounding_flips:,} by rounding)"
        )
    console.print(
        what,
        f"recorded images: max|Δ logits| / max|logits| = {proof.logit_error:.1e}{differing}",
        f"{report.unseen_split} images: the same class for {unseen.same_class:,} of "
        f"{unseen.images:,}; {unseen.wanted_removed:,} wanted a removed filter, "
        f"{unseen.wanted_closed:,} wanted one closed that is always open now",
        *(f"not counted: {name} (× {calls})" for name, calls in report.uncounted.items()),
        sep="\n",
        soft_wrap=True,
    )


def imported(run: "Run") -> None:
    """Print what a run that was not trained here holds, and how to measure it."""
    result = run.result or {}
    Console(markup=False, highlight=False).print(
        f"{run.path}: {run.config.recipe.name}, {result['parameters'] / 1e6:.2f} M parameters, "
        f"not measured yet: gaternet evaluate {shlex.quote(str(run.path))}",
        soft_wrap=True,
    )


def ledger(rows: Iterable["LedgerRow"], *, as_json: bool) -> None:
    """Print the paper's tables beside what this code builds and measured."""
    rows = list(rows)
    if as_json:
        print_json([_without_images(asdict(row)) for row in rows])
        return
    console = Console(markup=False, highlight=False)
    for (number, dataset), group in groupby(rows, lambda row: (row.table, row.dataset)):
        columns = ("gates", "params", "paper's", "", "paper's error", "measured")
        table = new_table(f"The paper's Table {number}, {dataset}", *columns)
        notes = []
        for row in group:
            table.add_row(
                row.model,
                "" if row.gated_filters is None else f"{row.gated_filters:,}",
                f"{row.params / 1e6:.2f} M",
                f"{row.paper_params:.2f}",
                "=" if row.agrees else "≠",
                _errors(row.paper_error, row.paper_top5_error),
                "\n".join(_measured(row, run) for run in row.measured or []),
            )
            notes += [f"≠ {row.model}: {row.note}"] if row.note else []
            notes += [f"{_measured(row, run)}: {_conditions(run)}" for run in row.measured or []]
        console.print(table)
        console.print(*notes, "", sep="\n", soft_wrap=True)
    agreeing = sum(row.agrees for row in rows)
    console.print(f"{agreeing} of {len(rows)} rows agree with the paper to the printed digit")


def _without_images(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without a bit for each test image, which the runs' own files have."""
    for run in row["measured"] or ():
        del run["judged"]
    return row


def _errors(top1: float, top5: float | None) -> str:
    return f"{top1:.2f}" if top5 is None else f"{top1:.2f} {top5:.2f}"


def _measured(row: "LedgerRow", run: "MeasuredRun") -> str:
    errors = _errors(run.error, None if row.paper_top5_error is None else run.top5_error)
    return f"{errors} *" if run.shortened or run.differs else errors


def _conditions(run: "MeasuredRun") -> str:
    before = " and ".join(f"{n} of its {part}" for part, n in (run.pretrain_epochs or {}).items())
    epochs = f"{run.epochs} epochs{f' after {before}' if before else ''}"
    shortened = ", fewer than the paper's" if run.shortened else ""
    differs = f", with {', '.join(run.differs)}" if run.differs else ""
    trained = f"{run.recipe}{differs}, {epochs}{shortened}"
    return f"{trained}, seed {run.seed}, {run.hardware}, {run.file}"


def environment(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print versions and devices."""
    if as_json:
        print_json(values)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in values.items():
        table.add_row(name.replace("_", " "), str(value))
    Console(markup=False, highlight=False).print(table)
