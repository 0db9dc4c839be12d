"""Inner layers of residual branches: layers whose filters other layers alone read.

    ─┬─► conv1 ─► norm ─► [gate] ─► relu ─► conv2 ─► norm ─► + ─►
     └───────────────────────────────────────────────────────┘

A closed filter there is not only not computed, the next layer does not read it either. All layers
of a branch but the last are such: in a bottleneck two, in a basic block one. A layer whose filters
a depthwise conv hands on is gated behind that conv, together with it (inverted residuals).
"""

from collections.abc import Iterable

from torch import fx

from gaternet import branches, channels, structure
from gaternet.graph import Graph


def inner_nodes(graph: Graph) -> list[fx.Node]:
    """The nodes (N, C, H, W) where the inner layers' gates belong, in their order of execution.

    It is the norm that follows a layer, or the next place from which on a zero stays a zero.

    Raises ValueError for an inner layer that has no such place.
    """
    nodes = structure.without_scales(graph)
    aside = frozenset(graph.fx.nodes) - frozenset(nodes)
    places = []
    for layer in sorted(_in_branches(graph, nodes), key=graph.order):
        handed_on = _handed_on(graph, layer, aside)
        if handed_on:
            places.append(_place(graph, handed_on, aside))
    return sorted(places, key=graph.order)


def _in_branches(graph: Graph, nodes: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """The convs and linear layers that belong to a residual branch."""
    within: set[fx.Node] = set()
    for node in nodes:
        if channels.is_addition(graph, node) and not branches.is_part_of_sum(graph, node):
            added = branches.sum_at(graph, node)
            for branch in added.branches:
                within |= graph.common_ancestors([branch]) - added.fork
    return frozenset(node for node in nodes if node in within and channels.is_filter(graph, node))


def _handed_on(graph: Graph, layer: fx.Node, aside: frozenset[fx.Node]) -> list[fx.Node]:
    """The nodes that hand on a layer's filters, itself first, up to the layers that read them.

    Empty where something else reads them too: a sum, a concatenation, a depthwise conv.
    """
    found = [layer]
    for node in found:  # which grows meanwhile
        for reader in _readers(graph, node, aside):
            if channels.is_depthwise(graph, reader):
                return []
            if channels.is_filter(graph, reader) or reader in found:
                continue
            if reader.op == "output" or channels.channel_input(graph, reader) is not node:
                return []
            found.append(reader)
    return found


def _place(graph: Graph, handed_on: list[fx.Node], aside: frozenset[fx.Node]) -> fx.Node:
    path = handed_on[:1]
    while len(readers := _readers(graph, path[-1], aside)) == 1 and readers[0] in handed_on:
        path.append(readers[0])
    mapping = [node for node in handed_on[1:] if not channels.keeps_zero(graph, node)]
    behind = max(path.index(node) if node in path else len(path) for node in (*mapping, path[0]))
    place = next((node for node in path[behind:] if structure.usable(graph, node)), None)
    if place is None:
        reasons = "; ".join(structure.why_not(graph, node) for node in path[behind:])
        where = reasons or "its paths divide before a zero would stay a zero"
        raise ValueError(f"an inner layer of a residual branch has no place for a gate: {where}")
    return place


def _readers(graph: Graph, node: fx.Node, aside: frozenset[fx.Node]) -> list[fx.Node]:
    return [reader for reader in graph.readers(node) if reader not in aside]
