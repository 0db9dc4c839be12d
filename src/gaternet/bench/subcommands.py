"""`gaternet bench`: the arguments of its commands, and the call that they go to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gaternet.errors import UsageError
from gaternet.flags import DataName, DeviceName, Json, RunPath, SplitName, Threads, Threshold

LayersName = Literal["outer", "inner", "both"]


def macs(
    run: RunPath,
    data: DataName = None,
    split: SplitName = "test",
    images: int | None = None,
    threshold: Threshold = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Count the multiply-accumulates that a run's images need, gater included, layer by layer.

    Args:
        split: Images to count on.
        images: How many of them, from all over the split; none: all.
    """
    from gaternet.bench import presentation
    from gaternet.bench.macs import count_run
    from gaternet.commands import EvaluationRequest

    request = EvaluationRequest(data, split, None, threshold, device)
    presentation.macs(count_run(run, request, images), as_json=json)


def latency(
    run: Annotated[Positional[Path | None], arg(metavar="[RUN]")] = None,
    model: str | None = None,
    open_share: float | None = None,
    points: LayersName | None = None,
    block: int | None = None,
    image_size: int | None = None,
    batches: tuple[int, ...] = (1, 8, 16, 128),
    data: str | None = None,
    seconds: float = 20.0,
    threads: Threads = None,
    figure: Path | None = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Time a run, or with --model any network, beside its dense, exported and slimmed forms.

    Args:
        run: Run directory, or a name from `gaternet models`; its own gates, on test images. Of a
            run without gates, such as `compress --one-mask` leaves, the dense forms.
        model: A network by name instead, such as timm/resnet50, with random gates and no gater.
        open_share: With --model: share of each layer's gates that is open; none: 0.5.
        points: With --model: gated layers; outer are the paper's, inner those before; none: inner.
        block: With --model: neighbouring filters that one gate opens or closes; none: 16.
        image_size: With --model: side of the images; none: the network's own.
        batches: Images that are computed at once; small batches are several in turn, of 31 images
            at most.
        data: With a run: folder or hub name of the images; none: the hub name of its data set.
        seconds: For each batch size, at least; every form is timed seven times or more.
        figure: PNG or SVG file to draw into; none: no figure.
    """
    from gaternet.bench import presentation
    from gaternet.bench.latency import LatencyRequest, RandomGatesRequest, time_network, time_run
    from gaternet.bench.latency_figure import check_figure

    if (run is None) == (model is None):
        raise UsageError("give a run directory, or --model and a network's name")
    if figure is not None:
        check_figure(figure)
    request = LatencyRequest(batches, seconds, threads, device)
    if run is not None:
        of_model = {"open-share": open_share, "points": points, "block": block}
        _check_absent(of_model | {"image-size": image_size}, "--model; a run has gates of its own")
        found = time_run(run, request, data)
    else:
        _check_absent({"data": data}, "a run; --model takes random images")
        wanted = RandomGatesRequest(
            str(model),
            0.5 if open_share is None else open_share,
            points or "inner",
            16 if block is None else block,
            image_size,
        )
        found = time_network(wanted, request)
    presentation.latencies(found, figure, as_json=json)


def _check_absent(flags: Mapping[str, object], where: str) -> None:
    """Raise UsageError for a flag that was given where it says nothing."""
    for name, value in flags.items():
        if value is not None:
            raise UsageError(f"--{name} goes with {where}")


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    data: str | None = None,
    rounds: int = 9,
    steps: int = 8,
    threads: Threads = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> None:
    """Measure what training costs beyond its networks' own steps, as ratios, in about five minutes.

    Whatever is compared is timed in turns. Checkpoints go below the current directory.

    Args:
        recipe: A gated recipe from `gaternet recipes list`.
        data: Folder or hub name of the images; none: the hub name of the recipe's data set.
        rounds: Pairs that every ratio is the median of.
        steps: Length of the pieces of an epoch that are timed.
    """
    from gaternet.bench import presentation
    from gaternet.bench.training_pace import PaceRequest, measure_pace
    from gaternet.recipes import get

    request = PaceRequest(rounds, steps, threads, device)
    presentation.training_pace(measure_pace(get(recipe), data, request), as_json=json)
