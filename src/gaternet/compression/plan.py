"""What goes: filters that never open, gates that never close; and what that was decided on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import ConfigDict
from torch import fx

from gaternet.binarizers import GateForm
from gaternet.compression.states import FixedGates, Mask, States, find_states, kept_whole
from gaternet.errors import UserError
from gaternet.gate_points import GatePoint, name_gate_points
from gaternet.given_files import compose_json, read_json, validate
from gaternet.graph import Graph, trace
from gaternet.model import GatedModel, GaterNet
from gaternet.rivals import RandomGates

if TYPE_CHECKING:
    from gaternet.analysis.record import GateRecord


@dataclass(frozen=True)
class PointPlan:
    """The gates of one gate point, by number from 0.

    removed: their filters go; always_on: their filters stay open, the gates go
    unneeded: gates that go because nobody needs their filters any more
    kept: how many gates are left
    """

    name: str
    channels: int
    block: int
    kept: int
    removed: tuple[int, ...]
    always_on: tuple[int, ...]
    unneeded: tuple[int, ...]

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        gone = [*self.removed, *self.always_on, *self.unneeded]
        fits = 1 <= self.block <= self.channels and self.channels % self.block == 0
        if not fits or self.kept + len(gone) != self.gates or len(set(gone)) != len(gone):
            raise ValueError(
                f"{self.name}: {self.kept} gates kept and {len(gone)} gone are not, each once, the "
                f"gates of {self.channels} channels in blocks of {self.block}"
            )
        if not all(0 <= gate < self.gates for gate in gone):
            raise ValueError(f"{self.name}: gates go from 0 to {self.gates - 1}")

    @property
    def gates(self) -> int:
        """The number of its gates before."""
        return self.channels // self.block

    def channels_of(self, gates: Sequence[int]) -> Mask:
        """Return which channels belong to some of its gates, (channels,)."""
        return np.repeat(np.isin(np.arange(self.gates), gates), self.block)


@dataclass(frozen=True)
class CompressionPlan:
    """What to remove from one model, and what that was decided on.

    model: `fingerprint` of the model; images: how many, of which split, gates were recorded on
    tolerance: gates that opened for fewer images went as well; 0: none that ever opened
    kept_whole: layer → why it keeps channels that nobody needs
    """

    model: str
    images: int
    split: str | None
    tolerance: int
    points: tuple[PointPlan, ...]
    kept_whole: Mapping[str, str]

    __pydantic_config__ = ConfigDict(extra="forbid")

    def gates(self, what: str) -> tuple[int, ...]:
        """Return columns of the model's gates (N, G): "removed", "always_on" or "unneeded"."""
        columns, start = [], 0
        for point in self.points:
            columns += [start + gate for gate in getattr(point, what)]
            start += point.gates
        return tuple(columns)

    @property
    def total(self) -> int:
        """G, the number of gates before."""
        return sum(point.gates for point in self.points)

    @property
    def one_mask(self) -> bool:
        """Whether every gate goes, so that all images have the same filters."""
        return not any(point.kept for point in self.points)


def plan(
    model: GaterNet,
    record: "GateRecord",
    tolerance: int = 0,
    *,
    one_mask: bool = False,
    split: str | None = None,
) -> CompressionPlan:
    """Plan what goes from a model by its gates on training or validation images.

    A gate that is open for no image, or for fewer than `tolerance`, goes with its filters; one that
    is open for every image goes from the gater. Soft gates that never close stay: they scale.

    one_mask: every gate goes, from then on open for all images if it was open for more than half of
        them, and with its filters if it was not; `tolerance` plays no part

    split: what the record's images are, for the reader of the plan

    Raises UserError where the record is another model's or no gate would be left, and for one mask
    of soft gates, which scale their filters.
    """
    _check(model, record, tolerance)
    counts = record.open_counts()
    hard = model.binarizer.form != GateForm.SOFT
    if one_mask and not hard:
        raise UserError("soft gates scale their filters: no mask of 0 and 1 does the same")
    drafts = []
    for point in model.points:
        opened = counts[model.slices[point.name]]
        off = 2 * opened <= len(record) if one_mask else opened < max(tolerance, 1)
        on = ~off if one_mask else (opened == len(record)) & ~off & hard
        drafts.append(_point_plan(point, off, on, np.zeros_like(off)))
    graph = trace(model.backbone, model.input_size)
    states = fixed_states(graph, drafts)
    points = []
    for draft, point in zip(drafts, model.points, strict=True):
        present = states.present[gated_node(graph, draft)].reshape(-1, draft.block).any(axis=1)
        off, on = (np.isin(np.arange(draft.gates), g) for g in (draft.removed, draft.always_on))
        points.append(_point_plan(point, off, on, ~present & ~off & ~on))
    if not one_mask and not any(point.kept for point in points):
        raise UserError(
            f"none of {len(counts)} gates depends on the image over {len(record)} images: nothing "
            "is left for a gater to decide; --one-mask makes a plain network of it"
        )
    return CompressionPlan(
        fingerprint(model), len(record), split, tolerance, tuple(points), kept_whole(states)
    )


