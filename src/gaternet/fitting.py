"""Whether stored weights can be those of the model that a file describes, before it is built.

What is described costs memory when it is built, what is stored lies on the disk already: where both
agree, building takes no more than the file's size.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.data.settings import MAX_SIDE
from gaternet.errors import UserError
from gaternet.tensor_files import Shapes

if TYPE_CHECKING:
    from gaternet.model_config import ModelConfig

_MOST_REMOVED = 16
"""A backbone has at most this many times the weights that are left when it was compressed; none
that was measured lost half of them."""
_SMALL = 2**24
"""Weights that are built in any case, 64 MiB."""

T = TypeVar("T")


def check_fits(config: "ModelConfig", stored: Shapes, source: Path) -> None:
    """Raise UserError, naming `source`, unless weights of these shapes are such a model's.

    Backbone, extractor and the layers that this file says all about are compared, on the meta
    device: no memory is taken for them. What the network itself decides, the width of what a head
    sees, is `compare`'s matter. Loading the weights then compares the rest.
    """
    _check_sizes(config, source)
    if config.plan is None:
        _check_depth(config, stored, source)
    prefix = "backbone." if config.gated else ""
    backbone = _shapes_of(config.backbone, source)
    if config.plan is None:
        compare({prefix + name: shape for name, shape in backbone.items()}, stored, source)
    elif not may_have_been(_count(backbone), _count(stored)):
        raise UserError(
            f"{source}: weights of another model: {_count(backbone):,} before compression, "
            f"{_count(stored):,} there"
        )
    expected: Shapes = {}
    gates = [point.gates for point in config.points]
    if config.gater is not None:
        extractor = _shapes_of(config.gater.extractor, source)
        expected = {f"gater.extractor.{name}": shape for name, shape in extractor.items()}
        width = config.gater.bottleneck
        expected["gater.head.fc2.weight"] = (sum(gates), width)
        if config.gater.features is not None:
            expected["gater.head.fc1.weight"] = (width, config.gater.features)
    elif config.local is not None:
        width, whole = config.local.bottleneck, config.local.granularity == "branches"
        for index, count in enumerate(gates):
            expected[f"heads.{index}.fc2.weight"] = (1 if whole else count, width)
    compare(expected, stored, source)


def may_have_been(whole: int, left: int) -> bool:
    """Whether so many weights of a model can be left of a backbone that had `whole`."""
    return whole <= max(_MOST_REMOVED * left, _SMALL)


def count_whole(config: BackboneConfig) -> int:
    """Return the weights of a backbone, none of which is made."""
    return _count(_shapes_of(config, Path(config.name)))


def built(build: Callable[[], T], source: Path) -> T:
    """Return what `build` returns; whatever it makes of a file's values becomes a UserError."""
    try:
        return build()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # timm's networks raise all kinds for sizes they were not made for
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: no such model can be built: {reason}") from None


def _check_sizes(config: "ModelConfig", source: Path) -> None:
    networks = [config.backbone]
    seen: list[int | None] = []
    if config.gater is not None:
        networks.append(config.gater.extractor)
        seen.append(config.gater.input_size)
    sides = [*(network.image_size for network in networks), *(config.input_size or ()), *seen]
    for side in sides:
        if side is not None and not 1 <= side <= MAX_SIDE:
            raise UserError(f"{source}: images of {side} pixels: a side has 1 to {MAX_SIDE:,}")
    for network in networks:
        if network.classes < 0 or network.channels < 1:
            raise UserError(
                f"{source}: {network.name} with {network.channels} channels and {network.classes} "
                "classes: there is no such network"
            )


def _check_depth(config: "ModelConfig", stored: Shapes, source: Path) -> None:
    """Every layer has weights: without as many, not even its modules are made."""
    networks = [config.backbone, *([config.gater.extractor] if config.gater else [])]
    for network in networks:
        if (backbones.depth_of(network.name) or 0) > len(stored):
            raise UserError(
                f"{source}: weights of another model: {len(stored)} tensors there, too few for the "
                f"layers of {network.name}"
            )


def _shapes_of(config: BackboneConfig, source: Path) -> Shapes:
    def create() -> Shapes:
        with torch.device("meta"):
            network = backbones.create(config)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    return built(create, source)


def compare(expected: Mapping[str, tuple[int, ...]], stored: Shapes, source: Path) -> None:
    """Raise UserError, naming `source`, unless these tensors are stored in these shapes."""
    for name in sorted(expected):
        if expected[name] != stored.get(name):
            raise UserError(mismatch(source, name, stored.get(name), expected[name]))


def mismatch(
    source: Path, name: str, there: tuple[int, ...] | None, here: tuple[int, ...] | None
) -> str:
    """Say that weights `there` are not those of the model `here`; None: it has no such weights."""
    return (
        f"{source}: weights of another model: {name} is {there or 'missing'} there "
        f"and {here or 'missing'} here"
    )


def _count(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())
