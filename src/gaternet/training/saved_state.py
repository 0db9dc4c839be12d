"""What a checkpoint holds of a training besides its networks, checked before anything goes on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from gaternet import checkpoint
from gaternet.checkpoint import Verified
from gaternet.errors import UserError
from gaternet.given_files import validate

OPTIMIZER = "optimizer"
"""Name of the optimiser's tensors in a checkpoint, PARAMETER.SLOT each."""
PROGRESS = "progress"
TRAINED = "trained"
"""Name of the weights that are trained, where those that are evaluated are their average."""

Sums = tuple[float, float, float, float]
"""Over an epoch's samples: loss, wrong predictions, share of gates open; and how many they are."""


@dataclass(frozen=True)
class Within:
    """How far an epoch has come: its images so far, the sums of every process, its seconds."""

    images: int
    sums: tuple[Sums, ...]
    seconds: float

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Progress:
    """Where a training stands: finished epochs, and how far it is within the next one."""

    epoch: int
    averaged_updates: int
    skipped: tuple[str, ...]
    within: Within | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


def read_progress(found: Verified) -> Progress:
    """Return where a checkpoint stands; raise UserError where it does not say so, or wrongly."""
    values = found.read_json(PROGRESS)
    file = found.path / f"{PROGRESS}.json"
    try:
        progress = validate(Progress, values)
    except ValueError as error:
        raise UserError(f"{file} is not the progress of a training: {error}") from None
    epoch, step = checkpoint.position(found.path)
    within = progress.within
    if progress.epoch != epoch or (within is not None) != bool(step):
        raise UserError(f"{file} belongs to another checkpoint than {found.path.name}")
    if progress.averaged_updates < 0 or (within and (within.images < 1 or not within.sums)):
        raise UserError(f"{file} is not the progress of a training: it counts less than nothing")
    return progress


def tensors_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return what an optimiser keeps of a model's parameters, as PARAMETER.SLOT."""
    return {
        f"{name}.{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    found: Verified,
    kept: Mapping[str, torch.Size | None],
) -> None:
    """Give an optimiser what a checkpoint keeps of a model's parameters.

    kept: what such an optimiser keeps of each: slot → its shape; None: the parameter's. One that
        keeps nothing takes nothing

    Raises UserError where that belongs to other parameters, or to another kind of optimiser.
    """
    slots = _slots(found) if kept else {}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, values in slots.items():
        if fault := _misfit(name, values, parameters.get(name), kept):
            raise UserError(f"{found.path / f'{OPTIMIZER}.safetensors'} {fault}")
    for name, values in slots.items():
        parameter = parameters[name]
        for slot, value in values.items():
            # In the parameter's own memory layout, which the fused step takes for granted.
            like = parameter if kept[slot] is None else value
            optimizer.state[parameter][slot] = torch.empty_like(like).copy_(value)


def _slots(found: Verified) -> dict[str, dict[str, Tensor]]:
    """Return what a checkpoint's optimiser kept: parameter → slot → tensor."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in found.read_tensors(OPTIMIZER).items():
        name, _, slot = key.rpartition(".")
        slots.setdefault(name, {})[slot] = value
    return slots


def _misfit(
    name: str,
    values: Mapping[str, Tensor],
    parameter: Tensor | None,
    kept: Mapping[str, torch.Size | None],
) -> str | None:
    """Return why the optimiser that goes on cannot take what another one kept of a parameter."""
    if parameter is None:
        return f"belongs to another network: no {name} is trained here"
    if values.keys() != kept.keys():
        there, here = (", ".join(sorted(slots)) for slots in (values, kept))
        return f"belongs to another optimiser: of {name} it keeps {there}, and this one {here}"
    for slot, value in values.items():
        wanted = kept[slot]
        shape = parameter.shape if wanted is None else wanted
        if value.shape != shape:
            return (
                f"belongs to another network: {name}.{slot} has shape {tuple(value.shape)} there "
                f"and {tuple(shape)} here"
            )
    return None
