"""The checkpoints that the paper's authors released, as ordinary runs.

They are ResNet-20-Gated and ResNet-56-Gated for CIFAR-10, saved by PyTorch 0.4: one pickle with a
state dict of the backbone and one of the gater. Only tensors are read from it; no code is run.
"""

import hashlib
import io
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaternet import checkpoint, model_config, recipes
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.data.settings import CIFAR10, DataConfig
from gaternet.data.sources import load
from gaternet.errors import UserError
from gaternet.gater import Gater
from gaternet.given_files import read_bytes, size_of
from gaternet.model import GaterNet
from gaternet.training.config import Gating, Recipe
from gaternet.training.result import macs_per_image
from gaternet.training.run import Run, RunConfig, create_run

Weights = dict[str, Tensor]

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

THRESHOLD = math.log(0.59999 / 0.60001)
"""The logit above which a gate is open: there 1.2·σ(x) − 0.1 > 0.49999, the authors' condition."""

_PARTS = ("backbone_state_dict", "gater_state_dict")
_NAMES = {
    "backbone.": "backbone_state_dict.",
    "gater.extractor.": "gater_state_dict.resnet.",
    "gater.head.fc1.": "gater_state_dict.resnet.newfc.",
    "gater.head.fc2.": "gater_state_dict.fnn.fc.0.",
}
"""How the names of a GaterNet's weights begin, and how they begin in the file."""

_ADVICE = "give ResNet-20-Gated.pth or ResNet-56-Gated.pth from the authors' archive"
_NAMED_FAULTS = 3
_MAX_BYTES = 2**28
"""The authors' largest file has 8 MB."""
_MOST_BLOCKS = 200
"""Of a stage; theirs have 3 and 9, He et al.'s deepest network for such images has 200."""


def import_run(file: Path, out: Path, data: str | None = None) -> Run:
    """Make the run directory `out` of one of the authors' checkpoints; it counts as ended.

    Its class names are CIFAR-10's, or those of `data`, a folder or hub name. What the file does not
    tell is not made up: result.json has null for epochs, seed, errors and gates.

    Raises UserError, with nothing written, where the file is no such checkpoint, the number of
    classes differs from the data's, or `out` is in use.
    """
    model = load_checkpoint(file)
    origin = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    classes, settings = _data(model, file, data)
    weights = dict.fromkeys(("backbone", "gater"), "{file}, SHA-256 {sha256}".format(**origin))
    recipe = _recipe(model, settings)
    run = create_run(out, RunConfig(recipe, settings.name, "unknown", classes, weights))
    try:
        run.save_checkpoint(
            0,
            {checkpoint.MODEL: model.state_dict()},
            {checkpoint.MODEL: asdict(model_config.describe(model))},
        )
        run.finish(_result(model, recipe) | {"imported_from": origin})
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return run


def load_checkpoint(file: Path) -> GaterNet:
    """Return the model of one of the authors' checkpoints, on the CPU, in evaluation mode.

    Depths, bottleneck and number of classes follow from the weights. It takes images (N, 3, 32, 32)
    normalised by the mean and standard deviation of `CIFAR10`.

    Raises UserError that names the file and what is wrong in it.
    """
    weights = _read(file)
    backbone = CifarResNet(
        _depth(weights, "backbone_state_dict.", file),
        _outputs(weights, "backbone_state_dict.fc.weight", file),
    )
    gater = Gater(
        CifarResNet(_depth(weights, "gater_state_dict.resnet.", file), classes=0),
        _outputs(weights, "gater_state_dict.resnet.newfc.weight", file),
        batch_norm=False,
    )
    model = GaterNet(backbone, gater)
    model.binarizer.threshold = THRESHOLD
    model.load_state_dict(_translate(weights, model.state_dict(), file))
    return model.eval()


def _read(file: Path) -> Weights:
    """Return all tensors of a file as PART.NAME, where PART is one of the two state dicts."""
    size = size_of(file)
    content = _unpickle(file)
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(part), Mapping) for part in _PARTS
    ):
        raise UserError(
            f"{file} is not one of the authors' checkpoints, a dict of {' and '.join(_PARTS)}; "
            f"{_ADVICE}"
        )
    weights: Weights = {}
    for part in _PARTS:
        for key, tensor in content[part].items():
            # DataParallel puts this in front.
            name = f"{part}.{str(key).removeprefix('module.')}"
            if not isinstance(tensor, Tensor):
                raise UserError(f"{file}: {name} is not a tensor but a {type(tensor).__name__}")
            if name in weights:
                raise UserError(f"{file}: {name} is there twice, with and without `module.`")
            weights[name] = tensor
    # A tensor with strides of zero may say that it is larger than all memory.
    if (claimed := sum(tensor.nbytes for tensor in weights.values())) > size:
        raise UserError(
            f"{file} has {size:,} bytes, and its tensors claim {claimed:,}: it was made by hand"
        )
    return weights