def fixed_states(graph: Graph, points: Sequence[PointPlan]) -> States:
    """Return what every channel of a backbone is with the plan's gates fixed.

    Raises ValueError where the backbone has no such gate points.
    """
    gates: dict[fx.Node, FixedGates] = {}
    for point in points:
        found = name_gate_points(graph, [point.name])[0]
        if found.channels != point.channels:
            raise ValueError(
                f"the plan has {point.channels} channels at `{point.name}`, the backbone has "
                f"{found.channels}"
            )
        closed, on = point.channels_of(point.removed), point.channels_of(point.always_on)
        gates[gated_node(graph, point)] = FixedGates(closed, ~closed & ~on)
    return find_states(graph, gates)


def gated_node(graph: Graph, point: PointPlan) -> fx.Node:
    """Return the node of a gate point."""
    (node,) = graph.outputs[point.name]
    assert node is not None
    return node


def fingerprint(model: GatedModel) -> str:
    """Return the SHA-256 of what decides a model's gates and outputs: weights and threshold."""
    digest = hashlib.sha256(f"threshold {float(model.binarizer.threshold)!r}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_fits(plan: CompressionPlan, model: GatedModel) -> None:
    """Raise UserError where the plan was made for another model."""
    planned = [(point.name, point.channels, point.block) for point in plan.points]
    if planned != [(point.name, point.channels, point.block) for point in model.points]:
        raise UserError(
            f"the plan is for {plan.total:,} gates {_spell(plan.points)}, the model has "
            f"{model.gate_count:,} {_spell(model.points)}: make a plan of this model"
        )
    if (found := fingerprint(model)) != plan.model:
        raise UserError(
            f"the plan was made for weights {plan.model[:12]}…, the model has {found[:12]}… (of "
            "another checkpoint, or the threshold was moved): make a plan of this model"
        )


def write_plan(plan: CompressionPlan, file: Path) -> None:
    """Write a plan as JSON."""
    try:
        file.write_text(compose_json(asdict(plan)))
    except ValueError as error:
        raise UserError(f"cannot write {file}, since it could not be read again: {error}") from None
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def read_plan(file: Path) -> CompressionPlan:
    """Read a plan; raise UserError where the file holds none."""
    try:
        return validate(CompressionPlan, read_json(file))
    except ValueError as error:
        raise UserError(f"{file} is not a plan: {error}") from None


def _check(model: GaterNet, record: "GateRecord", tolerance: int) -> None:
    from gaternet.compression.network import CompressedBackbone

    if not isinstance(model, GaterNet):
        raise UserError(f"only a network with a gater is compressed, not a {type(model).__name__}")
    if isinstance(model.binarizer, RandomGates):
        raise UserError("random gates never stay closed: there is nothing to compress")
    if isinstance(model.backbone, CompressedBackbone):
        raise UserError("this model is compressed already: compress the one that it was made from")
    if record.slices != model.slices:
        raise UserError(
            f"the record holds {record.gate_count:,} gates {_spell_names(record.slices)}, the "
            f"model has {model.gate_count:,} {_spell_names(model.slices)}: record this model's"
        )
    if not 0 <= tolerance < len(record):
        raise UserError(
            f"tolerance {tolerance}: gates open for fewer images go, so it is at least 0 and less "
            f"than the {len(record)} recorded images"
        )


def _point_plan(point: GatePoint, off: Mask, on: Mask, unneeded: Mask) -> PointPlan:
    gone = (tuple(np.flatnonzero(gates).tolist()) for gates in (off, on, unneeded))
    kept = int((~off & ~on & ~unneeded).sum())
    return PointPlan(point.name, point.channels, point.block, kept, *gone)


def _spell(points: Sequence[GatePoint] | Sequence[PointPlan]) -> str:
    return _spell_names({point.name: slice(0, point.gates) for point in points})


def _spell_names(slices: Mapping[str, slice]) -> str:
    names = list(slices)
    return f"at {len(names)} points ({names[0]} … {names[-1]})"
