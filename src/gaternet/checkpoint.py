"""Models and training states on disk: safetensors and JSON, with the SHA-256 of every file.

A checkpoint is a directory that appears whole or not at all. Nothing here reads a pickle, and what
a checkpoint says of itself is taken for a claim: a model is built where its weights are there.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from gaternet import backbones, tensor_files
from gaternet.backbones import BackboneConfig
from gaternet.binarizers import Binarizer
from gaternet.compression.network import CompressedBackbone
from gaternet.compression.plan import CompressionPlan
from gaternet.disk import new_directory
from gaternet.errors import DamagedCheckpointWarning, UserError
from gaternet.fitting import built, check_fits, compare, count_whole, may_have_been, mismatch
from gaternet.gate_points import GatePoint
from gaternet.gater import Gater
from gaternet.given_files import (
    MAX_JSON_BYTES,
    compose_json,
    describe_pickle_file,
    reaching,
    size_of,
    validate,
)
from gaternet.given_files import read_json as read_json_file
from gaternet.local import Granularity, LocalGaterNet
from gaternet.model import GatedModel, GaterNet
from gaternet.rivals import BINARIZERS, GumbelSigmoid, RandomGates, make_binarizer
from gaternet.trained import located, suggestion

MANIFEST = "manifest.json"
MODEL = "model"

_ENTRY_BYTES = 100
"""Of a tensor's name, shape and place in a safetensors file, about."""
_BLOCK_BYTES = 4096

_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


