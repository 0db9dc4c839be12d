"""Where the gates of a backbone belong: the structural rule, on its graph.

    addition        the branches' last conv or linear layer, with the norm that directly follows;
                    the operand with the fewest convs is the shortcut, it is not gated;
                    single convs side by side are one layer in parts: their sum
    concatenation   with its own input: the new channels, except where that input is not yet a
                    concatenation (DenseNet); with a sum: its other new channels (DPN);
                    inside a residual branch: nothing, it is an inner layer (Inception-ResNet);
                    any other: its output (Inception)
    plain chain     every conv, after its norm and activation (VGG)

These are the filters that the paper gates, in its counts (Tables 1 to 3). What computes the scale
of a product (squeeze-and-excitation) is not looked at. A branch whose filters cannot be gated, such
as attention over tokens, is refused: half a rule would pass for the whole.
"""

from collections.abc import Iterator
from itertools import islice

from torch import fx

from gaternet import branches, channels
from gaternet.branches import Sum, channel_path
from gaternet.graph import Graph

Parts = dict[fx.Node, tuple[fx.Node, ...]]


class _NoPlaceError(Exception):
    """Why the filters of a branch cannot be gated."""


def gated_nodes(graph: Graph) -> list[fx.Node]:
    """The nodes (N, C, H, W) to gate, in their order of execution; see the module's rule.

    Raises ValueError for residual branches whose filters no submodule hands out as (N, C, H, W).
    """
    nodes = without_scales(graph)
    sums = [
        branches.sum_at(graph, node)
        for node in nodes
        if channels.is_addition(graph, node) and not branches.is_part_of_sum(graph, node)
    ]
    parts = _parts_of_concatenations(graph, nodes)
    inner = {layer for added in sums for layer in branches.inner_layers(graph, added)}
    inner |= {node for node in parts if _is_grouped_layer(graph, parts[node])}
    places = [_at_addition(graph, added) for added in sums if added.node not in inner]
    places += [_at_concatenation(graph, node, parts) for node in parts if node not in inner]
    if not places:
        places = [_along_chain(graph, nodes)]
    gated: set[fx.Node] = set()
    reasons = _token_branches(graph, nodes)
    for found in places:
        try:
            gated.update(found)
        except _NoPlaceError as error:
            reasons.append(str(error))
    ordered = sorted(gated, key=graph.order)
    if reasons:
        raise ValueError(_refuse(graph, reasons, ordered))
    return ordered


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


def usable(graph: Graph, node: fx.Node) -> bool:
    """Whether the rule may put a gate on a node: it has a name, and its channels are known."""
    named = name_of(graph, node) is not None and refusal(graph, node) is None
    # Where a reshape hides which dimension the channels are, only the user can tell.
    return named and channels.channel_dim(graph, node) == 1


def without_scales(graph: Graph) -> list[fx.Node]:
    """The nodes in their order of execution, but for what only computes the scale of a product."""
    products = [node for node in graph.fx.nodes if len(graph.inputs(node)) > 1]
    aside = {node for product in products for node in branches.scales(graph, product)}
    return [node for node in graph.fx.nodes if node not in aside]


def _at_addition(graph: Graph, added: Sum) -> Iterator[fx.Node]:
    if _is_one_layer(graph, added):
        place = _after(graph, added.node)
        if place is not None:
            yield place
            return
    for branch in added.branches:
        yield from _on_branch(graph, branch, added.fork, required=added.shortcut is not None)


def _is_one_layer(graph: Graph, added: Sum) -> bool:
    """Whether a sum is one layer in parts (RepVGG): single convs side by side on one input."""
    filters = [branches.filters_since(graph, operand, added.fork) for operand in added.operands]
    if max(filters) != 1 or filters.count(1) < 2:
        return False
    parts = [operand for operand, count in zip(added.operands, filters, strict=True) if count]
    origins = [channel_path(graph, part)[0] for part in parts]
    read = {given for origin in origins for given in graph.inputs(origin)}
    return len(read) == 1 and all(channels.is_filter(graph, origin) for origin in origins)


def _on_branch(
    graph: Graph, operand: fx.Node, fork: frozenset[fx.Node], required: bool
) -> Iterator[fx.Node]:
    """The first place of a branch from which on a closed channel stays exactly zero."""
    path = channel_path(graph, operand)
    # An inner sum has gates on its own branches; what is older than the fork is no branch.
    if channels.is_addition(graph, path[0]) or path[0] in fork:
        return
    mapping = [i for i, node in enumerate(path) if i and not _keeps_zero(graph, node)]
    places = path[max(mapping, default=0) :]
    place = next((node for node in places if usable(graph, node)), None)
    if place is not None:
        yield place
    elif channels.is_concatenation(graph, path[0]):
        for part in graph.inputs(path[0]):
            yield from _on_branch(graph, part, fork, required)
    elif required and branches.filters_since(graph, operand, fork):
        reasons = "; ".join(why_not(graph, node) for node in places)
        raise _NoPlaceError(f"a residual branch ends without a place for a gate: {reasons}")


def _keeps_zero(graph: Graph, node: fx.Node) -> bool:
    return channels.keeps_zero(graph, node) or channels.sliced_input(graph, node) is not None


