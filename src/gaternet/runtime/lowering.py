"""From a backbone's graph to one that runs only its open filters.

    conv → norm → [gate] (→ + residual) → relu     becomes     gated_conv2d(…)

Norms are folded into their convs, gates pushed back to the convs that make a filter and forward to
those that read it (see `gaternet.gate_flow`). Everything else stays as it was traced.
"""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gaternet import channels
from gaternet.errors import UserError
from gaternet.gate_flow import UNGATED, FilterLayer, GateFlow, Gates, common, gates_at, zeros_after
from gaternet.gate_points import detach
from gaternet.graph import Graph
from gaternet.runtime.operator import (
    Geometry,
    gated_conv2d,
    gated_conv2d_add_,
    pack_bias,
    pack_weight,
    spread,
)

_FOLDED_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)


@dataclass(frozen=True, eq=False)
class Unit:
    """A conv and what is computed with it: its norm, the addition of a residual, a ReLU.

    end: the last of its operations; its value is the unit's
    residual: what is added, None without an addition
    """

    layer: FilterLayer
    norm: nn.Module | None
    residual: fx.Node | None
    relu: bool
    end: fx.Node

    @property
    def conv(self) -> fx.Node:
        return self.layer.node


class GatedConv2d(nn.Module):
    """A unit by the operator: images, gates (N, G) and a residual → (N, O, H', W').

    The residual is overwritten; `rectified` says that it is never negative.
    """

    weight: Tensor
    bias: Tensor
    input_gates: Tensor
    output_gates: Tensor

    def __init__(self, conv: nn.Conv2d, unit: Unit, rectified: bool) -> None:
        super().__init__()
        weight, bias = fold(conv, unit.norm)
        self.register_buffer("weight", pack_weight(weight))
        self.register_buffer("bias", pack_bias(bias))
        self.register_buffer("input_gates", torch.tensor(unit.layer.inputs, dtype=torch.int32))
        self.register_buffer("output_gates", torch.tensor(unit.layer.outputs, dtype=torch.int32))
        self.geometry = _geometry(conv)
        self.relu = unit.relu
        self.rectified = rectified

    def forward(self, x: Tensor, gates: Tensor, residual: Tensor | None = None) -> Tensor:
        how = self.geometry
        operands = (x, self.weight, self.bias, gates, self.input_gates, self.output_gates)
        moves = (how.stride, how.padding, how.dilation, self.relu)
        if residual is None:
            return gated_conv2d(*operands, *moves)
        gated_conv2d_add_(residual, *operands, *moves, self.rectified)
        return residual


class DenseConv2d(nn.Module):
    """A unit by PyTorch's own conv: every filter is computed, then closed."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, unit: Unit) -> None:
        super().__init__()
        weight, bias = fold(conv, unit.norm)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        outputs = unit.layer.outputs
        self.mask = Mask(outputs) if any(gate != UNGATED for gate in outputs) else None
        self.geometry = _geometry(conv)
        self.groups = conv.groups
        self.relu = unit.relu

    def forward(self, x: Tensor, gates: Tensor, residual: Tensor | None = None) -> Tensor:
        how = self.geometry
        y = F.conv2d(x, self.weight, self.bias, how.stride, how.padding, how.dilation, self.groups)
        if self.mask is not None:
            y = self.mask(y, gates)
        if residual is not None:
            y += residual
        return y.relu_() if self.relu else y


class Mask(nn.Module):
    """Multiplies channels by their gates, where no operator does."""

    columns: Tensor

    def __init__(self, columns: Gates) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int32))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        return x * spread(gates, self.columns)


def fold(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a conv with the BatchNorm behind it, as evaluation has it."""
    weight = conv.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is not None:
        assert isinstance(norm, _FOLDED_NORMS)
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            scale, shift = scale * norm.weight.double(), shift * norm.weight.double()
            shift = shift + norm.bias.double()
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return weight.detach().to(conv.weight.dtype), bias.detach().to(conv.weight.dtype)


def find_units(flow: GateFlow, backbone: nn.Module) -> tuple[Unit, ...]:
    """The convs of a backbone with what can be computed in one go with them."""
    finder = _Finder(flow, backbone)
    # From the end: the later of two operands of an addition takes the other one as its residual.
    units = [finder.unit_at(layer) for layer in reversed(flow.layers) if finder.can_run(layer)]
    return tuple(reversed(units))