@dataclass(frozen=True)
class GaterConfig:
    """What builds a gater again."""

    extractor: BackboneConfig
    bottleneck: int
    features: int | None = None
    batch_norm: bool = True
    input_size: int | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class LocalConfig:
    """What builds local gates again."""

    granularity: Granularity
    bottleneck: int
    batch_norm: bool = True

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class BinarizerConfig:
    """What builds a binarizer again."""

    name: str = "semhash"
    rate: float | None = None
    temperature: float | None = None
    """Of gumbel-sigmoid alone."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ModelConfig:
    """What builds a model again: its backbone, and where it has gates who decides on which.

    plan: what was removed from the backbone; the gates are those that are left
    """

    backbone: BackboneConfig
    gater: GaterConfig | None = None
    points: tuple[GatePoint, ...] = ()
    threshold: float = 0.0
    local: LocalConfig | None = None
    binarizer: BinarizerConfig = field(default_factory=BinarizerConfig)
    plan: CompressionPlan | None = None

    @property
    def gated(self) -> bool:
        """Whether it is more than a plain backbone."""
        return bool(self.points)

    __pydantic_config__ = ConfigDict(extra="forbid")


def describe(model: nn.Module) -> ModelConfig:
    """Return what builds `model`, a gated one or a plain backbone, again.

    Raises UserError where its backbone, its gater's extractor or its binarizer cannot be named, or
    where less is left of a compressed backbone than `load` takes for a part of it.
    """
    if not isinstance(model, GatedModel):
        return ModelConfig(backbones.describe(model))
    compressed = model.backbone if isinstance(model.backbone, CompressedBackbone) else None
    return ModelConfig(
        _whole_backbone(compressed, model) if compressed else backbones.describe(model.backbone),
        _describe_gater(model.gater) if isinstance(model, GaterNet) else None,
        model.points,
        model.binarizer.threshold,
        LocalConfig(model.granularity, model.bottleneck, model.batch_norm)
        if isinstance(model, LocalGaterNet)
        else None,
        _describe_binarizer(model.binarizer),
        compressed.plan if compressed else None,
    )


def _whole_backbone(backbone: CompressedBackbone, model: nn.Module) -> BackboneConfig:
    if backbone.config is None:
        raise UserError(
            "the backbone that this model was compressed from cannot be built again by name; save "
            "the plan and the model's state_dict(), and build it in your own code"
        )
    whole, left = count_whole(backbone.config), sum(t.numel() for t in model.state_dict().values())
    if not may_have_been(whole, left):
        raise UserError(
            f"{left:,} weights are left of a backbone of {whole:,}, and a file that said so would "
            "not be believed; save the plan and the state_dict(), and build it in your own code"
        )
    return backbone.config


def _describe_gater(gater: Gater) -> GaterConfig:
    return GaterConfig(
        backbones.describe(gater.extractor),
        gater.bottleneck,
        gater.features,
        gater.batch_norm,
        gater.input_size,
    )


def _describe_binarizer(binarizer: Binarizer) -> BinarizerConfig:
    name = next((n for n, cls in BINARIZERS.items() if type(binarizer) is cls), None)
    if name is None:
        raise UserError(
            f"binarizer {type(binarizer).__name__} has no name here; save the model's state_dict() "
            "and build it in your own code"
        )
    return BinarizerConfig(
        name,
        binarizer.rate if isinstance(binarizer, RandomGates) else None,
        binarizer.temperature if isinstance(binarizer, GumbelSigmoid) else None,
    )


def build(config: ModelConfig) -> nn.Module:
    """Build the model that `config` describes, with fresh weights."""
    backbone = backbones.create(config.backbone)
    if config.gater is None and config.local is None:
        return backbone
    size = config.backbone.input_size
    if config.plan is not None:
        backbone = CompressedBackbone(backbone, config.plan, size, config.backbone)
    binarizer = _build_binarizer(config.binarizer)
    binarizer.threshold = config.threshold
    if config.local is not None:
        local = config.local
        return LocalGaterNet(
            backbone,
            config.points,
            local.granularity,
            bottleneck=local.bottleneck,
            batch_norm=local.batch_norm,
            binarizer=binarizer,
            input_size=size,
        )
    assert config.gater is not None
    gater = Gater(
        backbones.create(config.gater.extractor),
        config.gater.bottleneck,
        config.gater.features,
        batch_norm=config.gater.batch_norm,
        input_size=config.gater.input_size,
    )
    return GaterNet(backbone, gater, config.points, size, binarizer)


def _build_binarizer(config: BinarizerConfig) -> Binarizer:
    if config.temperature is not None and config.name == "gumbel-sigmoid":
        return GumbelSigmoid(temperature=config.temperature)
    return make_binarizer(config.name, config.rate)


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
    config, stored = found.read_config(), found.read_shapes(MODEL)
    check_fits(config, stored, found.path)
    file = found.path / f"{MODEL}.json"
    if config.local is not None or (config.gater is not None and config.gater.features is None):
        with torch.device("meta"):  # what their first layers see is found in the network alone
            drafted = built(lambda: build(config), file)
        compare(_shapes(drafted), stored, found.path)
    model = built(lambda: build(config), file)
    load_weights(model, found.read_tensors(MODEL), found.path)
    return model.eval()


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


def write(
    directory: Path, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]
) -> None:
    """Write NAME.safetensors and NAME.json files and their manifest, whole or not at all.

    Raises UserError where the directory exists, the disk does not take it, or `read_json` would not
    take a value.
    """
    texts = {f"{name}.json": _composed(directory, name, value) for name, value in values.items()}
    with new_directory(directory, _bytes_needed(tensors, texts)) as partial:
        for name, group in tensors.items():
            _save_tensors(group, partial / f"{name}.safetensors")
        for name, text in texts.items():
            (partial / name).write_text(text)
        manifest = {
            file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size}
            for file in sorted(partial.iterdir())
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    # A copy each: safetensors refuses tensors that share memory.
    packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    file.touch()
    mode = file.stat().st_mode
    save_file(packed, file)
    file.chmod(mode)  # safetensors leaves it to its owner alone, whatever the umask says


def _composed(directory: Path, name: str, value: object) -> str:
    try:
        return compose_json(value)
    except ValueError as error:
        raise UserError(
            f"{directory / name}.json cannot be written, since it could not be read again: {error}"
        ) from None


def _bytes_needed(tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> int:
    """Return about how much a disk must have left for a checkpoint."""
    held = [tensor for group in tensors.values() for tensor in group.values()]
    written = sum(tensor.nbytes + _ENTRY_BYTES for tensor in held) + sum(map(len, texts.values()))
    files = len(tensors) + len(texts) + 1  # and the manifest; a disk gives them whole blocks
    return written + files * _BLOCK_BYTES


@dataclass(frozen=True)
class Verified:
    """A checkpoint whose files were all there, unaltered, when they were looked at, once."""

    path: Path
    names: frozenset[str]

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of NAME.safetensors, on the CPU."""
        return tensor_files.read_tensors(self._file(f"{name}.safetensors"))

    def read_shapes(self, name: str) -> tensor_files.Shapes:
        """Return the shapes of the tensors of NAME.safetensors, none of which is read."""
        return tensor_files.read_shapes(self._file(f"{name}.safetensors"))

    def read_json(self, name: str) -> Any:
        """Return the content of NAME.json."""
        return read_json_file(self._file(f"{name}.json"))

    def read_config(self) -> ModelConfig:
        """Return what builds its model again."""
        values = self.read_json(MODEL)
        try:
            return validate(ModelConfig, values)
        except ValueError as error:
            file = self.path / f"{MODEL}.json"
            raise UserError(f"{file}: not a model of this version: {error}") from None

    def _file(self, name: str) -> Path:
        if name not in self.names:
            raise UserError(f"{self.path / name} is not in {MANIFEST}")
        return self.path / name