def _after(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The first place from a node on that has a name, as long as a zero stays a zero."""
    while not usable(graph, node):
        readers = graph.readers(node)
        if len(readers) != 1 or readers[0].op == "output":
            return None
        reader = readers[0]
        if not _keeps_zero(graph, reader) or branches.source(graph, reader) is not node:
            return None
        node = reader
    return node


def _parts_of_concatenations(graph: Graph, nodes: list[fx.Node]) -> Parts:
    """The concatenations, and what each joins: cat(cat(a, b), c) has three parts."""
    parts: Parts = {}
    for node in nodes:
        if channels.is_concatenation(graph, node):
            given = (parts.get(operand, (operand,)) for operand in graph.inputs(node))
            parts[node] = tuple(part for several in given for part in several)
    return parts


def _at_concatenation(graph: Graph, node: fx.Node, parts: Parts) -> Iterator[fx.Node]:
    joined = parts[node]
    if len(joined) == 1 or all(reader in parts for reader in graph.readers(node)):
        return
    fork = graph.common_ancestors(joined)
    grown = _grown(graph, node, parts)
    if grown is not None:
        if len(joined) > 2:
            yield from _on_branch(graph, grown, fork, required=True)
        return
    # With a sum among them the output carries the shortcut, which is not gated.
    carried = [_shortcut_of(graph, part) for part in joined if channels.is_addition(graph, part)]
    place = None if carried else _after(graph, node)
    if place is not None:
        yield place
        return
    for part in joined:
        yield from _on_branch(graph, part, fork.union(*carried), required=False)


def _is_grouped_layer(graph: Graph, joined: tuple[fx.Node, ...]) -> bool:
    """Whether a concatenation is one grouped conv in parts (MixNet): one on each chunk."""
    if not all(channels.is_filter(graph, part) for part in joined):
        return False
    whole = {channels.sliced_input(graph, graph.inputs(part)[0]) for part in joined}
    return len(whole) == 1 and None not in whole


def _shortcut_of(graph: Graph, addition: fx.Node) -> frozenset[fx.Node]:
    """What the shortcut of a sum is computed from, the shortcut too."""
    shortcut = branches.sum_at(graph, addition).shortcut
    return frozenset() if shortcut is None else graph.common_ancestors([shortcut])


def _grown(graph: Graph, node: fx.Node, parts: Parts) -> fx.Node | None:
    """The part that is computed from all the other parts: the new channels of a dense layer."""
    for new in reversed(parts[node]):
        rest = frozenset(parts[node]) - {new}
        if len(rest) == 1 and graph.precedes(next(iter(rest)), new):
            return new
        if any(frozenset(parts[old]) == rest and graph.precedes(old, new) for old in parts):
            return new
    return None


def _along_chain(graph: Graph, nodes: list[fx.Node]) -> Iterator[fx.Node]:
    for node in nodes:
        if not channels.is_filter(graph, node):
            continue
        places = [node, *_norm_and_activation(graph, node)]
        mapping = [i for i, n in enumerate(places) if i and not channels.keeps_zero(graph, n)]
        behind = reversed(places[max(mapping, default=0) :])
        yield from islice((place for place in behind if usable(graph, place)), 1)


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


def _token_branches(graph: Graph, nodes: list[fx.Node]) -> list[str]:
    """Why residual branches over tokens cannot be gated, one reason each."""
    reasons = []
    for node in nodes:
        if channels.is_token_sum(graph, node):
            added = branches.sum_at(graph, node)
            filters = [branches.filters_since(graph, o, added.fork) for o in added.operands]
            if added.shortcut in added.fork and any(filters):
                reasons.append(
                    f"{_describe(graph, node)} adds a branch to tokens {graph.shape(node)}, "
                    "not to feature maps (N, C, H, W)"
                )
    return reasons


def _refuse(graph: Graph, reasons: list[str], elsewhere: list[fx.Node]) -> str:
    more = f" ({len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
    filters = [node for node in graph.fx.nodes if channels.is_filter(graph, node)]
    nodes = elsewhere or [node for node in filters if usable(graph, node)]
    names = ", ".join(repr(name_of(graph, node)) for node in nodes[:3])
    shown = f"[{names}, …]" if len(nodes) > 3 else f"[{names}]"
    found = f" ({len(nodes)} that the rule finds elsewhere)" if elsewhere else ""
    return (
        f"{reasons[0]}{more}. Name the gate points yourself, in a list or by a function of their "
        f"names; possible are points={shown}{found}"
    )


def why_not(graph: Graph, node: fx.Node) -> str:
    """Why a node is not `usable`, in words."""
    reason = refusal(graph, node)
    calls = [len(graph.outputs[name]) for name in graph.names(node)]
    if reason is None and not calls:
        reason = "it is not a submodule's output"
    elif reason is None and calls[0] > 1:
        reason = f"it is called {calls[0]} times"
    elif reason is None:
        reason = "a reshape hides which dimension its channels are"
    return f"{_describe(graph, node)}: {reason}"


def _describe(graph: Graph, node: fx.Node) -> str:
    if graph.names(node):
        return f"`{graph.names(node)[0]}`"
    where = f" in `{graph.layer(node)}`" if graph.layer(node) else ""
    return f"`{channels.operation(node)}`{where}"
