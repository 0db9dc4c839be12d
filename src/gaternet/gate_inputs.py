"""What a local gate decides from: a feature map of the backbone, found in the graph.

    a filter's gate    the input of the conv that makes the filter; where a gate point's channels
                       come from several convs (a sum, a concatenation), what all of them read
    a branch's gate    the input of the residual unit, where branch and shortcut fork

Where no submodule reads or hands out that feature map as a whole, it is the nearest one before it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.fx import Node

from gaternet import branches, channels, structure
from gaternet.gate_points import GatePoint, find_gate_points
from gaternet.graph import Graph


@dataclass(frozen=True)
class GateInput:
    """A feature map as a hook finds it: the input or the output of a submodule."""

    module: str
    side: Literal["input", "output"]
    channels: int
    channel_dim: int
    """1 in (N, C, H, W), 3 in (N, H, W, C)."""


def filter_input(graph: Graph, point: GatePoint) -> GateInput:
    """Return what the conv reads that makes a gate point's channels.

    Raises ValueError where no submodule has it, nor what it was computed from.
    """
    gated = _gated(graph, point)
    origin = gated
    while (before := channels.channel_input(graph, origin)) is not None:
        origin = before
    read = graph.inputs(origin)
    source = read[0] if channels.is_filter(graph, origin) else _fork(graph, read or [origin])
    return _input_at(graph, source, point)


def branch_input(graph: Graph, point: GatePoint) -> GateInput:
    """What the residual unit reads on whose branch a gate point is (Veit and Belongie, 2018).

    Raises ValueError where the point is on no residual branch, and as `filter_input`.
    """
    source = _unit_input(graph, point)
    if source is None:
        raise ValueError(f"gate point `{point.name}` is on no branch beside a shortcut")
    return _input_at(graph, source, point)


def find_branches(graph: Graph) -> tuple[GatePoint, ...]:
    """The gate points of the structural rule that are on residual branches, one gate each.

    Raises ValueError where there are none.
    """
    points = [point for point in find_gate_points(graph) if _unit_input(graph, point) is not None]
    if not points:
        raise ValueError("the backbone has no residual branches: gate its filters")
    return tuple(replace(point, block=point.channels) for point in points)


def _unit_input(graph: Graph, point: GatePoint) -> Node | None:
    """Where branch and shortcut fork; None for a point that is on no branch."""
    gated = _gated(graph, point)
    addition = _addition_behind(graph, gated)
    if addition is None:
        return None
    source = _fork(graph, graph.inputs(addition))
    return source if graph.order(source) < graph.order(gated) else None


def _gated(graph: Graph, point: GatePoint) -> Node:
    (node,) = graph.outputs[point.name]
    assert node is not None
    return node


def _addition_behind(graph: Graph, node: Node) -> Node | None:
    """The sum that a node's channels flow into, a + (b + c) taken as one sum."""
    queue = deque([node])
    while queue:
        node = queue.popleft()
        for reader in graph.readers(node):
            if channels.is_addition(graph, reader):
                return _whole_sum(graph, reader)
            if reader.op != "output" and branches.source(graph, reader) is node:
                queue.append(reader)
    return None


def _whole_sum(graph: Graph, addition: Node) -> Node:
    readers = graph.readers(addition)
    while len(readers) == 1 and channels.is_addition(graph, readers[0]):
        addition = readers[0]
        readers = graph.readers(addition)
    return addition


def _fork(graph: Graph, parts: Iterable[Node]) -> Node:
    """The latest feature map that all parts are computed from."""
    images = next(node for node in graph.fx.nodes if node.op == "placeholder")
    common = (node for node in graph.common_ancestors(parts) if graph.precedes(images, node))
    return max((n for n in common if len(graph.shape(n) or ()) == 4), key=graph.order)


def _input_at(graph: Graph, source: Node, point: GatePoint) -> GateInput:
    gated = _gated(graph, point)
    while (found := _found(graph, source, gated)) is None:
        if not graph.inputs(source):
            raise ValueError(
                f"gate point `{point.name}` cannot decide locally: no submodule reads or hands out "
                "a feature map before it; name other gate points"
            )
        source = _fork(graph, graph.inputs(source))
    return found


def _found(graph: Graph, source: Node, gated: Node) -> GateInput | None:
    """A feature map as the input of the first submodule that reads it, or as an output."""
    dim, shape = _channel_dim(graph, source), graph.shape(source)
    if dim is None or shape is None:
        return None
    for reader in sorted(graph.readers(source), key=graph.order):
        name = str(reader.target)
        if (
            reader.op == "call_module"
            and reader.args[:1] == (source,)
            and len(graph.outputs[name]) == 1
            and graph.order(reader) <= graph.order(gated)  # before the gates are needed
        ):
            return GateInput(name, "input", shape[dim], dim)
    owner = structure.name_of(graph, source)
    return GateInput(owner, "output", shape[dim], dim) if owner else None


def _channel_dim(graph: Graph, source: Node) -> int | None:
    if any(isinstance(graph.module(reader), nn.Conv2d) for reader in _modules(graph, source)):
        return 1
    dim = channels.channel_dim(graph, source)
    return dim if dim in (1, 3) else None


def _modules(graph: Graph, source: Node) -> list[Node]:
    return [reader for reader in graph.readers(source) if reader.op == "call_module"]