class _Finder:
    """Follows convs to the last operation that can be computed with them."""

    def __init__(self, flow: GateFlow, backbone: nn.Module) -> None:
        self.graph = flow.graph
        self.backbone = backbone
        self.at = gates_at(flow.graph, flow.points)
        self.taken: set[fx.Node] = set()

    def can_run(self, layer: FilterLayer) -> bool:
        conv = self._real(layer.node)
        return (
            type(conv) is nn.Conv2d
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and layer.node.args[0] in self.graph.inputs(layer.node)
        )

    def unit_at(self, layer: FilterLayer) -> Unit:
        node, norm, residual, relu = layer.node, None, None, False
        behind = self._next(layer, node)
        if behind and isinstance(module := self._real(behind), _FOLDED_NORMS) and _foldable(module):
            node, norm = behind, module
            relu = isinstance(getattr(module, "act", None), nn.ReLU)
            behind = self._next(layer, node)
        if behind and not relu and (other := self._other_operand(layer, behind, node)):
            node, residual = behind, other
            behind = self._next(layer, node)
        if behind and not relu and self._is_relu(behind):
            node, relu = behind, True
        unit = Unit(layer, norm, residual, relu, node)
        self.taken.update(_span(self.graph, unit))
        return unit

    def _real(self, node: fx.Node) -> nn.Module | None:
        return self.backbone.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _next(self, layer: FilterLayer, node: fx.Node) -> fx.Node | None:
        """The next operation that changes anything, where the unit of a layer may go on with it."""
        behind = self._only_reader(layer, node)
        while behind is not None and self.graph.is_identity(behind):
            behind = self._only_reader(layer, behind)
        return behind

    def _only_reader(self, layer: FilterLayer, node: fx.Node) -> fx.Node | None:
        readers = self.graph.readers(node)
        if len(readers) != 1 or len(node.users) != 1 or readers[0].op == "output":
            return None
        # Gates that are not the layer's own are applied behind the node: there the unit ends.
        if readers[0] in self.taken or self.at.get(node, layer.outputs) != layer.outputs:
            return None
        overwritten = (
            reader
            for given in self.graph.inputs(layer.node)
            for reader in self.graph.readers(given)
            if self.graph.works_in_place(reader)
        )
        before = any(
            self.graph.order(layer.node) < self.graph.order(other) <= self.graph.order(readers[0])
            for other in overwritten
        )
        return None if before else readers[0]

    def _other_operand(
        self, layer: FilterLayer, addition: fx.Node, operand: fx.Node
    ) -> fx.Node | None:
        given = self.graph.inputs(addition)
        if not channels.is_addition(self.graph, addition) or len(given) != 2:
            return None
        if len(addition.args) != 2 or addition.kwargs:
            return None
        other = given[0] if given[1] is operand else given[1]
        return other if self.graph.order(other) < self.graph.order(addition) else None

    def _is_relu(self, node: fx.Node) -> bool:
        return type(self._real(node)) is nn.ReLU or channels.operation(node) == "relu"


def _foldable(norm: nn.Module) -> bool:
    """Whether a norm only scales and shifts in evaluation, ReLU behind it or not."""
    plain = (nn.ReLU, nn.Identity)
    parts = (getattr(norm, "act", None), getattr(norm, "drop", None))
    known = all(part is None or isinstance(part, plain) for part in parts)
    return known and getattr(norm, "running_var", None) is not None


def _span(graph: Graph, unit: Unit) -> list[fx.Node]:
    """A unit's own operations, from its conv to its end."""
    nodes = [unit.end]
    while nodes[-1] is not unit.conv:
        given = [node for node in graph.inputs(nodes[-1]) if node is not unit.residual]
        nodes += given[:1]
    return nodes


