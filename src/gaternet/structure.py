"""Where the gates of a backbone belong: the structural rule, on its graph.

    addition        the branches' last conv or linear layer, with the norm that directly follows;
                    the operand with the fewest convs is the shortcut, it is not gated;
                    single convs side by side are one layer in parts: their sum
    concatenation   with its own input: the new channels, except where that input is not yet a
                    concatenation (DenseNet); any other: its output (Inception)
    plain chain     every conv, after its norm and activation (VGG)

These are the filters that the paper gates, in its counts (Tables 1 to 3).
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice

from torch import fx

from gaternet import channels
from gaternet.graph import Graph


def gated_nodes(graph: Graph) -> list[fx.Node]:
    """The nodes (N, C, H, W) to gate, in their order of execution; see the module's rule.

    Raises ValueError for a residual branch whose filters no submodule hands out.
    """
    nodes = list(graph.fx.nodes)
    additions = [node for node in nodes if channels.is_addition(graph, node)]
    concatenations = [node for node in nodes if channels.is_concatenation(graph, node)]
    gated: set[fx.Node] = set()
    for node in additions:
        if not _is_part_of_sum(graph, node):
            gated.update(_at_addition(graph, node))
    gated.update(_at_concatenations(graph, concatenations))
    if not additions and not concatenations:
        gated.update(_along_chain(graph, nodes))
    return sorted(gated, key=graph.order)


def refusal(graph: Graph, node: fx.Node) -> str | None:
    """Why no gate can sit on a node; None where one can."""
    shape = graph.shape(node)
    if shape is None or len(shape) != 4:
        return f"its output is {'no tensor' if shape is None else shape}, not (N, C, H, W)"
    if channels.channel_dim(graph, node) == 3:
        return "its output is (N, H, W, C), not (N, C, H, W)"
    if graph.works_in_place(node) and any(
        graph.order(reader) > graph.order(node)
        for given in graph.inputs(node)
        for reader in graph.readers(given)
    ):
        return "it overwrites its input, which is also read elsewhere"
    return None


def name_of(graph: Graph, node: fx.Node) -> str | None:
    """The innermost submodule, called once, whose output a node is."""
    return next((name for name in graph.names(node) if len(graph.outputs[name]) == 1), None)


def _usable(graph: Graph, node: fx.Node) -> bool:
    named = name_of(graph, node) is not None and refusal(graph, node) is None
    # Where a reshape hides which dimension the channels are, only the user can tell.
    return named and channels.channel_dim(graph, node) == 1


def _at_addition(graph: Graph, addition: fx.Node) -> Iterator[fx.Node]:
    operands = _operands(graph, addition)
    common = graph.common_ancestors(operands)
    filters = [_filters_since(graph, operand, common) for operand in operands]
    if _is_one_layer(graph, operands, filters):
        place = _after(graph, addition)
        if place is not None:
            yield place
            return
    shortcut = min(filters) if filters.count(min(filters)) == 1 else None
    for operand, count in zip(operands, filters, strict=True):
        if count != shortcut:
            yield from _on_branch(graph, operand, common, required=shortcut is not None)


def _operands(graph: Graph, addition: fx.Node) -> list[fx.Node]:
    """What is added, a + (b + c) taken as one sum."""
    operands = []
    for operand in graph.inputs(addition):
        nested = channels.is_addition(graph, operand) and len(graph.readers(operand)) == 1
        operands += _operands(graph, operand) if nested else [operand]
    return operands


def _is_part_of_sum(graph: Graph, addition: fx.Node) -> bool:
    readers = graph.readers(addition)
    return len(readers) == 1 and channels.is_addition(graph, readers[0])


def _is_one_layer(graph: Graph, operands: list[fx.Node], filters: list[int]) -> bool:
    """Whether a sum is one layer in parts (RepVGG): single convs side by side on one input."""
    if max(filters) != 1 or filters.count(1) < 2:
        return False
    parts = [operand for operand, count in zip(operands, filters, strict=True) if count]
    origins = [_channel_path(graph, part)[0] for part in parts]
    read = {given for origin in origins for given in graph.inputs(origin)}
    return len(read) == 1 and all(channels.is_filter(graph, origin) for origin in origins)


def _filters_since(graph: Graph, node: fx.Node, common: frozenset[fx.Node]) -> int:
    """The fewest filters (convs, linear layers) between a node and the common ancestors."""
    queue, seen = deque([(node, 0)]), set()
    while queue:
        node, count = queue.popleft()
        if node in common:
            return count
        if node in seen:
            continue
        seen.add(node)
        is_filter = channels.is_filter(graph, node)
        for given in graph.inputs(node):
            # A shortest path with steps of 0 and 1: zero steps are taken first.
            (queue.append if is_filter else queue.appendleft)((given, count + is_filter))
    raise AssertionError("every node is computed from the images")


def _channel_path(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """From where the channels of a node were made (at best a filter) up to the node."""
    path = [node]
    while (before := channels.channel_input(graph, path[0])) is not None:
        path.insert(0, before)
    return path


def _on_branch(
    graph: Graph, operand: fx.Node, common: frozenset[fx.Node], required: bool
) -> Iterator[fx.Node]:
    """The first place of a branch from which on a closed channel stays exactly zero."""
    path = _channel_path(graph, operand)
    # An inner sum has gates on its own branches; what is older than the fork is no branch.
    if channels.is_addition(graph, path[0]) or path[0] in common:
        return
    mapping = [i for i, node in enumerate(path) if i and not channels.keeps_zero(graph, node)]
    places = path[max(mapping, default=0) :]
    place = next((node for node in places if _usable(graph, node)), None)
    if place is not None:
        yield place
    elif required and channels.is_filter(graph, path[0]):
        reasons = "; ".join(_why_not(graph, node) for node in places)
        raise ValueError(
            f"the branch that ends in {_describe(graph, places[0])} cannot be gated: {reasons}. "
            "Name the gate points yourself"
        )


def _after(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The first place from a node on that has a name, as long as a zero stays a zero."""
    while not _usable(graph, node):
        readers = graph.readers(node)
        if len(readers) != 1 or readers[0].op == "output":
            return None
        reader = readers[0]
        if not channels.keeps_zero(graph, reader):
            return None
        if channels.channel_input(graph, reader) is not node:
            return None
        node = reader
    return node


