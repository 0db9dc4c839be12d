"""The CPU kernels, built once for all tests of the runtime."""

import pytest

from gaternet.runtime.build import load_cpu_kernels


@pytest.fixture(scope="session")
def kernels() -> None:
    """The C++ kernel is what computes the operator; it takes a quarter of a minute to build."""
    reason = load_cpu_kernels()
    if reason is not None:
        pytest.skip(reason)
