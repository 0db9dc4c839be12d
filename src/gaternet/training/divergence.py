"""Training that diverges: no step is taken on what is not finite, and the layer is named."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gaternet.errors import UserError

READ_EVERY = 16
"""Steps between two looks at the device, the same in every process: a host that waits for each
step cannot prepare the next one."""


class Sentinel:
    """Takes an optimiser's steps until gradients are NaN or infinite, and none from there on.

    The fused step looks for itself, on the device, and nothing waits for it. (RMSProp has none:
    there each step waits.) One norm of all gradients decides; squares that overflow float32 count
    as infinite. Processes average their gradients first, so all hold back at the same step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._held = torch.zeros((), device=device)  # 1.0 from the first bad gradients on
        self._held_steps = torch.zeros((), device=device)
        self._fused = isinstance(optimizer, torch.optim.SGD)
        if self._fused:
            optimizer.found_inf = self._held  # type: ignore[attr-defined]  # as GradScaler does

    def step(self) -> None:
        """Take a step, or hold it back."""
        groups = self._optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        bad = ~get_total_norm(gradients).isfinite()
        torch.maximum(self._held, bad.to(self._held), out=self._held)
        self._held_steps += self._held
        if self._fused or not self._held:
            self._optimizer.step()

    def held_steps(self) -> int:
        """Return how many steps were held back since gradients were bad; waits for the device."""
        return int(self._held_steps)


def backward(loss: Tensor, share: float) -> None:
    """Add the gradients of loss · share to the parameters'; all are NaN where the loss is not
    finite, so that whoever sees the gradients, another process too, sees the loss."""
    loss.backward(share + 0.0 * loss.detach())


def check_finite(groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise UserError, naming a tensor, where a state to be kept holds NaN or infinite values."""
    for group in groups.values():
        floats = {name: t.detach() for name, t in group.items() if t.is_floating_point()}
        if floats and not get_total_norm(floats.values()).isfinite():
            # A norm may overflow where no value does.
            for name, tensor in floats.items():
                if not tensor.isfinite().all():
                    raise UserError(
                        f"{name} holds NaN or infinite values, so no checkpoint was written; those "
                        "of earlier epochs are kept. Start again in a new --out with a lower "
                        "--optimizer.lr"
                    )


class Origin(NamedTuple):
    """Where a step went wrong: its loss, and the first place with a value that is not finite."""

    loss: float
    place: str | None


def find_origin(model: nn.Module, losses: Callable[[], Iterable[Tensor]]) -> Origin:
    """Compute a step again, backwards too, and return where its first bad value is.

    In the order of computation: a layer's weights, what it is given, what comes out, the loss, and
    then the gradients, from the last layer to the first.
    """
    total, found = 0.0, list[str]()
    with _watched(model, found):
        for loss in losses():
            total += float(loss.detach())
            _note(found, "the loss", loss)
            loss.backward()
    return Origin(total, found[0] if found else None)


def describe(origins: Iterable[Origin], epoch: int, step: int) -> str:
    """Return what to say of a step that was held back; `origins` are those of all processes."""
    every = list(origins)
    places = [
        f"{origin.place}{f' in process {rank}' if len(every) > 1 else ''}"
        for rank, origin in enumerate(every)
        if origin.place
    ]
    bad = [origin.loss for origin in every if not abs(origin.loss) < float("inf")]
    what = f"the loss became {bad[0]}" if bad else "gradients became infinite or NaN"
    where = places[0] if places else "the sum of the gradients, no layer's own"
    return (
        f"{what} in epoch {epoch}, step {step}, first in {where}. That step was not taken, and "
        "checkpoints of earlier epochs are kept. Start again in a new --out with a lower "
        "--optimizer.lr"
    )


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Have bad values noted in the order in which they come up."""
    handles: list[Any] = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(_before, found, name)))
        handles.append(module.register_forward_hook(partial(_after, found, name)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            see = partial(_note_gradient, found, f"the gradient of {name}")
            handles.append(parameter.register_post_accumulate_grad_hook(see))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(found: list[str], name: str, module: nn.Module, inputs: tuple[object, ...]) -> None:
    for own, parameter in module.named_parameters(recurse=False):
        _note(found, f"{name}.{own}" if name else own, parameter)
    for tensor in _tensors(inputs):
        _note(found, f"what {name or 'the network'} is given", tensor)


def _after(
    found: list[str], name: str, module: nn.Module, inputs: tuple[object, ...], output: object
) -> None:
    place = f"the output of {name or 'the network'}"
    for tensor in _tensors(output):
        _note(found, place, tensor)
        if tensor.requires_grad:
            tensor.register_hook(partial(_note, found, f"the gradient at {place}"))


def _note_gradient(found: list[str], place: str, parameter: Tensor) -> None:
    assert parameter.grad is not None
    _note(found, place, parameter.grad)


def _note(found: list[str], place: str, tensor: Tensor) -> None:
    if not found and not tensor.detach().isfinite().all():
        found.append(place)


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
