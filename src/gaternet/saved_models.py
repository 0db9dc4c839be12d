"""Models on disk: what builds one again beside its weights.

What a checkpoint says of itself is taken for a claim: a model is built where its weights are there.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from timm.layers import DropBlock2d, DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gaternet.checkpoint import MODEL, Verified, verify, verify_newest, write
from gaternet.errors import UserError
from gaternet.fitting import built, check_fits, compare, mismatch
from gaternet.given_files import reaching, validate
from gaternet.model_config import ModelConfig, build, describe
from gaternet.trained import located

_TRAINING_ONLY = (nn.Identity, _DropoutNd, DropPath, DropBlock2d)
"""Layers that do nothing in evaluation: two models may differ in them."""


def save(model: nn.Module, directory: str | Path) -> None:
    """Save a gated model or a plain backbone, weights and architecture.

    Raises UserError where the directory exists or the architecture cannot be built again by name.
    """
    config = describe(model)
    rebuilt = None
    with torch.device("meta"), suppress(ValueError):  # of gate points that are not there
        rebuilt = build(config)
    same = rebuilt and _shapes(rebuilt) == _shapes(model) and _layers(rebuilt) == _layers(model)
    if not same:
        raise UserError(
            f"{config.backbone.name} built by name differs from this model (options that change "
            "its layers?); save its state_dict() and build it in your own code"
        )
    write(Path(directory), {MODEL: model.state_dict()}, {MODEL: asdict(config)})


def load(directory: str | Path, *, strict: bool = False) -> nn.Module:
    """Load what `save` wrote, or the newest checkpoint of a run, in evaluation mode.

    Where there is no such directory, a name from `gaternet models` is one of the package's
    networks. Where a run's newest checkpoint was damaged, the one before it is loaded, with a
    warning; if `strict`, none is.

    Raises UserError where the directory holds no model or a file of it was altered.
    """
    path = located(directory)
    with reaching(path):
        is_run = (path / "checkpoints").is_dir()
    found = verify_newest(path / "checkpoints", strict=strict) if is_run else verify(path)
    config, stored = read_config(found), found.read_shapes(MODEL)
    check_fits(config, stored, found.path)
    file = found.path / f"{MODEL}.json"
    if config.local is not None or (config.gater is not None and config.gater.features is None):
        with torch.device("meta"):  # what their first layers see is found in the network alone
            drafted = built(lambda: build(config), file)
        compare(_shapes(drafted), stored, found.path)
    model = built(lambda: build(config), file)
    load_weights(model, found.read_tensors(MODEL), found.path)
    return model.eval()


def read_config(found: Verified) -> ModelConfig:
    """Return what builds a checkpoint's model again; raise UserError where it is no such thing."""
    values = found.read_json(MODEL)
    try:
        return validate(ModelConfig, values)
    except ValueError as error:
        file = found.path / f"{MODEL}.json"
        raise UserError(f"{file}: not a model of this version: {error}") from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put `weights` into `model`; raise UserError where they belong to another architecture."""
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = (None if x is None else tuple(x.shape) for x in (there, here))
            raise UserError(mismatch(source, name, *shapes))
        if here.is_floating_point() != there.is_floating_point():
            raise UserError(
                f"{source}: weights of another model: {name} is {there.dtype} there and "
                f"{here.dtype} here"
            )
    model.load_state_dict(dict(weights))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _layers(model: nn.Module) -> dict[str, str]:
    """Return what shapes do not tell: strides of convs, activations, pools, types of blocks."""
    return {
        name: type(module).__name__ if any(module.children()) else _in_evaluation(module)
        for name, module in model.named_modules()
        if not isinstance(module, _TRAINING_ONLY)
    }


def _in_evaluation(layer: nn.Module) -> str:
    """Return what a layer is, but for how it trains and where it writes its output."""
    text = re.sub(r"(, )?(inplace=(True|False)|momentum=[^,)]+)", "", repr(layer))
    return text.replace("SyncBatchNorm", "BatchNorm2d")
