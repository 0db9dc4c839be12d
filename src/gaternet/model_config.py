"""What builds a model again, in words that a file can hold: its networks by name, its gates."""

from dataclasses import dataclass, field

from pydantic import ConfigDict
from torch import nn

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.binarizers import Binarizer
from gaternet.compression.network import CompressedBackbone
from gaternet.compression.plan import CompressionPlan
from gaternet.errors import UserError
from gaternet.fitting import count_whole, may_have_been
from gaternet.gate_points import GatePoint
from gaternet.gater import Gater
from gaternet.local import Granularity, LocalGaterNet
from gaternet.model import GatedModel, GaterNet
from gaternet.rivals import BINARIZERS, GumbelSigmoid, RandomGates, make_binarizer


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

    plan: what was removed from the backbone; the gates are those that are left, if any
    input_size: (C, H, W) that it was traced with; None: as the backbone's name has it
    """

    backbone: BackboneConfig
    gater: GaterConfig | None = None
    points: tuple[GatePoint, ...] = ()
    threshold: float = 0.0
    local: LocalConfig | None = None
    binarizer: BinarizerConfig = field(default_factory=BinarizerConfig)
    plan: CompressionPlan | None = None
    input_size: tuple[int, int, int] | None = None

    @property
    def gated(self) -> bool:
        """Whether it is more than a plain backbone."""
        return bool(self.points)

    __pydantic_config__ = ConfigDict(extra="forbid")


def describe(model: nn.Module) -> ModelConfig:
    """Return what builds `model`, a gated one or a plain backbone, again.

    Raises UserError where its backbone, its gater's extractor or its binarizer cannot be named, or
    where less is left of a compressed backbone than `saved_models.load` takes for a part of it.
    """
    if isinstance(model, CompressedBackbone):
        whole = _whole_backbone(model, model)
        return ModelConfig(whole, plan=model.plan, input_size=model.input_size)
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
        model.input_size,
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
    size = config.input_size or config.backbone.input_size
    if config.plan is not None:
        backbone = CompressedBackbone(backbone, config.plan, size, config.backbone)
    if config.gater is None and config.local is None:
        return backbone
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
