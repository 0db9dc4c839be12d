"""Draws for gates: each sample's own where there are keys, else from torch's generator.

All have the shape of the gate logits that they are for. `salt` says what they are for and `start`
which of a model's gates they belong to, so that gates that are decided one layer after the other
get draws that are independent of each other.
"""

from enum import IntEnum

import torch
from torch import Tensor

from gaternet import randomness

_MASK = 0xFFFFFFFF
_STRIDE = 0x9E3779B1  # odd, so every start changes the keys in its own way


class Salt(IntEnum):
    """Separates the draws that a sample's one key serves; any words would do."""

    GATES = 0
    BRANCH = 0x68E31DA5
    DROPOUT = 0xB5297A4D
    UNGATED = 0x1B56C4E9


def wide(x: Tensor) -> torch.dtype:
    """float32, or float64 where `x` is: in bfloat16 noise and threshold would be rounded away."""
    return torch.promote_types(x.dtype, torch.float32)


def uniform(logits: Tensor, keys: Tensor | None, salt: Salt = Salt.GATES, start: int = 0) -> Tensor:
    """Return draws from [0, 1), (N, G) float32."""
    if keys is None:
        return torch.rand_like(logits, dtype=torch.float32)
    return randomness.uniform(_salted(keys, salt, start), logits.shape[1])


def normal(logits: Tensor, keys: Tensor | None, start: int = 0) -> Tensor:
    """Return draws from N(0, 1), (N, G)."""
    if keys is None:
        return torch.randn_like(logits, dtype=wide(logits))
    return randomness.normal(_salted(keys, Salt.GATES, start), logits.shape[1])


def logistic(logits: Tensor, keys: Tensor | None, start: int = 0) -> Tensor:
    """Return draws from the standard logistic distribution, (N, G) float32.

    This is the difference of two Gumbel draws: what a choice between two classes, on and off, adds.
    """
    u = uniform(logits, keys, Salt.GATES, start)
    return torch.logit(u, eps=2.0**-24)  # the spacing of the draws; 0 would give −∞


def _salted(keys: Tensor, salt: Salt, start: int) -> Tensor:
    return keys ^ (int(salt) ^ (start * _STRIDE & _MASK))
