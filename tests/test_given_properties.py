"""Whatever is in a configuration or a checkpoint: it is read as it stands, or a UserError."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import gaternet
from examples import damages, few, unless_refused
from gaternet import recipes
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UserError
from gaternet.given_files import parse_json
from gaternet.training.config import recipe_from_dict, recipe_to_dict
from small_runs import sign_again

Path_ = tuple[str | int, ...]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["1", "true", "resnet8", "timm/resnet10t", "cosine"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(values: object, path: Path_ = ()) -> Iterator[Path_]:
    """Yield the way to every value, whole objects too."""
    if path:
        yield path
    pairs: Any = values.items() if isinstance(values, dict) else ()
    pairs = enumerate(values) if isinstance(values, list) else pairs
    for key, value in pairs:
        yield from places(value, (*path, key))


@st.composite
def mutations(draw: st.DrawFn, values: Any) -> Any:
    """Return values in which one is another, is gone, or has a new neighbour."""
    changed = copy.deepcopy(values)
    *way, last = draw(st.sampled_from(list(places(values))))
    holder = changed
    for key in way:
        holder = holder[key]
    kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if kind == "remove":
        del holder[last]
    elif kind == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=8))] = draw(VALUES)
    else:
        holder[last] = draw(VALUES)
    return changed


def agrees(given: Any, read: Any) -> bool:
    """Whether what was read is what was told; what was not told has its default."""
    if isinstance(given, dict) and isinstance(read, dict):
        return all(key in read and agrees(given[key], read[key]) for key in given)
    if isinstance(given, list) and isinstance(read, list):
        return len(given) == len(read) and all(map(agrees, given, read))
    return given == read and isinstance(given, bool) == isinstance(read, bool)


def plain(values: object) -> Any:
    return json.loads(json.dumps(values))


@few
@given(st.sampled_from(sorted(recipes.RECIPES)))
def test_recipe_survives_its_file(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe_from_dict(plain(recipe_to_dict(recipe)), "config.json") == recipe


RECIPE = plain(recipe_to_dict(recipes.get("digits/resnet8-gated")))


@few
@given(mutations(RECIPE))
@example(RECIPE | {"epochs": "30"})
@example(RECIPE | {"epochs": 30.0})
@example(RECIPE | {"data": RECIPE["data"] | {"title": ""}})
def test_recipe_is_read_as_it_is_written_or_refused(values: Any) -> None:
    recipe = unless_refused(lambda: recipe_from_dict(values, "config.json"), "config.json: ")
    if recipe is None:
        return
    read = plain(recipe_to_dict(recipe))
    if isinstance(values["data"], dict) and not values["data"].get("title"):
        read["data"].pop("title")  # left empty, it is the name
        values["data"].pop("title", None)
    assert agrees(values, read)


@few
@given(st.binary(max_size=64) | VALUES.map(lambda v: json.dumps(v).encode()))
@example(b'{"a": 1, "a": 1}')
@example(b"[NaN]")
@example(b"\xef\xbb\xbf{}")
@example(b"1e999")
@example(b'"\\ud800"')
def test_json_is_what_python_makes_of_it_or_refused(content: bytes) -> None:
    try:
        found = parse_json(content)
    except ValueError:
        return
    assert found == json.loads(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = CifarResNet(8, widths=(16, 32, 64))
    gater = gaternet.Gater(CifarResNet(8, classes=0, widths=(8, 16, 32)), bottleneck=4)
    path = tmp_path_factory.mktemp("saved") / "model"
    gaternet.save(gaternet.GaterNet(backbone, gater), path)
    return path


def put(saved: Path, name: str, content: bytes, *, signed: bool) -> Path:
    """Return a copy of a model with another file in it."""
    path = saved.parent / "changed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(saved, path)
    (path / name).write_bytes(content)
    if signed:
        sign_again(path)
    return path


def assert_loads_the_same_or_not_at_all(path: Path, saved: Path) -> None:
    found = unless_refused(lambda: gaternet.load(path), str(path))
    if found is None:
        return
    expected = gaternet.load(saved).state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.shape == expected[name].shape


@few
@given(st.data())
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_damage_is_found_by_the_manifest(name: str, saved: Path, data: st.DataObject) -> None:
    content = (saved / name).read_bytes()
    harmed = data.draw(damages(content))
    if harmed == content:  # what was cut out or put in may be what stands beside it
        return
    with pytest.raises(UserError, match=f"{name} was truncated or altered"):
        gaternet.load(put(saved, name, harmed, signed=False))


@few
@given(st.data())
def test_damaged_manifest_is_found_or_says_the_same(saved: Path, data: st.DataObject) -> None:
    harmed = data.draw(damages((saved / "manifest.json").read_bytes()))
    path = put(saved, "manifest.json", harmed, signed=False)
    model = unless_refused(lambda: gaternet.load(path), str(path))
    if model is None:
        return
    found = model.state_dict()
    expected = gaternet.load(saved).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@few
@given(st.data())
def test_forged_header_is_refused(saved: Path, data: st.DataObject) -> None:
    """Signed again, so that the manifest does not tell: the head of the file alone."""
    content = (saved / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    harmed = data.draw(damages(content[:head])) + content[head:]
    path = put(saved, "model.safetensors", harmed, signed=True)
    assert_loads_the_same_or_not_at_all(path, saved)


@few
@given(st.data())
def test_forged_model_is_built_or_refused(saved: Path, data: st.DataObject) -> None:
    values = data.draw(mutations(json.loads((saved / "model.json").read_text())))
    path = put(saved, "model.json", json.dumps(values).encode(), signed=True)
    assert_loads_the_same_or_not_at_all(path, saved)
