"""What training costs beyond its networks' own steps, as ratios: `gaternet bench train`."""

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gaternet.bench.training_rounds import Batch, Contest, Pieces, fitting
from gaternet.data.batches import Images
from gaternet.data.image_set import ImageSet
from gaternet.data.sources import load
from gaternet.errors import UsageError, UserError
from gaternet.runtime.latency import FEWEST, median_ranks
from gaternet.training.compute import ComputePlan, choose_device, hardware, plan
from gaternet.training.config import Recipe, parts
from gaternet.training.phases import split_probe
from gaternet.training.run import Run, RunConfig, create_run
from gaternet.training.saved_memory import saved_bytes
from gaternet.training.starting import build_model
from gaternet.training.tracking import Board
from gaternet.training.trainer import Trainer

Seconds = NDArray[np.float64]
"""Of each round."""

USUAL_LOOP = Path(__file__).parents[3] / "benchmarks" / "usual_loop.py"


@dataclass(frozen=True)
class PaceRequest:
    """How to measure.

    rounds: pairs that every ratio is taken from
    steps: length of the pieces of an epoch that a round times
    threads: of the CPU; None: PyTorch's own choice
    """

    rounds: int
    steps: int
    threads: int | None
    device: str


@dataclass(frozen=True)
class Ratio:
    """A median over the rounds, and in which interval it lies with 95 % confidence.

    interval: None where there were too few rounds for one
    """

    median: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class TrainingPace:
    """What was measured, and what could not be: ratio → why.

    ratios: step_ratio, a gated step / a step of each of its plain networks; epoch_ratio, an epoch
        on the data / as many steps on one resident batch; of an epoch's time data_share, until its
        batches are there, logging_share, writing its metrics, checkpoint_share and probe_share;
        memory_ratio, bytes saved for the backward, gated / plain networks; loop_ratio, images per
        second / the usual loop's
    milliseconds: medians; of a step for gated, its plain networks, epoch, resident, usual and data
    """

    recipe: str
    data: str
    hardware: str
    batch_size: int
    images_per_second: Ratio
    ratios: dict[str, Ratio]
    milliseconds: dict[str, float]
    saved_megabytes: dict[str, float]
    request: PaceRequest
    missing: dict[str, str]


