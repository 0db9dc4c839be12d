"""What `import gaternet` gives and what it costs."""

import subprocess
import sys

import pytest

import gaternet


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, gaternet; dir(gaternet); "
        "assert not {'torch', 'timm', 'datasets', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", gaternet.__all__)
def test_public_names_resolve_and_are_documented(name: str) -> None:
    assert name in dir(gaternet)
    assert getattr(gaternet, name).__doc__


def test_homes_are_the_public_names_in_order() -> None:
    assert list(gaternet._HOMES) == gaternet.__all__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'gaternet' has no attribute 'Gates'"):
        gaternet.Gates  # noqa: B018