def _unpickle(file: Path) -> Any:
    content = read_bytes(file, _MAX_BYTES)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # of all kinds; their texts advise to run what is in the file
        raise UserError(
            f"{file} is truncated, holds more than tensors, or is not a checkpoint (as a Python "
            f"pickle it can run any code when it is loaded: none was run); {_ADVICE}"
        ) from None


def _depth(weights: Weights, prefix: str, file: Path) -> int:
    """Return 6n + 2 for a network whose first stage has n blocks."""
    stage = f"{prefix}stage1."
    blocks = {name.removeprefix(stage).split(".")[0] for name in weights if name.startswith(stage)}
    if not 0 < len(blocks) <= _MOST_BLOCKS:
        found = f"{len(blocks)} blocks" if blocks else f"no {stage}block1"
        raise UserError(f"{file} is not one of the authors' checkpoints: it has {found}")
    return 6 * len(blocks) + 2


def _outputs(weights: Weights, name: str, file: Path) -> int:
    """Return the number of outputs of a linear layer."""
    if name not in weights or weights[name].ndim != 2 or not len(weights[name]):
        found = tuple(weights[name].shape) if name in weights else "missing"
        raise UserError(f"{file}: {name} is {found}, not (outputs, inputs)")
    return len(weights[name])


def _translate(weights: Weights, fresh: Weights, file: Path) -> Weights:
    """Return the file's weights under the names of `fresh`, the model's own.

    Raises UserError that names the first weights that are missing, unknown or of another shape.
    """
    theirs = {name: _theirs(name) for name in fresh}
    unknown = [f"{name} is unknown" for name in weights.keys() - set(theirs.values())]
    faults = sorted(unknown)
    translated = {}
    for name, value in fresh.items():
        given = weights.get(theirs[name])
        if given is None and name.endswith("num_batches_tracked"):
            given = value  # PyTorch 0.4 did not count batches
        if given is None:
            faults.append(f"{theirs[name]} is missing")
        elif given.shape != value.shape:
            shapes = f"{tuple(given.shape)}, not {tuple(value.shape)}"
            faults.append(f"{theirs[name]} is {shapes}")
        else:
            translated[name] = given
    if faults:
        more = len(faults) - _NAMED_FAULTS
        named = "; ".join(faults[:_NAMED_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{file} is of another architecture: {named}")
    return translated


def _theirs(name: str) -> str:
    """Return what a weight of the GaterNet is called in the file."""
    ours = next(ours for ours in _NAMES if name.startswith(ours))
    return _NAMES[ours] + name.removeprefix(ours)


def _data(model: GaterNet, file: Path, data: str | None) -> tuple[tuple[str, ...], DataConfig]:
    """Return class names, and the settings of the images that the model takes."""
    count = model_config.describe(model).backbone.classes
    if data is not None:
        settings = replace(CIFAR10, name=file.name, title="", hub=None, classes=count)
        images = load(data, settings, "test", settings.image_size)
        if images.classes != CIFAR10_CLASSES:
            return images.classes, replace(settings, name=images.name, title="")
    elif count != CIFAR10.classes:
        raise UserError(
            f"{file} tells {count} classes apart, CIFAR-10 has {CIFAR10.classes}: say with --data "
            "which images it is for"
        )
    return CIFAR10_CLASSES, CIFAR10


def _recipe(model: GaterNet, data: DataConfig) -> Recipe:
    """Return the paper's recipe with what the weights show; λ is in neither."""
    found = model_config.describe(model)
    assert found.gater is not None
    name = found.backbone.name
    return replace(
        recipes.get("cifar10/resnet20-gated"),
        name=f"{data.name}/{name}-gated-authors",
        reproduces="the authors' checkpoint: architecture as in its file, training as in the paper "
        "as far as that says, λ (0 here) unknown",
        data=data,
        backbone=name,
        gating=Gating(
            gater=found.gater.extractor.name,
            bottleneck=found.gater.bottleneck,
            batch_norm=False,
        ),
        pretrain=(),
    )


def _result(model: GaterNet, recipe: Recipe) -> dict[str, Any]:
    """Return the content of result.json: costs, and null for what was not measured here."""
    macs, uncounted = macs_per_image(model, recipe.data)
    unknown = ("epochs", "pretrain_epochs", "seed", "hardware", "wall_seconds")
    unmeasured = ("test_error_percent", "test_top5_error_percent", "gates")
    return {
        "recipe": recipe.name,
        **dict.fromkeys((*unknown, *unmeasured)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs_per_image": macs,
        "macs_uncounted": uncounted,
    }
