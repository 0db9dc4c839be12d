"""A model without what its plan removes: fewer filters and fewer gates, or none at all."""

import copy
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.compression.layers import part_of_filter
from gaternet.compression.network import CompressedBackbone
from gaternet.compression.plan import CompressionPlan, check_fits, plan
from gaternet.errors import UserError
from gaternet.model import GaterNet

if TYPE_CHECKING:
    from gaternet.analysis.record import GateRecord


def compress(
    model: GaterNet,
    record: "GateRecord",
    tolerance: int = 0,
) -> GaterNet:
    """Return a model without the filters that never opened and the gates that never closed.

    On the recorded images it says what `model` says, to rounding, where `tolerance` is 0. It is
    `apply(model, plan(model, record, tolerance))`; see there for what is raised.
    """
    made = plan(model, record, tolerance)
    return apply(model, made)


def apply(
    model: GaterNet,
    plan: CompressionPlan,
) -> GaterNet:
    """Return a smaller model by a plan, in evaluation mode; `model` is left as it is.

    `backbone.columns` of the smaller one says which of the model's gates its own are.

    Raises UserError where the plan was made for another model or other weights, or leaves no gate.
    """
    if plan.one_mask:
        raise UserError("this plan leaves no gate: `one_mask` makes a plain network by it")
    backbone = _smaller_backbone(model, plan)
    gater = copy.deepcopy(model.gater)
    assert gater.head is not None
    last = gater.head.get_submodule("fc2")
    assert isinstance(last, nn.Linear)
    kept = np.isin(np.arange(plan.total), backbone.columns)
    everything = np.ones(last.in_features, dtype=bool)
    gater.head.register_module("fc2", part_of_filter(last, kept, everything, None))
    small = GaterNet(
        backbone, gater, backbone.points, backbone.input_size, copy.deepcopy(model.binarizer)
    )
    return small.eval()


def one_mask(
    model: GaterNet,
    plan: CompressionPlan,
) -> CompressedBackbone:
    """Return the plain network, without a gater, that a plan of one mask for all images leaves.

    It is in evaluation mode; `model` is left as it is.

    Raises UserError where the plan was made for another model or other weights, or leaves gates.
    """
    if not plan.one_mask:
        raise UserError("this plan leaves gates: `apply` makes a smaller gated network by it")
    return _smaller_backbone(model, plan).eval()


def _smaller_backbone(model: GaterNet, plan: CompressionPlan) -> CompressedBackbone:
    check_fits(plan, model)
    backbone = CompressedBackbone(model.backbone, plan, model.input_size, _config(model.backbone))
    if (like := next(model.backbone.parameters(), None)) is not None:
        backbone.to(like.device)
    return backbone


def _config(backbone: nn.Module) -> BackboneConfig | None:
    """Return what builds a backbone again; None for a user's own, which has no name."""
    try:
        return backbones.describe(backbone)
    except UserError:
        return None
