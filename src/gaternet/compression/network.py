"""A backbone that lost filters for good, and where gates are left in it."""

import copy

import numpy as np
from torch import Tensor, nn

from gaternet.backbones.config import BackboneConfig
from gaternet.compression.plan import CompressionPlan, PointPlan, fixed_states, gated_node
from gaternet.compression.states import Mask
from gaternet.compression.surgery import cut
from gaternet.gate_points import UNGATED, GatePoint, detach
from gaternet.graph import trace
from gaternet.model import GaterNet


class CompressedBackbone(nn.Module):
    """Images (N, C, H, W) → what the whole backbone returns with the removed filters closed.

    Its operations are those of the backbone in evaluation mode, for images of the size that it was
    traced with: random depth and the like are gone, norms and dropout layers are there still.

    backbone: the whole one, under gates or not; it is copied
    config: what builds the whole one again, where it can be named

    points: where gates are left; columns: which of the whole model's gates they are
    """

    def __init__(
        self,
        backbone: nn.Module,
        plan: CompressionPlan,
        input_size: tuple[int, int, int] | None = None,
        config: BackboneConfig | None = None,
    ) -> None:
        super().__init__()
        graph = trace(backbone, input_size)
        states = fixed_states(graph, plan.points)
        nodes = {gated_node(graph, point): point for point in plan.points if point.kept}
        whole = copy.deepcopy(backbone).eval()
        detach(whole)
        surgery = cut(whole, states, frozenset(nodes))
        self.plan = plan
        self.config = config
        self.input_size = graph.input_size
        self.network = surgery.network
        self.points = tuple(
            _point_left(f"network.{surgery.gated[node]}", point, states.present[node])
            for node, point in nodes.items()
        )
        gone = {g for what in ("removed", "always_on", "unneeded") for g in plan.gates(what)}
        self.columns = tuple(column for column in range(plan.total) if column not in gone)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def backbone_of(model: GaterNet | CompressedBackbone) -> CompressedBackbone:
    """Return the backbone of a compressed model; raise TypeError where it is another one.

    Of one without any gate left, that is the model itself.
    """
    if isinstance(model, CompressedBackbone):
        return model
    if not isinstance(model.backbone, CompressedBackbone):
        raise TypeError(f"{type(model.backbone).__name__} is not a compressed backbone")
    return model.backbone


def _point_left(name: str, point: PointPlan, present: Mask) -> GatePoint:
    gone = np.isin(np.arange(point.gates), (*point.removed, *point.always_on, *point.unneeded))
    numbers = np.where(gone, UNGATED, np.cumsum(~gone) - 1)
    gate_of = tuple(np.repeat(numbers, point.block)[present].tolist())
    plain = GatePoint(name, len(gate_of), point.block if len(gate_of) % point.block == 0 else 1)
    if plain.gate_of_channels == gate_of:
        return plain
    return GatePoint(name, len(gate_of), gate_of=gate_of)
