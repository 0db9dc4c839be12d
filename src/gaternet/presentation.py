"""How results look in a terminal, or as JSON and nothing else."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gaternet.output import json_text, printable

if TYPE_CHECKING:
    import pandas as pd

    from gaternet.analysis.findings import Findings
    from gaternet.commands import Prediction, RunEvaluation
    from gaternet.compression.report import CompressionReport
    from gaternet.explanation import Explanation
    from gaternet.ledger import LedgerRow, MeasuredRun
    from gaternet.run_latency import Latencies
    from gaternet.run_macs import RunMacs
    from gaternet.runtime.export import ExportResult
    from gaternet.training.config import Recipe
    from gaternet.training.run import Run
    from gaternet.training_pace import TrainingPace

SHOWN_CLASSES = 5
MOST_CELLS = 32
"""Marks that stand for the gates of one layer."""
SHOWN_LAYERS = 24
SHOWN_GATES = 5


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
        told = recipe.reproduces.removeprefix(_NOT_IN_PAPER)
        # The heading has the data set.
        told = told.replace(f" on {recipe.data.title}", "").replace(f"{recipe.data.name}/", "")
        table.add_row(recipe.name, str(recipe.epochs), told)
    return table


def recipe_settings(recipe: "Recipe") -> None:
    """Print every setting of a recipe and what it costs as JSON."""
    from gaternet.recipes import describe_length
    from gaternet.training.config import recipe_to_dict
    from gaternet.training.cost import cost

    costs = {"length": describe_length(recipe), **asdict(cost(recipe))}
    _print_json(recipe_to_dict(recipe) | {"costs": costs})


def evaluation(measured: "RunEvaluation", *, as_json: bool) -> None:
    """Print error rates and what the gates do."""
    if as_json:
        _print_json(asdict(measured))
        return
    found = measured.evaluation
    table = _table(f"{measured.recipe} on {measured.data}, {measured.split} images", "")
    table.add_row("images", f"{found.images:,}")
    table.add_row("top-1 error", f"{found.error_percent:.2f} %")
    table.add_row("top-5 error", f"{found.top5_error_percent:.2f} %")
    table.add_row("cross entropy", f"{found.loss:.4f}")
    if found.gates:
        gates = found.gates
        table.add_row("gates", f"{found.form}, threshold {measured.threshold:g}")
        table.add_row("always on", _share(gates.always_on, gates.total))
        table.add_row("always off", _share(gates.always_off, gates.total))
        table.add_row("input-dependent", _share(gates.input_dependent, gates.total))
        table.add_row("open per image, mean", _share(gates.mean_open, gates.total))
        needed = _part(gates.needed_macs, gates.backbone_macs)
        table.add_row("multiply-accumulates, mean", f"{needed} of its backbone, all open")
        table.add_row("logits within 1 of the threshold", f"{100 * gates.near_threshold:.1f} %")
    Console(markup=False, highlight=False).print(table)


def run_macs(counted: "RunMacs", *, as_json: bool) -> None:
    """Print multiply-accumulates layer by layer, and what images need in all."""
    found = counted.macs
    if as_json:
        _print_json(asdict(counted) | {"share": found.share})
        return
    console = Console(markup=False, highlight=False)
    layers = _table("multiply-accumulates per image", "dense", "mean", "")
    for layer in found.layers:
        share = f"{100 * layer.mean / layer.dense:.1f} %"
        layers.add_row(layer.name, f"{layer.dense:,}", f"{layer.mean:,.0f}", share)
    console.print(layers)
    table = _table(f"\n{counted.recipe} on {counted.data}, {counted.split} images", "")
    table.add_row("images", f"{found.images:,}")
    table.add_row("plain backbone", f"{found.backbone:,}")
    table.add_row("who decides", _part(found.deciding, found.backbone))
    for name in ("mean", "median", "p95"):
        table.add_row(f"needed, {name}", _part(getattr(found, name), found.backbone))
    table.add_row("saved, mean", f"{100 * (1 - found.share):.1f} %")
    for operation, calls in found.uncounted.items():
        table.add_row("not counted", f"{operation} ({calls} ×)")
    console.print(table)


def latencies(found: "Latencies", figure: Path | None, *, as_json: bool) -> None:
    """Print what each form of a network takes; draw it too where a file is named."""
    if figure is not None:
        from gaternet.analysis.latency_figure import latency_figure

        latency_figure(found, figure)
    if as_json:
        _print_json([asdict(row) for row in found.rows])
        return
    console = Console(markup=False, highlight=False)
    console.print(f"{found.title} on {found.hardware}: forms measured in turns, MACs per image\n")
    for batch in dict.fromkeys(row.batch for row in found.rows):
        rows = [row for row in found.rows if row.batch == batch]
        images = "1 image" if batch == 1 else f"{batch} images"
        table = _table(images, "median", "95 % interval", "p95", "open", "MACs")
        for row in rows:
            low, high = row.interval_ms
            table.add_row(
                row.variant,
                f"{row.median_ms:.2f} ms",
                f"{low:.2f}-{high:.2f}",
                f"{row.p95_ms:.2f} ms",
                f"{100 * row.open_share:.0f} %",
                f"{row.macs_per_image / 1e6:,.1f} M",
            )
        console.print(table)
    for variant, reason in found.missing.items():
        console.print(f"not measured: {variant}: {reason}")
    if figure is not None:
        console.print(f"figure: {figure}")


_RATIOS = {
    "step_ratio": "gated step / plain steps",
    "epoch_ratio": "on the data / one batch",
    "checkpoint_share": "of an epoch",
    "probe_share": "of an epoch, to evaluate",
    "memory_ratio": "saved, gated / plain",
    "loop_ratio": "images/s / the usual loop's",
}


def training_pace(found: "TrainingPace", *, as_json: bool) -> None:
    """Print what training costs beyond its networks' own steps."""
    if as_json:
        _print_json(pace_figures(found))
        return
    console = Console(markup=False, highlight=False)
    console.print(
        f"{found.recipe} on {found.data}, {found.hardware}: measured in turns, "
        f"{found.request.rounds} rounds\n",
        soft_wrap=True,
    )
    table = _table("ratio", "median", "95 % interval", "of what")
    for name, ratio in found.ratios.items():
        low, high = ratio.interval
        table.add_row(name, f"{ratio.median:.4f}", f"{low:.4f}-{high:.4f}", _RATIOS[name])
    console.print(table)
    low, high = found.images_per_second.interval
    console.print(
        f"\n{found.images_per_second.median:,.0f} images/s ({low:,.0f}-{high:,.0f}), batches of "
        f"{found.batch_size}",
        *(f"not measured: {name}: {reason}" for name, reason in found.missing.items()),
        sep="\n",
    )