def lower(
    flow: GateFlow, backbone: nn.Module, units: Sequence[Unit], dense: Collection[Unit] = ()
) -> fx.GraphModule:
    """Return a module (images, gates) → what the backbone returns under these gates.

    images: (N, C, H, W); gates: (N, G), 0 or 1
    dense: units that compute all their filters and close them afterwards

    Raises UserError where the graph has a constant that is not the backbone's, naming it.
    """
    root = copy.deepcopy(backbone).eval()
    detach(root)
    ends = {unit.end: unit for unit in units}
    inside = {node for unit in units for node in _span(flow.graph, unit)}
    masks = _masks(flow, units)
    lowered = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    images, *operations = flow.graph.fx.nodes
    copies[images] = lowered.node_copy(images)
    gates = lowered.placeholder("gates")
    for node in operations:
        if node in ends:
            unit = ends[node]
            residual = [copies[unit.residual]] if unit.residual else []
            if unit.residual and not _is_last_reader(flow.graph, unit, ends):
                residual = [lowered.call_method("clone", tuple(residual))]
            before = ends.get(_origin(flow.graph, unit.residual)) if unit.residual else None
            name = unit_name(units, unit)
            rectified = before is not None and before.relu
            root.add_module(name, unit_module(unit, backbone, unit in dense, rectified))
            (given, *_) = flow.graph.inputs(unit.conv)
            copies[node] = lowered.call_module(name, (copies[given], gates, *residual))
        elif node in inside:
            continue
        elif flow.graph.is_identity(node):
            copies[node] = copies[flow.graph.inputs(node)[0]]
        else:
            copies[node] = lowered.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            _check_attribute(root, node)
        if node in masks:
            name = f"gate_{len(copies)}"
            root.add_module(name, Mask(masks[node]))
            copies[node] = lowered.call_module(name, (copies[node], gates))
    return fx.GraphModule(root, lowered)


def unit_name(units: Sequence[Unit], unit: Unit) -> str:
    """Return the name of a unit's module in what `lower` returns."""
    return f"unit_{units.index(unit)}"


def unit_module(unit: Unit, backbone: nn.Module, dense: bool, rectified: bool) -> nn.Module:
    """Return what computes a unit, (images, gates[, residual]) → (N, O, H', W')."""
    conv = backbone.get_submodule(unit.layer.name)
    assert isinstance(conv, nn.Conv2d)
    if dense or conv.groups > 1:
        return DenseConv2d(conv, unit)
    return GatedConv2d(conv, unit, rectified)


def _is_last_reader(graph: Graph, unit: Unit, makers: Collection[fx.Node]) -> bool:
    """Whether a unit may overwrite its residual: a unit made it, and nobody reads it afterwards."""
    assert unit.residual is not None
    source = _origin(graph, unit.residual)
    readers = [source]
    for node in readers:  # it grows: what only hands the tensor on has readers too
        if graph.is_identity(node) or node is source:
            readers += [user for user in node.users if user not in readers]
    last = graph.order(unit.end)
    return source in makers and all(
        node.op != "output" and graph.order(node) <= last and _copies(graph, node)
        for node in readers[1:]
    )


def _copies(graph: Graph, node: fx.Node) -> bool:
    """Whether what a node returns shares no memory with what it reads, or is that itself."""
    known = channels.is_filter(graph, node) or channels.is_norm(graph, node)
    return known or channels.is_addition(graph, node) or graph.is_identity(node)


def _origin(graph: Graph, node: fx.Node) -> fx.Node:
    while graph.is_identity(node):
        (node, *_) = graph.inputs(node)
    return node


def _masks(flow: GateFlow, units: Iterable[Unit]) -> dict[fx.Node, Gates]:
    """Where gates have to be applied still, because closed channels are not zero by themselves."""
    at = gates_at(flow.graph, flow.points)
    ends = {unit.end: unit for unit in units}
    inside = {node for unit in units for node in _span(flow.graph, unit)}
    masks: dict[fx.Node, Gates] = {}
    zeros: dict[fx.Node, Gates] = {}
    for node in flow.graph.fx.nodes:
        unit = ends.get(node)
        if unit is None and node in inside:
            continue
        found = _unit_zeros(unit, zeros) if unit else zeros_after(flow.graph, node, zeros)
        own = _behind_residual(flow.graph, unit) if unit else [node]
        wanted = next((at[n] for n in own if n in at), None)
        if wanted is not None and found != wanted:
            masks[node] = found = wanted
        if found is not None:
            zeros[node] = found
    return masks


def _behind_residual(graph: Graph, unit: Unit) -> list[fx.Node]:
    """The addition of a unit and what follows; gates before it are the conv's own."""
    span = _span(graph, unit)
    addition = next((i for i, n in enumerate(span) if unit.residual in graph.inputs(n)), None)
    return [] if unit.residual is None or addition is None else span[: addition + 1]


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


def _geometry(conv: nn.Conv2d) -> Geometry:
    assert not isinstance(conv.padding, str)
    return Geometry(list(conv.stride), list(conv.padding), list(conv.dilation))
