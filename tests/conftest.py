"""What tests share: two threads at most, a cache of their own, real images where there are any."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATERNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """CIFAR-10 as parquet files, from $GATERNET_TEST_DATA or shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("GATERNET_TEST_DATA", beside)) / "cifar10"
    if not path.is_dir():
        pytest.skip("no CIFAR-10: set GATERNET_TEST_DATA to the folder that holds cifar10")
    return path