def pace_figures(found: "TrainingPace") -> dict[str, Any]:
    """Return plain values: each ratio beside its interval, as NAME and NAME_interval."""
    ratios = {"images_per_second": found.images_per_second, **found.ratios}
    figures: dict[str, Any] = dict.fromkeys(found.missing)
    for name, ratio in ratios.items():
        figures |= {name: ratio.median, f"{name}_interval": ratio.interval}
    return figures | {
        name: value
        for name, value in asdict(found).items()
        if name not in ("images_per_second", "ratios")
    }


def progress_console() -> Console:
    """Return a console on standard error: standard output is for results."""
    return Console(stderr=True, markup=True, highlight=False)


def analysis(found: "Findings", out: str, *, as_json: bool) -> None:
    """Print what the gates do, what they tell of the class, and whether it matters."""
    if as_json:
        from gaternet.analysis.findings import to_json

        print(to_json(found))
        return
    console = Console(markup=False, highlight=False)
    console.print(_gate_summary(found))
    if len(found.layers) <= SHOWN_LAYERS:
        console.print(_layer_summary(found.layers))
    table = _table("gates", "images", "accuracy", "change")
    for swap in found.swaps:
        change = f"{100 * swap.change:+.2f} ± {100 * swap.interval:.2f}" if swap.change else ""
        table.add_row(swap.gates, f"{swap.images:,}", f"{100 * swap.accuracy:.2f} %", change)
    console.print("", table, sep="\n")
    table = _table("the gates that tell most of the class", "open", "bits")
    for row in found.informative[:SHOWN_GATES].to_dict("records"):
        name = f"{row['layer']}, gate {row['number']}"
        table.add_row(name, f"{100 * row['rate']:.1f} %", f"{row['information']:.3f}")
    console.print("", table, sep="\n")
    if len(found.similar):
        table = _table("classes that use the most similar gates", "alike")
        for first, second, alike in found.similar[:SHOWN_GATES].itertuples(index=False):
            table.add_row(f"{first}, {second}", f"{100 * alike:.1f} %")
        console.print("", table, sep="\n")
    for what, why in found.missing.items():
        console.print(f"not found out: {what}: {why}", soft_wrap=True)
    console.print(f"\nfigures and numbers.json: {out}", soft_wrap=True)


