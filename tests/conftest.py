"""What tests share: two threads, a cache, runs, a terminal, real images where there are any."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from gaternet import cli
from gaternet.data.digits import load_digits
from gaternet.runtime.build import load_cpu_kernels
from terminal import GATED, PLAIN, Terminal


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cache")
    if getattr(pytestconfig, "cache", None) is not None:  # there is none with -p no:cacheprovider
        # Built once: its name follows from the sources, and it takes a quarter of a minute.
        (folder / "kernels").symlink_to(pytestconfig.cache.mkdir("kernels"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATERNET_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    assert cli.main([*PLAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def gated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "gated"
    assert cli.main([*GATED, "--validation", "100", "--out", str(path)]) == 0
    return path


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    file = tmp_path / "digit.png"
    Image.fromarray(load_digits("test").images[0, 0].numpy()).save(file)
    return file


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """CIFAR-10 as parquet files."""
    return real_images("cifar10")


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    """A photograph for each of ImageNet's 1,000 classes, in folders by class."""
    return real_images("imagenet-sample")


def real_images(name: str) -> Path:
    """Return a folder of $GATERNET_TEST_DATA or of shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("GATERNET_TEST_DATA", beside)) / name
    if not path.is_dir():
        pytest.skip(f"no {name}: set GATERNET_TEST_DATA to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def kernels() -> None:
    """The C++ kernel computes the runtime's operator; it takes a quarter of a minute to build."""
    reason = load_cpu_kernels()
    if reason is not None:
        pytest.skip(reason)