def _at_concatenations(graph: Graph, concatenations: list[fx.Node]) -> Iterator[fx.Node]:
    parts: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in concatenations:
        given = [part for operand in graph.inputs(node) for part in parts.get(operand, (operand,))]
        parts[node] = tuple(given)
    for node in concatenations:
        if len(parts[node]) == 1 or all(reader in parts for reader in graph.readers(node)):
            continue
        grown = _grown(graph, node, parts)
        if grown is None:
            yield from _at_concatenation(graph, node, parts[node])
        elif len(parts[node]) > 2:
            yield from _on_branch(graph, grown, graph.common_ancestors(parts[node]), required=True)


def _grown(
    graph: Graph, node: fx.Node, parts: dict[fx.Node, tuple[fx.Node, ...]]
) -> fx.Node | None:
    """The part that is computed from all the other parts: the new channels of a dense layer."""
    for new in reversed(parts[node]):
        rest = frozenset(parts[node]) - {new}
        if len(rest) == 1 and graph.precedes(next(iter(rest)), new):
            return new
        if any(frozenset(parts[old]) == rest and graph.precedes(old, new) for old in parts):
            return new
    return None


def _at_concatenation(graph: Graph, node: fx.Node, parts: tuple[fx.Node, ...]) -> Iterator[fx.Node]:
    place = _after(graph, node)
    if place is not None:
        yield place
        return
    common = graph.common_ancestors(parts)
    for part in parts:
        yield from _on_branch(graph, part, common, required=False)


def _along_chain(graph: Graph, nodes: list[fx.Node]) -> Iterator[fx.Node]:
    for node in nodes:
        if not channels.is_filter(graph, node):
            continue
        places = [node, *_norm_and_activation(graph, node)]
        mapping = [i for i, n in enumerate(places) if i and not channels.keeps_zero(graph, n)]
        behind = reversed(places[max(mapping, default=0) :])
        yield from islice((place for place in behind if _usable(graph, place)), 1)


def _norm_and_activation(graph: Graph, conv: fx.Node) -> Iterator[fx.Node]:
    """The norm and the activation that directly follow a conv, each its only reader."""
    expected = [channels.is_norm, channels.is_activation]
    readers = graph.readers(conv)
    while len(readers) == 1 and readers[0].op != "output":
        (reader,) = readers
        if any(belongs(graph, reader) for belongs in expected):
            while not expected.pop(0)(graph, reader):
                pass
            yield reader
        elif not graph.is_identity(reader):
            return
        readers = graph.readers(reader)


def _why_not(graph: Graph, node: fx.Node) -> str:
    reason = refusal(graph, node)
    if reason is None:
        names = graph.names(node)
        reason = (
            f"`{names[0]}` is called {len(graph.outputs[names[0]])} times"
            if names
            else "it is no submodule's output"
        )
    return f"{_describe(graph, node)}: {reason}"


def _describe(graph: Graph, node: fx.Node) -> str:
    if graph.names(node):
        return f"`{graph.names(node)[0]}`"
    where = f" in `{graph.layer(node)}`" if graph.layer(node) else ""
    return f"`{channels.operation(node)}`{where}"