def _gate_summary(found: "Findings") -> Table:
    kinds, opened, info, costs = found.kinds, found.open_gates, found.information, found.costs
    table = _table(f"{found.recipe} on {found.data}, {found.split} images", "")
    table.add_row("images", f"{found.images:,}")
    table.add_row("accuracy", f"{100 * found.accuracy:.2f} %")
    for name in ("always_on", "always_off", "input_dependent"):
        share = _share(getattr(kinds, name), kinds.total)
        table.add_row(f"gates {name.replace('_', '-' if name[0] == 'i' else ' ')}", share)
    table.add_row("  open for 1 to 99 % of the images", f"{kinds.often:,}")
    table.add_row(
        "open gates of an image", f"{opened.least:,} to {opened.most:,}, mean {opened.mean:,.1f}"
    )
    if opened.distance is not None:
        fit = f"deviation {opened.deviation:.2f}, Kolmogorov distance {opened.distance:.3f}"
        table.add_row("  as a normal distribution", fit)
    table.add_row("different gate vectors", f"{found.distinct:,}")
    table.add_row(
        "a gate tells of the class",
        f"{info.mean:.4f} bits, mean; {info.most:.3f} at most; {info.chance:.5f} by chance",
    )
    table.add_row("multiply-accumulates, mean", f"{_part(costs.mean, costs.backbone)}")
    outcome = costs.by_outcome
    if outcome.difference is not None and outcome.interval is not None:
        parts = (100 * x / costs.backbone for x in (outcome.difference, outcome.interval))
        table.add_row(
            "  of wrong images less of right", "{:+.2f} ± {:.2f} % of its backbone".format(*parts)
        )
    if found.probes:
        probes = found.probes
        table.add_row("class from the gates alone", f"chance {100 * probes.chance:.1f} %")
        table.add_row("  10 nearest neighbours", f"{100 * probes.neighbours:.1f} %")
        table.add_row("  linear", f"{100 * probes.linear:.1f} %")
    if found.agreement:
        other = found.agreement
        table.add_row(
            f"on {other.images:,} {found.against} images",
            f"rates differ by {other.mean_difference:.4f}, mean; by chance {other.by_chance:.4f}",
        )
        table.add_row("  gates of the same kind", _share(other.same_kind, kinds.total))
    return table


def _layer_summary(layers: "pd.DataFrame") -> Table:
    table = _table("\nlayer", "gates", "on", "off", "dependent", "open", "bits a gate", "vectors")
    for row in layers.to_dict("records"):
        names = ("gates", "always_on", "always_off", "input_dependent")
        shown = (f"{row[name]:,}" for name in names)
        open_share = f"{100 * row['open'] / row['gates']:.1f} %"
        table.add_row(
            row["layer"], *shown, open_share, f"{row['entropy']:.3f}", f"{row['distinct']:,}"
        )
    return table


def _part(macs: float, backbone: int) -> str:
    return f"{macs:,.0f} ({100 * macs / backbone:.1f} %)"


def predictions(found: Iterable["Prediction"], *, as_json: bool) -> None:
    """Print the likeliest classes of each image, and its open gates layer by layer."""
    found = list(found)
    if as_json:
        _print_json([asdict(prediction) for prediction in found])
        return
    console = Console(markup=False, highlight=False)
    for prediction in found:
        console.print(_likeliest(prediction))
        if prediction.layers:
            layers = _table("gates in", "open", "of", "")
            for layer in prediction.layers:
                bar = "█" * round(24 * layer.open / layer.total)
                layers.add_row(layer.name, str(layer.open), str(layer.total), bar)
            console.print(layers)