def measure_pace(recipe: Recipe, where: str | Path | None, request: PaceRequest) -> TrainingPace:
    """Measure the training of a gated recipe on its data; nothing is kept of what is trained.

    Raises UsageError for a recipe without gates, and where it has no hub name and `where` is None.
    """
    device = _prepare(recipe, where, request)
    data = recipe.data
    images = load(where or str(data.hub), data, "train", data.image_size)
    compute = plan(recipe.compute, device)
    gated = Pieces(build_model(recipe), recipe, compute, request.steps)
    gated.supply = gated.endless(images)
    plain = {
        name: Trainer(build_model(one), one, compute) for name, one in plain_recipes(recipe).items()
    }
    for trainer in (gated, *plain.values()):
        trainer.set_stage(0.0)
    batch = next(gated.supply)
    memory = {
        name: _saved(one, fitting(batch, one)) for name, one in (plain | {"gated": gated}).items()
    }
    usual, missing = _usual_loop(recipe, images, compute)
    probe = split_probe(recipe, images)[1]
    with _run_of(recipe, images) as run:
        contest = Contest(gated, plain, images, batch, probe, run, Board(run), usual)
        contest.round(1)  # allocates and, where it does, compiles
        rounds = [contest.round(2 + number) for number in range(request.rounds)]
    times = {name: np.array([one[name] for one in rounds]) for name in rounds[0]}
    size = recipe.schedule.batch_size
    return TrainingPace(
        recipe.name,
        images.name,
        hardware(device),
        size,
        ratio_of(np.full(request.rounds, float(size)), times["epoch"]),
        _ratios(times, memory, times["epoch"] * (len(images) // size)),
        {name: 1e3 * float(np.median(seconds)) for name, seconds in times.items()},
        {name: count / 1e6 for name, count in memory.items()},
        request,
        missing,
    )


def plain_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """Return how the plain networks that a gated one is made of train, with its own settings."""
    gating, data = recipe.gating, recipe.data
    plain = replace(recipe, gating=None, pretrain=())
    found = {"backbone": plain}
    if gating and gating.gater and "gater" in parts(recipe):
        size = gating.input_size or data.image_size
        seen = replace(data, image_size=size, shorter_side=None)
        found["gater"] = replace(plain, backbone=gating.gater, data=seen)
    return found


def _prepare(recipe: Recipe, where: str | Path | None, request: PaceRequest) -> torch.device:
    if recipe.gating is None:
        raise UsageError(
            f"{recipe.name} has no gates, and it is their training that is measured: "
            "`gaternet recipes list gated` lists recipes that have"
        )
    if where is None and recipe.data.hub is None:
        raise UsageError(f"{recipe.name} has no hub name: say where its images are with --data")
    for name in ("rounds", "steps", "threads"):
        count = getattr(request, name)
        if count is not None and count < 1:
            raise UsageError(f"--{name} {count}: at least 1")
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    return choose_device(request.device)


def _saved(trainer: Trainer, batch: Batch) -> int:
    trainer.model.train()
    part = [tensor.chunk(trainer.recipe.schedule.accumulate)[0] for tensor in batch]
    return saved_bytes(lambda: trainer.objective(*part), trainer.model.parameters())


@contextmanager
def _run_of(recipe: Recipe, images: Images) -> Iterator[Run]:
    """Make a run directory below the current one, where runs go, and remove it: temporary files may
    lie in memory, where a checkpoint costs nothing."""
    config = RunConfig(recipe, images.name, images.fingerprint, images.classes)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".gaternet-", dir=Path.cwd())
    except OSError as error:
        raise UserError(
            f"cannot write {Path.cwd()}: {error.strerror}; go to a directory for runs"
        ) from None
    with folder as name:
        yield create_run(Path(name) / "run", config)


def _usual_loop(
    recipe: Recipe, images: Images, compute: ComputePlan
) -> tuple[Iterator[int] | None, dict[str, str]]:
    """Return the steps of the usual loop, or why there is no ratio to it."""
    augmentation, schedule, gating = recipe.augmentation, recipe.schedule, recipe.gating
    reasons = {
        "the usual loop is in a checkout's benchmarks/, not in a package": not USUAL_LOOP.is_file(),
        "the usual loop has its images in memory": not isinstance(images, ImageSet),
        "the usual loop crops and mirrors only": bool(
            augmentation.cutout or augmentation.smallest_area
        ),
        "the usual loop has SGD, whole batches and no averaged weights": (
            recipe.optimizer.kind != "sgd" or schedule.accumulate > 1 or schedule.ema > 0
        ),
        "the usual loop's loss is cross entropy and the share of open gates": bool(
            recipe.optimizer.label_smoothing
            or (gating and (gating.target_rate is not None or gating.budget is not None))
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            return None, {"loop_ratio": reason}
    spec = importlib.util.spec_from_file_location("usual_loop", USUAL_LOOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train(build_model(recipe), images, recipe, compute.device, compute.workers), {}


def ratio_of(numerators: Seconds, denominators: Seconds) -> Ratio:
    """Return the median of the ratios, round by round."""
    ratios = np.sort(numerators / denominators)
    if len(ratios) < FEWEST:
        return Ratio(float(np.median(ratios)), None)
    low, high = median_ranks(len(ratios))
    return Ratio(float(np.median(ratios)), (float(ratios[low]), float(ratios[high])))


def _ratios(
    times: Mapping[str, Seconds], memory: Mapping[str, int], epoch: Seconds
) -> dict[str, Ratio]:
    """Return all ratios; `epoch` is what a whole one takes, without its checkpoint."""
    plain = [name for name in memory if name != "gated"]
    saved = memory["gated"] / sum(memory[name] for name in plain)
    ratios = {
        "step_ratio": ratio_of(times["gated"], np.sum([times[name] for name in plain], axis=0)),
        "epoch_ratio": ratio_of(times["epoch"], times["resident"]),
        "data_share": ratio_of(times["data"], times["epoch"]),
        "logging_share": ratio_of(times["logging"], epoch),
        "checkpoint_share": ratio_of(times["checkpoint"], epoch + times["checkpoint"]),
        "probe_share": ratio_of(times["probe"], epoch + times["probe"]),
        "memory_ratio": Ratio(saved, (saved, saved)),
    }
    if "usual" in times:
        ratios["loop_ratio"] = ratio_of(times["usual"], times["epoch"])
    return ratios
