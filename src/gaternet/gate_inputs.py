"""What a local gate decides from: a feature map of the backbone, found in the graph.

a filter's gate    the input of the conv that makes the filter; where a gate point's channels
                   come from several convs (a sum, a concatenation), what all of them read
a branch's gate    the input of the residual unit, where branch and shortcut fork
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch.fx import Node

from gaternet import channels, structure
from gaternet.gate_points import GatePoint
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
    """What the conv behind a gate point reads.

    Raises ValueError where no submodule reads or hands out that feature map as a whole.
    """
    gated = _gated(graph, point)
    origin = gated
    while (before := channels.channel_input(graph, origin)) is not None:
        origin = before
    read = graph.inputs(origin)
    if not read:
        raise ValueError(f"gate point `{point.name}` has no filter of its own to decide on")
    source = read[0] if channels.is_filter(graph, origin) else _fork(graph, read)
    return _found(graph, source, gated, point)


def branch_input(graph: Graph, point: GatePoint) -> GateInput:
    """What the residual unit reads on whose branch a gate point is (Veit and Belongie, 2018).

    Raises ValueError where the point is not on a branch of an addition, and as `filter_input`.
    """
    gated = _gated(graph, point)
    addition = _addition_behind(graph, gated)
    if addition is None:
        raise ValueError(f"gate point `{point.name}` is on no branch that ends in an addition")
    source = _fork(graph, graph.inputs(addition))
    if graph.order(source) >= graph.order(gated):
        raise ValueError(f"gate point `{point.name}` is no residual branch: others start from it")
    return _found(graph, source, gated, point)


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
            if reader.op != "output" and channels.channel_input(graph, reader) is node:
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


def _found(graph: Graph, source: Node, gated: Node, point: GatePoint) -> GateInput:
    dim, shape = channels.channel_dim(graph, source), graph.shape(source)
    place = _reader(graph, source, gated) or structure.name_of(graph, source)
    if place is None or dim not in (1, 3) or shape is None:
        raise ValueError(
            f"gate point `{point.name}` cannot decide locally: no submodule reads or hands out "
            f"the feature map `{source.name}`; name other gate points"
        )
    side: Literal["input", "output"] = "input" if _reader(graph, source, gated) else "output"
    return GateInput(place, side, shape[dim], dim)


def _reader(graph: Graph, source: Node, gated: Node) -> str | None:
    """The first submodule, called once, that reads a feature map before the gates need it."""
    for reader in sorted(graph.readers(source), key=graph.order):
        name = str(reader.target)
        if (
            reader.op == "call_module"
            and reader.args[:1] == (source,)
            and len(graph.outputs[name]) == 1
            and graph.order(reader) <= graph.order(gated)
        ):
            return name
    return None
