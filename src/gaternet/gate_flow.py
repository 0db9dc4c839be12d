"""Where gates reach: which channels a closed gate makes exactly zero, and which nobody needs then.

    conv1 ─► norm ─► [gate] ─► relu ─► conv2
      └ makes channels that        └ reads channels that are 0
        nobody needs                 where the gate is closed

Of a layer with `i` open input and `o` open output channels, i · o products of each position are
left. Costs, compression and the runtime all read this; none follows the gates a second time.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from gaternet import channels
from gaternet.gate_points import UNGATED, GatePoint
from gaternet.graph import Graph
from gaternet.memory import aliases, overwritten

Gates = tuple[int, ...]
"""For each channel the column of the gates (N, G) that closes it, or `UNGATED`."""


@dataclass(frozen=True, eq=False)
class FilterLayer:
    """One call of a conv or linear layer, as the gates see it.

    inputs: for each input channel the gate that makes it exactly zero
    outputs: for each output channel the gate whose closing leaves nobody who needs it
    groups: of a grouped conv; 1 for a linear layer
    macs: multiply-accumulates per image with every gate open
    """

    node: fx.Node
    name: str
    inputs: Gates
    outputs: Gates
    groups: int
    macs: int

    @property
    def gated(self) -> bool:
        """Whether a gate can save anything here."""
        return any(gate != UNGATED for gate in (*self.inputs, *self.outputs))


@dataclass(frozen=True, eq=False)
class GateFlow:
    """What closed gates do to every node of a graph.

    zeros: for nodes with channels, the gate that makes each channel of their output exactly zero
    unneeded: for nodes with channels, the gate whose closing leaves nobody who needs the channel
    layers: all convs and linear layers with learned weights, in the order of execution
    """

    graph: Graph
    points: tuple[GatePoint, ...]
    zeros: dict[fx.Node, Gates]
    unneeded: dict[fx.Node, Gates]
    layers: tuple[FilterLayer, ...]


def follow(graph: Graph, points: Sequence[GatePoint]) -> GateFlow:
    """Follow the gates of a backbone, forward to who reads zeros and back to who made them."""
    at = gates_at(graph, points)
    zeros: dict[fx.Node, Gates] = {}
    written: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.fx.nodes:
        if found := at.get(node) or zeros_after(graph, node, _read(graph, node, zeros, written)):
            zeros[node] = found
        target = overwritten(graph, node)
        if target is not None and zeros.get(target) != found:
            written[node] = aliases(graph, target)
    unneeded: dict[fx.Node, Gates] = {}
    for node in reversed(graph.fx.nodes):
        found = at.get(node) or _unneeded_by_all(graph, node, unneeded)
        if found and any(gate != UNGATED for gate in found):
            unneeded[node] = found
    filters = [node for node in graph.fx.nodes if channels.is_filter(graph, node)]
    # Not what reads a parameter only: it is the same for every image.
    reading = [node for node in filters if graph.inputs(node)]
    layers = tuple(
        _layer(graph, node, _read(graph, node, zeros, written), unneeded) for node in reading
    )
    return GateFlow(graph, tuple(points), zeros, unneeded, layers)


def gates_at(graph: Graph, points: Sequence[GatePoint]) -> dict[fx.Node, Gates]:
    """The gate of each channel at the nodes that are gated."""
    at: dict[fx.Node, Gates] = {}
    start = 0
    for point in points:
        (node,) = graph.outputs[point.name]
        assert node is not None
        at[node] = tuple(
            gate if gate == UNGATED else start + gate for gate in point.gate_of_channels
        )
        start += point.gates
    return at


def _read(
    graph: Graph,
    reader: fx.Node,
    zeros: Mapping[fx.Node, Gates],
    written: Mapping[fx.Node, Collection[fx.Node]],
) -> dict[fx.Node, Gates]:
    """The zeros of what a node reads, but of nothing that was overwritten by then.

    written: for operations in place that leave other zeros, the nodes whose memory it may be
    """
    return {
        given: zeros[given]
        for given in graph.inputs(reader)
        if given in zeros
        and not any(
            given in shared and graph.order(given) < graph.order(writer) < graph.order(reader)
            for writer, shared in written.items()
        )
    }


def zeros_after(graph: Graph, node: fx.Node, zeros: Mapping[fx.Node, Gates]) -> Gates | None:
    """The gates that make a node's channels zero, from those of what it reads; None without any."""
    found = _handed_zeros(graph, node, zeros)
    return found if found and any(gate != UNGATED for gate in found) else None


