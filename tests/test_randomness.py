"""Counted draws: their distribution against scipy, and what they depend on."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from gaternet.randomness import Purpose, normal, permutation, sample_keys, uniform

# Draws are fixed, so a p-value is too; this bound only says "not absurdly unlikely".
UNLIKELY = 1e-3


def keys(count: int, seed: int = 0, purpose: Purpose = Purpose.NETWORK, epoch: int = 0) -> Tensor:
    return sample_keys(seed, purpose, epoch, torch.arange(count))


def test_uniform_is_uniform_along_samples_and_along_columns() -> None:
    draws = uniform(keys(2000), 50).numpy()
    assert draws.dtype == np.float32
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert stats.kstest(draws.ravel(), "uniform").pvalue > UNLIKELY
    by_column = [stats.kstest(draws[:, i], "uniform").pvalue for i in range(50)]
    by_sample = [stats.kstest(draws[i], "uniform").pvalue for i in range(200)]
    # p-values of right draws are uniform themselves.
    assert stats.kstest(by_column, "uniform").pvalue > UNLIKELY
    assert stats.kstest(by_sample, "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize("count", [1, 7, 48])
def test_normal_is_standard_normal(count: int) -> None:
    draws = normal(keys(3000), count).numpy()
    assert draws.shape == (3000, count)
    assert draws.dtype == np.float32
    assert np.isfinite(draws).all()
    assert stats.kstest(draws.ravel(), "norm").pvalue > UNLIKELY


def test_neighbours_are_uncorrelated() -> None:
    draws = normal(keys(4000), 32).numpy()
    between_columns = np.corrcoef(draws.T)[~np.eye(32, dtype=bool)]
    between_samples = [np.corrcoef(draws[i], draws[i + 1])[0, 1] for i in range(2000)]
    assert np.abs(between_columns).max() < 5 / np.sqrt(4000)
    assert np.std(between_samples) == pytest.approx(1 / np.sqrt(32), rel=0.1)


def test_a_draw_depends_on_its_sample_only() -> None:
    order = torch.randperm(100)[:30]
    chosen = sample_keys(0, Purpose.NETWORK, 0, order)
    assert torch.equal(uniform(chosen, 9), uniform(keys(100), 9)[order])
    # Vectorised log and cos may differ in the last bit with the place in the tensor.
    torch.testing.assert_close(normal(chosen, 9), normal(keys(100), 9)[order])


def test_seed_purpose_and_epoch_each_change_every_draw() -> None:
    reference = uniform(keys(500), 4).ravel().numpy()
    others = (keys(500, seed=1), keys(500, purpose=Purpose.AUGMENTATION), keys(500, epoch=1))
    for other in (*others, keys(500, seed=1 << 32)):
        draws = uniform(other, 4).ravel().numpy()
        assert (draws != reference).mean() > 0.999
        assert abs(np.corrcoef(draws, reference)[0, 1]) < 5 / np.sqrt(2000)


def test_keys_hardly_collide() -> None:
    # 50,000 draws from 2³² collide 0.3 times on average.
    assert len(keys(50_000).unique()) >= 49_997


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, permutation(0, 0, 1000))
    assert abs(stats.spearmanr(first, second).statistic) < 5 / np.sqrt(1000)
    assert abs(stats.spearmanr(first, np.arange(1000)).statistic) < 5 / np.sqrt(1000)


def test_keys_are_the_hash_in_32_bits() -> None:
    """Word for word in numpy's 32-bit integers, which wrap around by themselves."""

    def mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    seed, epoch = 2**40 + 12345, 7
    state = np.zeros(1, dtype=np.uint32)
    for word in (seed % 2**32, seed >> 32, int(Purpose.NETWORK), epoch):
        state = mix(state + np.uint32(word) + np.uint32(0x9E3779B9))
    index = np.array([0, 1, 49_999], dtype=np.uint32)
    wanted = mix(mix(index + np.uint32(0x85EBCA6B)) ^ state)
    found = sample_keys(seed, Purpose.NETWORK, epoch, torch.from_numpy(index.astype(np.int64)))
    assert found.tolist() == wanted.tolist()