def verify(directory: Path) -> Verified:
    """Return a checkpoint; raise UserError unless all of its files are there, unaltered."""
    file = directory / MANIFEST
    with reaching(file):
        is_listed = file.exists()
    if not is_listed:
        raise UserError(_no_model(directory))
    try:
        expected = validate(dict[str, _Listed], read_json_file(file))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    for name, listed in expected.items():
        with reaching(directory / name):
            _check_file(directory, name, listed)
    return Verified(directory, frozenset(expected))


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of NAME.safetensors, on the CPU, after verifying the whole checkpoint."""
    return verify(directory).read_tensors(name)


def read_json(directory: Path, name: str) -> Any:
    """Return the content of NAME.json, after verifying the whole checkpoint."""
    return verify(directory).read_json(name)


def newest(checkpoints: Path, *, strict: bool = False) -> Path:
    """Return where a run's newest checkpoint is that is whole, as `verify_newest` finds it."""
    return verify_newest(checkpoints, strict=strict).path


def verify_newest(checkpoints: Path, *, strict: bool = False) -> Verified:
    """Return a run's newest checkpoint that is whole, and warn of those behind it that are not.

    Raises UserError where there is none; if `strict`, already where the newest is damaged.
    """
    found = finished(checkpoints)
    if not found:
        raise UserError(
            f"{checkpoints} holds no checkpoint yet: the run ended before its first epoch"
        )
    faults = []
    for path in reversed(found):
        try:
            sound = verify(path)
        except UserError as error:
            faults.append(str(error))
        else:
            break
        if strict:
            raise UserError(f"{faults[0]}; without --strict the checkpoint before it is taken")
    else:
        raise UserError(
            f"{faults[0]}; no earlier checkpoint is left: remove {checkpoints} to begin anew"
        )
    if faults:
        message = f"{'; '.join(faults)}; going back to {sound.path.name}"
        warnings.warn(message, DamagedCheckpointWarning, stacklevel=2)
    return sound


def name_of(epoch: int, step: int = 0) -> str:
    """Return the name of a checkpoint behind `epoch` epochs and `step` steps of the next."""
    return f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")


def position(path: Path) -> tuple[int, int]:
    """Return (finished epochs, steps of the next one) of a checkpoint, from its name."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path.name} is no name of a checkpoint")
    return int(found[1]), int(found[2] or 0)


def finished(checkpoints: Path) -> list[Path]:
    """Return a run's checkpoints, the newest last."""
    with reaching(checkpoints):  # which glob would take for an empty one where it is closed
        children = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
        found = (path for path in children if _NAME.fullmatch(path.name))
        return sorted((path for path in found if path.is_dir()), key=position)


@dataclass(frozen=True)
class _Listed:
    """What a manifest says of a file."""

    sha256: str
    bytes: int | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


def _check_file(directory: Path, name: str, listed: _Listed) -> None:
    """Raise UserError unless a file lies in the directory itself and is the one that was listed."""
    file = directory / name
    if Path(name).name != name:
        raise UserError(
            f"{directory / MANIFEST} names {name!r}: a checkpoint's files lie beside it"
        )
    if not file.is_file():
        raise UserError(f"{file} is missing")
    if file.resolve().parent != directory.resolve():
        raise UserError(f"{file} is a link out of its checkpoint: put the file itself there")
    size = size_of(file)
    if file.suffix == ".json" and size > MAX_JSON_BYTES:
        raise UserError(f"{file} has {size:,} bytes: such a file has at most {MAX_JSON_BYTES:,}")
    if listed.bytes not in (None, size) or _sha256(file) != listed.sha256:
        what = "size" if listed.bytes not in (None, size) else "SHA-256"
        raise UserError(f"{file} was truncated or altered: its {what} differs from {MANIFEST}")


def _no_model(path: Path) -> str:
    """Say what is wrong with a path that a model was expected at."""
    if pickled := describe_pickle_file(path):
        return f"{path} {pickled}; give the directory of a run or of a saved model"
    return f"{path} holds no model: it has no {MANIFEST}{suggestion(path)}"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _layers(model: nn.Module) -> dict[str, str]:
    """Return what shapes do not tell: strides and dilations of convs, types of blocks."""
    return {
        name: repr(module) if isinstance(module, nn.Conv2d) else type(module).__name__
        for name, module in model.named_modules()
        # Other leaves may differ, as drop path does between training and evaluation.
        if isinstance(module, nn.Conv2d) or any(module.children())
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
