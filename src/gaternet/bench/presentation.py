"""How measurements look in a terminal, or as JSON and nothing else."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gaternet.output import printable
from gaternet.tables import new_table, part_of, print_json

if TYPE_CHECKING:
    from gaternet.bench.latency import Latencies
    from gaternet.bench.macs import RunMacs
    from gaternet.bench.training_pace import TrainingPace


def macs(counted: "RunMacs", *, as_json: bool) -> None:
    """Print multiply-accumulates layer by layer, and what images need in all."""
    found = counted.macs
    if as_json:
        print_json(asdict(counted) | {"share": found.share})
        return
    console = Console(markup=False, highlight=False)
    layers = new_table("multiply-accumulates per image", "dense", "mean", "")
    for layer in found.layers:
        share = f"{100 * layer.mean / layer.dense:.1f} %"
        layers.add_row(layer.name, f"{layer.dense:,}", f"{layer.mean:,.0f}", share)
    console.print(layers)
    table = new_table(f"\n{counted.recipe} on {counted.data}, {counted.split} images", "")
    table.add_row("images", f"{found.images:,}")
    table.add_row("plain backbone", f"{found.backbone:,}")
    if found.deciding:
        table.add_row("gater or local heads", part_of(found.deciding, found.backbone))
    for name in ("mean", "median", "p95"):
        table.add_row(f"needed, {name}", part_of(getattr(found, name), found.backbone))
    table.add_row("saved, mean", f"{100 * (1 - found.share):.1f} %")
    for operation, calls in found.uncounted.items():
        table.add_row("not counted", f"{operation} ({calls} ×)")
    console.print(table)


def latencies(found: "Latencies", figure: Path | None, *, as_json: bool) -> None:
    """Print what each form of a network takes; draw it too where a file is named."""
    if as_json:
        print_json(asdict(found))
    else:
        _latency_tables(found)
    if figure is not None:
        from gaternet.bench.latency_figure import latency_figure

        latency_figure(found, figure)
        if not as_json:
            print(f"figure: {printable(str(figure))}")


def _latency_tables(found: "Latencies") -> None:
    console = Console(markup=False, highlight=False)
    console.print(
        f"{found.title} on {found.hardware}: forms measured alternately, MACs per image\n"
    )
    for batch in dict.fromkeys(row.batch for row in found.rows):
        rows = [row for row in found.rows if row.batch == batch]
        images = "1 image" if batch == 1 else f"{batch} images"
        table = new_table(images, "median", "95 % interval", "p95", "open", "MACs")
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


_RATIOS = {
    "step_ratio": "gated step / plain steps",
    "epoch_ratio": "on the data / one batch",
    "data_share": "of an epoch",
    "logging_share": "of an epoch",
    "checkpoint_share": "of an epoch",
    "probe_share": "of an epoch, to evaluate",
    "memory_ratio": "saved, gated / plain",
    "loop_ratio": "images/s / the usual loop's",
}


def training_pace(found: "TrainingPace", *, as_json: bool) -> None:
    """Print what training costs beyond its networks' own steps."""
    if as_json:
        print_json(pace_figures(found))
        return
    console = Console(markup=False, highlight=False)
    console.print(
        f"{found.recipe} on {found.data}: measured alternately, {found.request.rounds} rounds",
        f"{found.hardware}\n",
        sep="\n",
        soft_wrap=True,
    )
    table = new_table("ratio", "median", "95 % interval", "of what")
    for name, ratio in found.ratios.items():
        interval = _interval(ratio.interval, ".4f") or "too few rounds"
        table.add_row(name, f"{ratio.median:.4f}", interval, _RATIOS[name])
    console.print(table)
    speed = found.images_per_second
    interval = f" ({_interval(speed.interval, ',.0f')})" if speed.interval else ""
    console.print(
        f"\n{speed.median:,.0f} images/s{interval}, batches of {found.batch_size}",
        *(f"not measured: {name}: {reason}" for name, reason in found.missing.items()),
        sep="\n",
    )


def _interval(ends: tuple[float, float] | None, form: str) -> str:
    return "-".join(format(end, form) for end in ends or ())


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
