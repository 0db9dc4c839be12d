"""Which operations of a backbone's graph share memory, and when it is overwritten."""

from collections.abc import Iterator

from torch import fx

from gaternet import channels
from gaternet.graph import Graph


def aliases(graph: Graph, node: fx.Node) -> set[fx.Node]:
    """Return the nodes whose tensors may lie in the same memory as a node's, itself too."""
    shared = {node}
    waiting = [node]
    while waiting:
        one = waiting.pop()
        readers = (user for user in graph.readers(one) if one in _shared_inputs(graph, user))
        found = {*_shared_inputs(graph, one), *readers} - shared
        shared |= found
        waiting += found
    return shared


def is_overwritten(graph: Graph, node: fx.Node, after: fx.Node, until: fx.Node) -> bool:
    """Whether a node's memory is overwritten after one operation, by another one at the latest."""
    shared = aliases(graph, node)
    return any(
        graph.order(after) < graph.order(writer) <= graph.order(until)
        for writer in graph.fx.nodes
        if (target := overwritten(graph, writer)) is not None and target in shared
    )


def overwritten(graph: Graph, node: fx.Node) -> fx.Node | None:
    """Return what a node that works in place overwrites, its first input; None for others."""
    return next(iter(graph.inputs(node)), None) if graph.works_in_place(node) else None


def _shared_inputs(graph: Graph, node: fx.Node) -> Iterator[fx.Node]:
    """The inputs whose memory a node may hand on: unless it is known to make a tensor, all."""
    if node.op == "output" or _makes_its_own(graph, node):
        return iter(())
    given = graph.inputs(node)
    return iter(given[:1] if graph.works_in_place(node) else given)


def _makes_its_own(graph: Graph, node: fx.Node) -> bool:
    if graph.works_in_place(node) or graph.is_identity(node):
        return False
    kinds = (
        channels.is_filter,
        channels.is_norm,
        channels.is_addition,
        channels.is_concatenation,
        channels.is_activation,
    )
    return any(makes(graph, node) for makes in kinds)
