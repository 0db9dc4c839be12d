"""A network is tried before a run begins: on images that have a size and no values."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gaternet.errors import UserError
from gaternet.tracing import BATCH, skeleton_of


def try_network(network: nn.Module, input_size: tuple[int, int, int], classes: int | None) -> None:
    """Let a plain network train on images of `input_size` (C, H, W); nothing is computed.

    classes: its outputs must be logits (N, classes); None takes whatever comes out

    Raises UserError with the reason where the network cannot take such images, or gives no logits.
    """
    try:
        output = _forward(network, input_size)
    except Exception as error:  # whatever a network raises: there is no end of kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        size = "×".join(str(length) for length in input_size)
        raise UserError(
            f"the network cannot take images of {size} ({lines[0].rstrip('.')}): name one for such "
            "images"
        ) from None
    found = getattr(output, "shape", type(output).__name__)
    if classes is not None and found != (BATCH, classes):
        shape = tuple(found) if isinstance(found, torch.Size) else found
        raise UserError(
            f"the network gives {shape} for {BATCH} images, not logits {(BATCH, classes)}"
        )


def _forward(network: nn.Module, input_size: tuple[int, int, int]) -> Any:
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = skeleton_of(network, fake_mode).train()
    with fake_mode, torch.no_grad(), _unlogged():
        return skeleton(torch.empty(BATCH, *input_size))


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep PyTorch from logging a failure that becomes a message of ours."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