def _handed_zeros(graph: Graph, node: fx.Node, zeros: Mapping[fx.Node, Gates]) -> Gates | None:
    count = channel_count(graph, node)
    if count is None:
        return None
    if channels.is_addition(graph, node):
        return common(_of(given, count, zeros) for given in graph.inputs(node))
    parts = joined(graph, node)
    if parts:
        return tuple(gate for part in parts for gate in _of(part, _width(graph, part), zeros))
    if (part := sliced(graph, node)) is not None:
        source, first = part
        return _of(source, _width(graph, source), zeros)[first : first + count]
    whole = handed_on(graph, node)
    if whole is None or whole not in zeros or _has_bias(graph, node):
        return None
    kept = channels.keeps_zero(graph, node) or any(keeps(graph, node) for keeps in _HAND_ON)
    return _spread(zeros[whole], count) if kept else None


def _unneeded_by_all(graph: Graph, node: fx.Node, unneeded: dict[fx.Node, Gates]) -> Gates | None:
    readers = graph.readers(node)
    if not readers or channel_count(graph, node) is None:
        return None
    return common(_unneeded_by(graph, node, reader, unneeded) for reader in readers)


def _unneeded_by(
    graph: Graph, node: fx.Node, reader: fx.Node, unneeded: dict[fx.Node, Gates]
) -> Gates:
    """The gates whose closing makes one reader indifferent to each channel of a node."""
    count = channel_count(graph, node) or 0
    nothing = (UNGATED,) * count
    if reader not in unneeded:
        return nothing
    behind = unneeded[reader]
    if channels.is_addition(graph, reader):
        return behind
    parts = joined(graph, reader)
    if parts:
        if parts.count(node) != 1:
            return nothing
        before = parts[: parts.index(node)]
        start = sum(_width(graph, part) for part in before)
        return behind[start : start + count]
    # Not a product's scale: where its feature map is not needed, neither is it.
    channelwise = handed_on(graph, reader) is node or _is_scale(graph, reader, node)
    return behind if channelwise and len(behind) == count else nothing


def _layer(
    graph: Graph, node: fx.Node, zeros: Mapping[fx.Node, Gates], unneeded: Mapping[fx.Node, Gates]
) -> FilterLayer:
    (given, *_) = graph.inputs(node)
    name = str(node.target) if node.op == "call_module" else graph.layer(node) or node.name
    rank = len(graph.shape(given) or ())
    # Of a conv they are dimension 1, also where a reshape before it hides that.
    read = _width(graph, given) if rank == 4 and not _is_linear(graph, node) else None
    return FilterLayer(
        node,
        name,
        _of(given, read or channel_count(graph, given) or 0, zeros),
        _of(node, channel_count(graph, node) or 0, unneeded),
        _groups(graph, node),
        graph.node_macs(node),
    )


def _of(node: fx.Node, count: int, gates: Mapping[fx.Node, Gates]) -> Gates:
    return gates.get(node) or (UNGATED,) * count


def _width(graph: Graph, node: fx.Node) -> int:
    """The size of dimension 1, where a node is known to be (N, C, H, W) by what reads it."""
    shape = graph.shape(node)
    assert shape is not None
    return shape[1]


def _is_linear(graph: Graph, node: fx.Node) -> bool:
    return isinstance(graph.module(node), nn.Linear) or channels.operation(node) == "linear"


def common(several: Iterable[Gates]) -> Gates:
    """For each channel the gate that all name, else none."""
    return tuple(
        named[0] if len(set(named)) == 1 else UNGATED for named in zip(*several, strict=True)
    )