def explanation(found: "Explanation", page: Path | None, *, as_json: bool) -> None:
    """Print the likeliest classes of each image, and a line for each layer: a mark for each gate.

    Where there are more gates than marks, each mark stands for the share of some neighbours.
    """
    if as_json:
        images = [
            asdict(view.prediction)
            | {
                "layers": [
                    asdict(layer) | {"open": sum(layer.gates), "total": len(layer.gates)}
                    for layer in view.layers
                ],
                "compared": found.compared,
            }
            for view in found.images
        ]
        _print_json(images)
        return
    console = Console(markup=False, highlight=False)
    for view in found.images:
        console.print(_likeliest(view.prediction))
        headers = ["gates in", "", "open", "of"]
        known = view.layers and view.layers[0].distance is not None
        layers = _table(*headers, *(("away", "usually") if known else ()))
        for layer in view.layers:
            row = [layer.name, cells(layer.gates), str(sum(layer.gates)), str(len(layer.gates))]
            if layer.distance is not None and layer.usual is not None:
                row += [f"{layer.distance:.1f}", f"{layer.usual:.1f}"]
            layers.add_row(*row)
        console.print(layers)
    told = ["▇ open, · closed; of many gates, how many of some neighbours: ▁ few, █ all"]
    if found.compared:
        told.append(
            f"away: gates away from the mean of the class, over {found.compared}; usually: what "
            "images of the class are"
        )
    else:
        told.append("to compare with the class's mean: gaternet analyze RUN first")
    if page is not None:
        told.append(f"page: {page}")
    console.print(*told, sep="\n", soft_wrap=True)


def cells(gates: Sequence[int], most: int = MOST_CELLS) -> str:
    """Return gates in a line of at most so many marks."""
    if len(gates) <= most:
        return "".join("▇" if gate else "·" for gate in gates)
    edges = [len(gates) * place // most for place in range(most + 1)]
    shares = [sum(gates[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join("▁▂▃▄▅▆▇█"[ceil(8 * share) - 1] if share else "·" for share in shares)


def _likeliest(prediction: "Prediction") -> Table:
    table = _table(printable(prediction.image), "probability")
    likeliest = zip(prediction.classes, prediction.probabilities, strict=True)
    for name, p in list(likeliest)[:SHOWN_CLASSES]:
        table.add_row(printable(name), f"{100 * p:.1f} %")
    return table


def exported(result: "ExportResult", *, as_json: bool) -> None:
    """Print what was written, how far it is from the model, and what it does for speed."""
    if as_json:
        _print_json(asdict(result))
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
        _print_json(asdict(report))
        return
    before, after, unseen, proof = report.before, report.after, report.unseen, report.verification
    table = _table(f"{out}", "before", "after")
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}")
    table.add_row("multiply-accumulates, all open", f"{before.macs:,}", f"{after.macs:,}")
    table.add_row("gates", f"{before.gates:,}", f"{after.gates:,}")
    open_shares = (f"{100 * size.open_share:.1f} %" for size in (before, after))
    table.add_row("open per image, mean", *open_shares)
    rates = (f"{100 * c / unseen.images:.2f} %" for c in (unseen.correct_before, unseen.correct))
    table.add_row(f"{report.unseen_split} images classified correctly", *rates)
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(
        f"{report.removed:,} gates never opened, {report.always_on:,} never closed, "
        f"{report.unneeded:,} have no reader left, on {report.recorded:,} {report.split} images "
        f"(tolerance {report.tolerance})",
        f"recorded images: max|Δ logits| / max|logits| = {proof.logit_error:.1e}, {proof.flips:,} "
        f"of {proof.gates:,} gates that are left differ ({proof.rounding_flips:,} by rounding)",
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
        _print_json([asdict(row) for row in rows])
        return
    console = Console(markup=False, highlight=False)
    for (number, dataset), group in groupby(rows, lambda row: (row.table, row.dataset)):
        columns = ("gates", "params", "paper", "", "paper's error", "measured")
        table = _table(f"The paper's Table {number}, {dataset}", *columns)
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
    told = f"{run.recipe}{differs}, {epochs}{shortened}"
    return f"{told}, seed {run.seed}, {run.hardware}, {run.file}"


def environment(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print versions and devices."""
    if as_json:
        _print_json(values)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in values.items():
        table.add_row(name.replace("_", " "), str(value))
    Console(markup=False, highlight=False).print(table)


def _table(*headers: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _share(count: float, total: int) -> str:
    shown = f"{count:,}" if isinstance(count, int) else f"{count:,.1f}"
    return f"{shown} of {total:,} ({100 * count / total:.1f} %)"


def _print_json(value: Any) -> None:
    print(json_text(value))
