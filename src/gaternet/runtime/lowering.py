"""From a backbone's graph to one that runs only its open filters.

    conv → norm → [gate] (→ + residual) → relu     becomes     gated_conv2d(…)

Linear layers become 1×1 convs. Norms are folded into what they follow, gates pushed back to the
convs and linear layers that make a filter and forward to those that read it (see
`gaternet.gate_flow`). Everything else stays as it was traced.
"""

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from gaternet.errors import UserError
from gaternet.gate_flow import UNGATED, GateFlow, Gates, common, gates_at, zeros_after
from gaternet.gate_points import detach
from gaternet.graph import Graph
from gaternet.memory import aliases, is_overwritten
from gaternet.runtime.layers import DenseConv2d, DenseLinear, GatedConv2d, GatedLinear, Mask
from gaternet.runtime.units import Unit, span


def lower(
    flow: GateFlow, backbone: nn.Module, units: Sequence[Unit], dense: Collection[Unit] = ()
) -> fx.GraphModule:
    """Return a module (images, gates) → what the backbone returns under these gates.

    Weights that it has as the backbone has them are the backbone's own, not copies.

    images: (N, C, H, W); gates: (N, G), 0 or 1
    dense: units that compute all their filters and close them afterwards

    Raises UserError where the graph has a constant that is not the backbone's, naming it.
    """
    return _Lowering(flow, backbone, units, dense).run()


def unit_name(units: Sequence[Unit], unit: Unit) -> str:
    """Return the name of a unit's module in what `lower` returns."""
    return f"gaternet_unit_{units.index(unit)}"


def unit_module(unit: Unit, backbone: nn.Module, dense: bool, rectified: bool) -> nn.Module:
    """Return what computes a unit.

    of a conv: (images, gates[, residual]) → (N, O, H', W')
    of a linear layer: (features (N, C), gates) → (N, O)
    """
    layer = backbone.get_submodule(str(unit.start.target))
    if isinstance(layer, nn.Linear):
        return DenseLinear(layer, unit) if dense else GatedLinear(layer, unit)
    assert isinstance(layer, nn.Conv2d)
    if dense or layer.groups > 1:
        return DenseConv2d(layer, unit)
    return GatedConv2d(layer, unit, rectified)


class _Lowering:
    """Goes through a graph once and writes down the lowered one."""

    def __init__(
        self,
        flow: GateFlow,
        backbone: nn.Module,
        units: Sequence[Unit],
        dense: Collection[Unit],
    ) -> None:
        self.graph, self.backbone, self.units, self.dense = flow.graph, backbone, units, dense
        weights = {id(weight): weight for weight in backbone.parameters()}
        self.root = copy.deepcopy(backbone, weights).eval()
        detach(self.root)
        first = next(backbone.parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device
        self.owner = {node: unit for unit in units for node in span(flow.graph, unit)}
        self.masks = _masks(flow, self.owner)
        self.lowered = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        images, *operations = self.graph.fx.nodes
        self.copies[images] = self.lowered.node_copy(images)
        self.gates = self.lowered.placeholder("gates")
        for node in (images, *operations):
            unit = self.owner.get(node)
            if unit is not None and node is not unit.end:
                continue
            if node is not images:
                self.copies[node] = self._copy(node) if unit is None else self._call(unit)
            if node in self.masks:
                name = f"gaternet_gate_{self.graph.order(node)}"
                self.root.add_module(name, Mask(self.masks[node], self.device))
                operands = (self.copies[node], self.gates)
                self.copies[node] = self.lowered.call_module(name, operands)
        return fx.GraphModule(self.root, self.lowered)

    def _copy(self, node: fx.Node) -> fx.Node:
        if self.graph.is_identity(node):
            return self.copies[self.graph.inputs(node)[0]]
        if node.op == "get_attr":
            _check_attribute(self.root, node)
        copied = self.lowered.node_copy(node, self.copies.__getitem__)
        if node.op == "call_method" and node.target == "view":
            copied.target = "reshape"  # feature maps are channels last here
        return copied

    def _call(self, unit: Unit) -> fx.Node:
        name = unit_name(self.units, unit)
        dense, residual, rectified = unit in self.dense, [], False
        if unit.residual is not None:
            residual = [self.copies[unit.residual]]
            if not self._may_overwrite(unit, unit.residual):
                residual = [self.lowered.call_method("clone", tuple(residual))]
            rectified = self._is_rectified(unit, unit.residual)
        self.root.add_module(name, unit_module(unit, self.backbone, dense, rectified))
        (given,) = self.graph.inputs(unit.start)
        return self.lowered.call_module(name, (self.copies[given], self.gates, *residual))

    def _may_overwrite(self, unit: Unit, residual: fx.Node) -> bool:
        """Whether the sum may lie where the residual was: a unit made it, nobody reads it later."""
        shared = aliases(self.graph, residual)
        users = {user for node in shared for user in node.users}
        return self._maker(residual) is not None and all(
            user.op != "output" and self._is_read_by_then(unit, user) for user in users
        )

    def _is_read_by_then(self, unit: Unit, user: fx.Node) -> bool:
        """Whether an operation has run when a unit starts to write, or is a part of it that may."""
        owner = self.owner.get(user)
        if owner is unit:  # it reads its image while it writes, but each residual just once
            return user is not unit.start
        return self.graph.order(user if owner is None else owner.end) < self.graph.order(unit.end)

    def _is_rectified(self, unit: Unit, residual: fx.Node) -> bool:
        """Whether a residual is known to be nowhere negative."""
        maker = self._maker(residual)
        if maker is None or not maker.relu:
            return False
        return not is_overwritten(self.graph, residual, maker.end, unit.end)

    def _maker(self, node: fx.Node) -> Unit | None:
        """The unit that made a tensor, if it was one."""
        while self.graph.is_identity(node):
            (node, *_) = self.graph.inputs(node)
        return self.owner.get(node)


def _masks(flow: GateFlow, owner: Mapping[fx.Node, Unit]) -> dict[fx.Node, Gates]:
    """Where gates have to be applied still, because closed channels are not zero by themselves."""
    at = gates_at(flow.graph, flow.points)
    masks: dict[fx.Node, Gates] = {}
    zeros: dict[fx.Node, Gates] = {}
    for node in flow.graph.fx.nodes:
        unit = owner.get(node)
        if unit is None:
            found, own = zeros_after(flow.graph, node, zeros), [node]
        elif node is unit.end:
            found, own = _unit_zeros(unit, zeros), _behind_residual(flow.graph, unit)
        else:
            continue
        wanted = next((at[gated] for gated in own if gated in at), None)
        if wanted is not None and found != wanted:
            masks[node] = found = wanted
        if found is not None:
            zeros[node] = found
    return masks


def _behind_residual(graph: Graph, unit: Unit) -> list[fx.Node]:
    """The addition of a unit and what follows; gates before it are the filters' own."""
    if unit.residual is None:
        return []
    nodes = span(graph, unit)
    addition = next(i for i, node in enumerate(nodes) if unit.residual in graph.inputs(node))
    return nodes[: addition + 1]


def _unit_zeros(unit: Unit, zeros: Mapping[fx.Node, Gates]) -> Gates:
    if unit.residual is None:
        return unit.layer.outputs
    nothing = (UNGATED,) * len(unit.layer.outputs)
    return common([unit.layer.outputs, zeros.get(unit.residual, nothing)])


def _check_attribute(root: nn.Module, node: fx.Node) -> None:
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(root.get_submodule(owner), name, None)
    if not isinstance(value, Tensor):
        raise UserError(f"`{node.target}` is a constant that the forward makes on its way")