def _spread(gates: Gates, count: int) -> Gates:
    """Each channel's gate for all the values that flattening made of it."""
    return tuple(gate for gate in gates for _ in range(count // len(gates)))


def channel_count(graph: Graph, node: fx.Node) -> int | None:
    """The channels of a feature map (N, C, H, W), of (N, H, W, C) or of features (N, C)."""
    shape = graph.shape(node)
    if node.op == "output" or shape is None:
        return None
    if len(shape) == 2:
        return shape[1]
    dim = channels.channel_dim(graph, node) if len(shape) == 4 else None
    return shape[dim] if dim is not None else None


def handed_on(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The input whose channels a node hands on one by one, pooled or convolved apart too.

    None where a channel takes part in others: in a conv, and in a norm over groups of channels.
    """
    if any(handing(graph, node) for handing in _HAND_ON):
        return graph.inputs(node)[0]
    if channels.shares_statistics(graph, node):
        return None
    source = channels.channel_input(graph, node)
    if source is None or channel_count(graph, source) != channel_count(graph, node):
        return None
    return source


def is_flat(graph: Graph, node: fx.Node) -> bool:
    """Whether a node makes (N, C, H, W) into (N, C·H·W), or into (N, C) by a mean."""
    given, name = graph.inputs(node), channels.operation(node)
    before = (graph.shape(given[0]) if len(given) == 1 else None) or ()
    if len(before) != 4 or channels.channel_dim(graph, given[0]) != 1:
        return False
    batch, count, height, width = before
    if isinstance(graph.module(node), nn.Flatten) or name in ("flatten", "view", "reshape"):
        return graph.shape(node) == (batch, count * height * width)
    if name in ("mean", "amax", "sum"):
        return graph.shape(node) == (batch, count) and _reduced_dims(node) == {2, 3}
    return name == "squeeze" and graph.shape(node) == (batch, count)


def _reduced_dims(node: fx.Node) -> set[int]:
    """The dimensions of (N, C, H, W) that a mean, a maximum or a sum goes over."""
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    return {dim % 4 for dim in (dims if isinstance(dims, list | tuple) else (dims,))}


def is_mean(graph: Graph, node: fx.Node) -> bool:
    """Whether a node pools (N, C, H, W) to (N, C, 1, 1): squeeze-and-excitation's mean."""
    given, shape = graph.inputs(node), graph.shape(node) or ()
    if len(given) != 1 or channels.operation(node) not in ("mean", "amax"):
        return False
    before = graph.shape(given[0]) or ()
    spatial = len(before) == 4 and shape == (*before[:2], 1, 1)
    return spatial and channels.channel_dim(graph, given[0]) == 1


_HAND_ON = (is_flat, is_mean, channels.is_depthwise, channels.is_unsqueezed)


def _has_bias(graph: Graph, node: fx.Node) -> bool:
    return channels.is_depthwise(graph, node) and graph.modules[str(node.target)].bias is not None


def _is_scale(graph: Graph, product: fx.Node, node: fx.Node) -> bool:
    """Whether a node only scales the channels of a product (squeeze-and-excitation)."""
    if channels.operation(product) not in ("mul", "multiply"):
        return False
    return node is not channels.channel_input(graph, product)


def joined(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """The parts of a concatenation along channels, repeated ones too; empty for another node."""
    if not channels.is_concatenation(graph, node):
        return []
    parts = node.args[0] if node.args else node.kwargs["tensors"]
    assert isinstance(parts, list | tuple)
    return [part for part in parts if isinstance(part, fx.Node)]


def sliced(graph: Graph, node: fx.Node) -> tuple[fx.Node, int] | None:
    """What x[:, a:b] is taken from, and a; None for anything else."""
    source = channels.sliced_input(graph, node)
    if source is None or source not in graph.inputs(node):  # a chunk's place is not looked up
        return None
    index = node.args[1]
    part = index[1] if isinstance(index, tuple) else None
    if not isinstance(part, slice) or part.step not in (None, 1):
        return None
    start = part.start or 0
    return (source, start) if isinstance(start, int) and start >= 0 else None


def _groups(graph: Graph, node: fx.Node) -> int:
    module = graph.module(node)
    if module is not None:
        return getattr(module, "groups", 1)
    if _is_linear(graph, node):
        return 1
    groups: Any = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return groups
