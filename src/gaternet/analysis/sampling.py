"""Rows drawn at random, the same ones whenever they are drawn."""

import numpy as np
import torch
from numpy.typing import NDArray

from gaternet.randomness import Purpose, sample_keys


def draw_keys(count: int, salt: int = 0) -> NDArray[np.int64]:
    """Return a key for each of `count` rows, (count,) in [0, 2³²)."""
    return sample_keys(0, Purpose.ANALYSIS, salt, torch.arange(count)).numpy()


def shuffled(count: int) -> NDArray[np.int64]:
    """Return 0 … count − 1 in random order."""
    return np.argsort(draw_keys(count), kind="stable")


def some_rows(count: int, most: int) -> NDArray[np.int64]:
    """Return `most` of 0 … count − 1 drawn at random, or all of them, ascending."""
    return np.sort(shuffled(count)[:most])
