"""The branches of a sum: what is added, back to where it forks, and what only serves one branch."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from gaternet import channels
from gaternet.graph import Graph


@dataclass(frozen=True, eq=False)
class Sum:
    """An addition and what it adds.

    operands: the terms, a + (b + c) taken as one sum of three
    fork: the nodes that all operands are computed from; what is older than the branches
    shortcut: the operand with the fewest filters since the fork, along a path, then in all; None
        where several have as few
    """

    node: fx.Node
    operands: Sequence[fx.Node]
    fork: frozenset[fx.Node]
    shortcut: fx.Node | None

    @property
    def branches(self) -> list[fx.Node]:
        """The operands that are not the shortcut."""
        return [operand for operand in self.operands if operand is not self.shortcut]


def sum_at(graph: Graph, addition: fx.Node) -> Sum:
    """What a node adds, and which operand is the shortcut."""
    operands = _operands(graph, addition)
    fork = graph.common_ancestors(operands)
    counts = {operand: _filters(graph, operand, fork) for operand in operands}
    fewest = [operand for operand in operands if counts[operand] == min(counts.values())]
    return Sum(addition, operands, fork, fewest[0] if len(fewest) == 1 else None)


def is_part_of_sum(graph: Graph, addition: fx.Node) -> bool:
    """Whether an addition only makes an operand of another one."""
    readers = graph.readers(addition)
    return len(readers) == 1 and channels.is_addition(graph, readers[0])


def filters_since(graph: Graph, node: fx.Node, fork: frozenset[fx.Node]) -> int:
    """The fewest filters (convs, linear layers) on a path from the fork to a node."""
    queue, seen = deque([(node, 0)]), set()
    while queue:
        node, count = queue.popleft()
        if node in fork:
            return count
        if node in seen:
            continue
        seen.add(node)
        is_filter = channels.is_filter(graph, node)
        for given in graph.inputs(node):
            # A shortest path with steps of 0 and 1: zero steps are taken first.
            (queue.append if is_filter else queue.appendleft)((given, count + is_filter))
    raise AssertionError("every node is computed from the images")


def channel_path(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """From where the channels of a node were made (at best a filter) up to the node."""
    path = [node]
    while (before := source(graph, path[0])) is not None:
        path.insert(0, before)
    return path


def source(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The input whose channels a node hands on, all or a range of them; None if it mixes them."""
    return channels.channel_input(graph, node) or channels.sliced_input(graph, node)


def only_into(graph: Graph, end: fx.Node, outside: Collection[fx.Node] = ()) -> frozenset[fx.Node]:
    """A node and those from which every way to the output leads through it."""
    inside = {end}
    for node in reversed(list(graph.fx.nodes)[: graph.order(end)]):
        readers = graph.readers(node)
        if readers and node not in outside and all(reader in inside for reader in readers):
            inside.add(node)
    return frozenset(inside)


def inner_layers(graph: Graph, added: Sum) -> frozenset[fx.Node]:
    """The concatenations in the branches of a residual unit, and what they alone read.

    They are layers of their branch like its inner convs; at its end they are its last layer.
    """
    ends = {channel_path(graph, branch)[0] for branch in added.branches} - added.fork
    joined = {end for end in ends if channels.is_concatenation(graph, end)}
    if not _has_plain_shortcut(graph, added):
        return frozenset(joined)
    within = only_into(graph, added.node, added.fork)
    for node in within:
        if channels.is_concatenation(graph, node):
            joined |= only_into(graph, node, added.fork)
    return frozenset(joined)


def scales(graph: Graph, product: fx.Node) -> frozenset[fx.Node]:
    """What only computes the scale of a product (squeeze-and-excitation), not its feature map."""
    scaled = channels.channel_input(graph, product)
    if scaled is None or not any(
        graph.shape(given) != graph.shape(product) or graph.precedes(scaled, given)
        for given in graph.inputs(product)
        if given is not scaled
    ):
        return frozenset()
    return only_into(graph, product, graph.common_ancestors([scaled])) - {product}


def _operands(graph: Graph, addition: fx.Node) -> list[fx.Node]:
    operands = []
    for operand in graph.inputs(addition):
        nested = channels.is_addition(graph, operand) and len(graph.readers(operand)) == 1
        operands += _operands(graph, operand) if nested else [operand]
    return operands


def _filters(graph: Graph, operand: fx.Node, fork: frozenset[fx.Node]) -> tuple[int, int]:
    own = graph.common_ancestors([operand]) - fork
    return filters_since(graph, operand, fork), sum(channels.is_filter(graph, n) for n in own)


def _has_plain_shortcut(graph: Graph, added: Sum) -> bool:
    if added.shortcut is None:
        return False
    own = graph.common_ancestors([added.shortcut]) - added.fork
    return not any(
        channels.is_addition(graph, node) or channels.is_concatenation(graph, node) for node in own
    )
