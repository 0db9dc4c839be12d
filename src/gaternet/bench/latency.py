"""What a run, or any network by name, takes in milliseconds: dense, masked, compiled, slim."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gaternet import backbones, saved_models
from gaternet.analysis import collect
from gaternet.backbones import BackboneConfig
from gaternet.binarizers import GateForm
from gaternet.commands import split_images
from gaternet.compression import compress
from gaternet.data.batches import first_images, normalised_batches, spread
from gaternet.errors import UsageError, UserError
from gaternet.gate_points import GatePoint, Layers, find_gate_points
from gaternet.graph import trace
from gaternet.model import GatedModel, GaterNet
from gaternet.runtime.forms import Forms, dense_forms, given_gates, own_gates
from gaternet.runtime.latency import LatencyRow, measure
from gaternet.training.compute import choose_device, hardware
from gaternet.training.run import Run, open_run

CLASSES = 1000
"""Of a network that is measured with fresh weights."""

RECORDED = 2000
"""Training images, from all over the split, that decide which filters of a run never open."""

AT_ONCE = 250
"""Of these images, at most."""

IN_TURN = 31
"""Images that are timed in small batches, at most; of large ones there is one batch."""


@dataclass(frozen=True)
class LatencyRequest:
    """How to measure.

    seconds: for each batch size, at least
    threads: of the CPU; None: PyTorch's own choice
    """

    batches: tuple[int, ...]
    seconds: float
    threads: int | None
    device: str


@dataclass(frozen=True)
class RandomGatesRequest:
    """A network by name, and gates that are drawn for each image.

    open_share: share of each layer's gates that is open
    image_size: side of the images; None: the network's own
    """

    network: str
    open_share: float
    layers: Layers
    block: int
    image_size: int | None


@dataclass(frozen=True)
class Latencies:
    """What was measured, and what could not be: variant → why."""

    title: str
    hardware: str
    rows: tuple[LatencyRow, ...]
    missing: dict[str, str]


def time_run(path: Path, request: LatencyRequest, data: str | None = None) -> Latencies:
    """Measure a run's newest checkpoint on test images, its gater included where it has one.

    Raises UserError where there is none or its gates are local, or where data do not go with it.
    """
    device = _prepare(request)
    run = open_run(path)
    model = saved_models.load(path).to(device)
    if isinstance(model, GatedModel) and not isinstance(model, GaterNet):
        raise UsageError(
            f"{path} has local gates, which a layer decides on from its own input: only filters "
            "that a gater chose before can be skipped, so there is nothing to time beside masks"
        )
    if isinstance(model, GaterNet) and model.binarizer.form is not GateForm.HARD:
        raise UsageError(f"{path} has gates between 0 and 1: what is half open cannot be skipped")
    batches = {batch: timed_batches(run, data, batch, device) for batch in request.batches}
    small: GaterNet | None = None
    missing: dict[str, str] = {}
    if isinstance(model, GaterNet):
        small, missing = _compressed(model, run, data, device)

    def make(batch: int) -> Forms:
        if isinstance(model, GaterNet):
            return own_gates(model, small, batches[batch])
        return dense_forms(model, batches[batch])

    found = _time_all(run.config.recipe.name, make, request, device)
    return replace(found, missing=missing | found.missing)


def time_network(wanted: RandomGatesRequest, request: LatencyRequest) -> Latencies:
    """Measure a network with fresh weights, under gates that are drawn for each image.

    Raises UsageError where it cannot be gated so.
    """
    if not 0 <= wanted.open_share <= 1:
        raise UsageError(f"--open-share {wanted.open_share} is not a share: give one from 0 to 1")
    device = _prepare(request)
    size = {} if wanted.image_size is None else {"image_size": wanted.image_size}
    try:
        backbone = backbones.create(BackboneConfig(wanted.network, CLASSES, **size)).eval()
        channels, *sides = trace(backbone).input_size
        graph = trace(backbone, (channels, *([wanted.image_size] * 2 if size else sides)))
        points = find_gate_points(graph, wanted.layers, wanted.block)
    except ValueError as error:
        raise UsageError(f"--model {wanted.network}: {error}") from None
    backbone = backbone.to(device)
    draws = torch.Generator().manual_seed(0)

    def make(batch: int) -> Forms:
        count = batch * _odd(IN_TURN // batch)
        images = torch.randn(count, *graph.input_size, generator=draws).to(device)
        gates = random_gates(points, wanted.open_share, count, draws).to(device)
        return given_gates(backbone, points, images.split(batch), gates.split(batch))

    return _time_all(wanted.network, make, request, device)


def timed_batches(
    run: Run, data: str | None, batch: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return normalised test images from all over the split, in batches (batch, C, H, W).

    Raises UsageError where they do not fill one.
    """
    images = torch.cat(list(_images(run, "test", data, batch * _odd(IN_TURN // batch), device)))
    if len(images) < batch:
        raise UsageError(f"--batches {batch}: there are only {len(images)} test images")
    return images.split(batch)[: _odd(len(images) // batch)]


def _odd(count: int) -> int:
    """Return the last odd number up to `count`, or 1.

    Of what is run twice, once untimed and then timed, an even number would leave half untimed.
    """
    return max(1, count - 1 + count % 2)


def random_gates(
    points: Sequence[GatePoint], open_share: float, batch: int, draws: torch.Generator
) -> Tensor:
    """Draw gates (N, G), for each image as many open ones at every gate point."""
    parts = []
    for point in points:
        order = torch.rand(batch, point.gates, generator=draws).argsort(dim=1)
        parts.append((order < round(open_share * point.gates)).float())
    return torch.cat(parts, dim=1)


def _prepare(request: LatencyRequest) -> torch.device:
    if min(request.batches, default=0) < 1:
        raise UsageError("--batches: each must be at least 1")
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"--threads {request.threads}: at least 1")
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    return choose_device(request.device)


def _time_all(
    title: str, make: Callable[[int], Forms], request: LatencyRequest, device: torch.device
) -> Latencies:
    rows: list[LatencyRow] = []
    missing: dict[int, dict[str, str]] = {}
    for batch in request.batches:
        forms = make(batch)
        rows += measure(forms, batch, request.seconds, device)
        missing[batch] = forms.missing
    return Latencies(title, hardware(device), tuple(rows), _not_measured(missing))


def _not_measured(missing: Mapping[int, Mapping[str, str]]) -> dict[str, str]:
    """Return why forms could not be measured, with the batch size where it is not so for all."""
    found = {}
    for batch, reasons in missing.items():
        for variant, reason in reasons.items():
            always = all(variant in others for others in missing.values())
            found[variant if always else f"{variant} ({batch} at once)"] = reason
    return found


def _compressed(
    model: GaterNet, run: Run, data: str | None, device: torch.device
) -> tuple[GaterNet | None, dict[str, str]]:
    """Return the model without the filters that none of some training images opens, or why not."""
    record = collect(model, _images(run, "train", data, RECORDED, device))
    try:
        return compress(model, record), {}
    except UserError as error:
        return None, {"compressed": str(error)}


def _images(
    run: Run, split: str, data: str | None, count: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield normalised images of a split in batches, (n, C, H, W), `count` in all or all."""
    found = spread(split_images(run, data, split), count)
    batches = normalised_batches(found, run.config.recipe.data, device, min(count, AT_ONCE))
    return first_images(batches, count)
