"""Units: the convs and linear layers of a backbone, each with what is computed in one go with it.

    conv → norm → [gate] → + residual → [gate] → relu
    linear → norm → relu

All but the first may be missing. A unit runs where the last of its operations was: what it reads
must not have been overwritten by then, and what it passes over is read by nobody else.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import fx, nn

from gaternet import channels
from gaternet.gate_flow import FilterLayer, GateFlow, gates_at
from gaternet.graph import Graph
from gaternet.memory import is_overwritten, overwritten
from gaternet.tracing import BATCH

# By exact type: what a subclass makes of its statistics is not known.
_FOLDED_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm),
    *(BatchNormAct2d, SyncBatchNormAct),
)


@dataclass(frozen=True, eq=False)
class Unit:
    """A conv or linear layer and what is computed with it: norm, addition of a residual, ReLU.

    end: the last of its operations; its value is the unit's
    residual: what is added, None without an addition
    """

    layer: FilterLayer
    end: fx.Node
    norm: nn.Module | None = None
    residual: fx.Node | None = None
    relu: bool = False

    @property
    def start(self) -> fx.Node:
        """The conv or linear layer."""
        return self.layer.node


def find_units(flow: GateFlow, backbone: nn.Module) -> tuple[Unit, ...]:
    """The convs and linear layers of a backbone with what can be computed in one go with them."""
    finder = _Finder(flow, backbone)
    # From the end: the later of two operands of an addition takes the other one as its residual.
    units = [finder.unit_at(layer) for layer in reversed(flow.layers) if finder.can_run(layer)]
    return tuple(reversed(units))


def span(graph: Graph, unit: Unit) -> list[fx.Node]:
    """A unit's own operations, from its end back to its start."""
    nodes = [unit.end]
    while nodes[-1] is not unit.start:
        given = [node for node in graph.inputs(nodes[-1]) if node is not unit.residual]
        nodes += given[:1]
    return nodes


class _Finder:
    """Follows filters to the last operation that can be computed with them."""

    def __init__(self, flow: GateFlow, backbone: nn.Module) -> None:
        self.graph = flow.graph
        self.backbone = backbone
        self.at = gates_at(flow.graph, flow.points)
        self.taken: set[fx.Node] = set()

    def can_run(self, layer: FilterLayer) -> bool:
        module, shape = self._real(layer.node), self.graph.shape(layer.node) or ()
        if shape[:1] != (BATCH,):  # tokens, windows: gates are an image's
            return False
        if type(module) is nn.Linear:
            return len(shape) == 2
        return (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and len(shape) == 4
        )

    def unit_at(self, layer: FilterLayer) -> Unit:
        unit, before = Unit(layer, layer.node), layer.node
        gated = before in self.at
        for node in self._followers(before):
            grown = unit if self.graph.is_identity(node) else self._grown(unit, before, node, gated)
            if grown is None or self._reads_too_late(unit, grown):
                break
            # Gates go into a unit once before the addition and once behind it.
            gated = gated and grown.residual is unit.residual
            if gated and node in self.at:
                break
            gated = gated or node in self.at
            unit, before = grown, node
        self.taken.update(span(self.graph, unit))
        return unit

    def _followers(self, node: fx.Node) -> Iterator[fx.Node]:
        """The operation that alone reads a node, the one that alone reads that, and so on."""
        while True:
            readers = self.graph.readers(node)
            if len(readers) != 1 or len(node.users) != 1:
                return
            (node,) = readers
            if node.op == "output" or node in self.taken:
                return
            yield node

    def _grown(self, unit: Unit, before: fx.Node, node: fx.Node, gated: bool) -> Unit | None:
        """A unit with one more operation, `node`, which reads `before`; None if it cannot be."""
        module = self._real(node)
        if unit.end is unit.start and not gated and _is_folded(module):
            relu = isinstance(getattr(module, "act", None), nn.ReLU)
            return replace(unit, end=node, norm=module, relu=relu)
        if unit.relu:
            return None
        other = self._other_operand(node, before)
        if unit.residual is None and other is not None:
            return replace(unit, end=node, residual=other)
        if type(module) is nn.ReLU or channels.operation(node) == "relu":
            return replace(unit, end=node, relu=True)
        return None

    def _reads_too_late(self, unit: Unit, grown: Unit) -> bool:
        """Whether what a unit reads is overwritten before the last operation of the grown one."""
        read = self.graph.inputs(unit.start) + ([unit.residual] if unit.residual else [])
        return any(is_overwritten(self.graph, node, unit.end, grown.end) for node in read)

    def _other_operand(self, addition: fx.Node, operand: fx.Node) -> fx.Node | None:
        given = self.graph.inputs(addition)
        plain = len(given) == len(addition.args) == 2 and not addition.kwargs
        if not plain or not channels.is_addition(self.graph, addition):
            return None
        if overwritten(self.graph, addition) not in (None, operand):
            return None
        return given[0] if given[1] is operand else given[1]

    def _real(self, node: fx.Node) -> nn.Module | None:
        return self.backbone.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_folded(module: nn.Module | None) -> bool:
    """Whether a module is a norm that only scales and shifts in evaluation, ReLU behind or not."""
    if type(module) not in _FOLDED_NORMS or getattr(module, "running_var", None) is None:
        return False
    parts = (getattr(module, "act", None), getattr(module, "drop", None))
    return all(part is None or isinstance(part, nn.ReLU | nn.Identity) for part in parts)
