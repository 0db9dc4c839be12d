"""Random draws that are counted, not consumed.

Every draw is a function of (seed, purpose, epoch, sample index) and of nothing else: not of the
order of the calls, the batch that a sample falls into, the number of workers or of processes.
Exact resume and any world size follow from that. The generator is a 32-bit integer hash with low
bias, applied to tensors, so it runs on any device and compiles whole.
"""

import math
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)


class Purpose(IntEnum):
    """What a draw is for: draws for different purposes are independent."""

    ORDER = 1
    AUGMENTATION = 2
    NETWORK = 3
    SPLIT = 4
    ANALYSIS = 5


def _mix(x: Word) -> Word:
    """Hash 32-bit words held in int64: xor-shift-multiply, as in the "lowbias32" finaliser.

    The product of two 32-bit words may wrap around in int64; its low 32 bits are right even so.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def sample_keys(seed: int, purpose: Purpose, epoch: int, index: Tensor) -> Tensor:
    """Return one key a sample, (N,) int64 in [0, 2³²), from its place in the data set, (N,)."""
    state = 0  # a number: on a GPU each operation with it would be a kernel of its own
    for word in (seed & _MASK, (seed >> 32) & _MASK, int(purpose), epoch):
        state = _mix((state + word + 0x9E3779B9) & _MASK)
    return _mix((_mix((index + 0x85EBCA6B) & _MASK) ^ state) & _MASK)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return `count` draws for each key, (N, count) float32, uniform in [0, 1)."""
    columns = _mix(torch.arange(1, count + 1, device=keys.device))
    words = _mix(_mix(keys[:, None] ^ columns[None, :]) ^ keys[:, None])
    return (words >> 8).to(torch.float32) * 2.0**-24


def normal(keys: Tensor, count: int) -> Tensor:
    """Return `count` draws for each key, (N, count) float32, from N(0, 1) (Box and Muller)."""
    half = (count + 1) // 2
    u = uniform(keys, 2 * half)
    radius = (-2.0 * torch.log1p(-u[:, :half])).sqrt()
    angle = (2.0 * math.pi) * u[:, half:]
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count]


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Return the order of an epoch's samples, (size,) int64 on the CPU."""
    keys = sample_keys(seed, Purpose.ORDER, epoch, torch.arange(size))
    return torch.argsort(keys, stable=True)
