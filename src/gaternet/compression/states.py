"""What is left of each channel when gates are fixed: it varies, it is constant, nobody needs it.

    closed filter ─► 0 ─► BatchNorm ─► ReLU ─► c ─► 1×1 conv     (a closed filter of a DenseNet)
                     zero         constant          its bias

Found from the structure alone, not from the weights: a network with fresh weights loses the same
channels, so that a compressed one can be built again from its plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from gaternet import channels
from gaternet.gate_flow import (
    channel_count,
    handed_on,
    is_flat,
    is_mean,
    joined,
    sliced,
)
from gaternet.graph import Graph

Mask = NDArray[np.bool_]
"""One bool for each channel of a node."""


class Kind(IntEnum):
    """What a channel is, at every position of every image."""

    VARYING = 0
    CONSTANT = 1  # one value that follows from the weights
    ZERO = 2


Kinds = NDArray[np.int8]
"""The `Kind` of each channel of a node."""


@dataclass(frozen=True, eq=False)
class FixedGates:
    """The channels of one gated node: `closed` for good, or `live`, still decided per image."""

    closed: Mask
    live: Mask


@dataclass(frozen=True, eq=False)
class States:
    """What every channel of a graph is, for nodes that have channels.

    made: kinds as the node itself makes them; kinds: after its gates
    present: the channels that vary and that somebody needs
    used: nodes that take part in the output, also those without channels
    """

    graph: Graph
    made: Mapping[fx.Node, Kinds]
    kinds: Mapping[fx.Node, Kinds]
    present: Mapping[fx.Node, Mask]
    used: frozenset[fx.Node]


def find_states(graph: Graph, gates: Mapping[fx.Node, FixedGates]) -> States:
    """Follow fixed gates forward to what becomes constant, and back to what nobody needs."""
    made: dict[fx.Node, Kinds] = {}
    kinds: dict[fx.Node, Kinds] = {}
    for node in graph.fx.nodes:
        count = channel_count(graph, node)
        if count is None:
            continue
        made[node] = kinds[node] = _made(graph, node, kinds, count)
        if node in gates:
            kinds[node] = _behind_gates(made[node], gates[node])
    needed: dict[fx.Node, Mask] = {}
    used: set[fx.Node] = set()
    for node in reversed(graph.fx.nodes):
        users = [user for user in node.users if user in used and node in operands(graph, user)]
        if node in kinds:
            needed[node] = np.zeros(len(kinds[node]), dtype=bool)
            for user in users:
                needed[node] |= _needs(graph, user, node, made, kinds, needed)
            if needed[node].any() or node.op == "placeholder":
                used.add(node)
        elif users or node.op == "output":
            used.add(node)
    present = {node: needed[node] & (kinds[node] == Kind.VARYING) for node in kinds}
    return States(graph, made, kinds, present, frozenset(used))


def operands(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """The nodes that a node is computed from here: flattening needs no sizes."""
    if is_flat(graph, node) or channels.is_unsqueezed(graph, node):
        return graph.inputs(node)
    return node.all_input_nodes


def obstacle(graph: Graph, node: fx.Node) -> str | None:
    """Why a node takes and gives all of its channels; None where it can do with fewer."""
    if channel_count(graph, node) is None or node.op in ("placeholder", "get_attr"):
        return "its channels cannot be told apart"
    if any(channel_count(graph, given) is None for given in graph.inputs(node)):
        return "the channels of its input cannot be told apart"
    if channels.is_filter(graph, node):
        return _filter_obstacle(graph, node)
    if channels.is_addition(graph, node):
        plain = not node.kwargs and set(node.all_input_nodes) == set(graph.inputs(node))
        return None if plain else "a sum with a factor or a learned term"
    if any(moves(graph, node) for moves in (joined, sliced, is_flat, channels.is_unsqueezed)):
        return None
    if handed_on(graph, node) is None:
        return "it mixes or moves channels"
    if len(node.all_input_nodes) != len(graph.inputs(node)):
        return "it has weights or sizes of its own"
    return _module_obstacle(graph.module(node))


def kept_whole(states: States) -> dict[str, str]:
    """Return for each operation that keeps channels nobody needs: how many, and why."""
    found = {}
    for node, present in states.present.items():
        reason = obstacle(states.graph, node) if node in states.used else None
        if reason is None or node.op in ("placeholder", "get_attr"):
            continue
        idle = int((~present).sum())
        read = (states.present.get(given) for given in states.graph.inputs(node))
        zero = sum(int((~mask).sum()) for mask in read if mask is not None)
        if idle or zero:
            names = states.graph.names(node)
            name = names[0] if names else states.graph.layer(node) or node.name
            found[name] = f"reads {zero} constant channels, makes {idle} for nobody: {reason}"
    return found


def varies_at_border(module: nn.Module | None) -> bool:
    """Whether a conv sees zeros around a constant channel, so that its output is not constant."""
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and set(module.kernel_size) != {1}
    return any(module.padding)


def is_elementwise(graph: Graph, node: fx.Node) -> bool:
    """Whether a node maps each value by itself, so that it maps constants to constants."""
    module = graph.module(node)
    if isinstance(module, _BatchNorm):
        return True
    one_input = len(node.all_input_nodes) == 1
    by_number = one_input and channels.operation(node) in ("mul", "div", "truediv")
    same = graph.is_identity(node) or isinstance(module, nn.Identity | _DropoutNd)
    return same or channels.is_activation(graph, node) or by_number


def _filter_obstacle(graph: Graph, node: fx.Node) -> str | None:
    module = graph.module(node)
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__ if module else channels.operation(node)} is not sliced"
    if (
        isinstance(module, nn.Conv2d)
        and module.groups > 1
        and not channels.is_depthwise(graph, node)
    ):
        return f"a grouped conv, {module.groups} groups"
    return None


def _module_obstacle(module: nn.Module | None) -> str | None:
    if isinstance(module, _BatchNorm):
        return None if module.running_mean is not None else "a norm without running statistics"
    if module is None:
        return None
    if any(tensor.ndim for tensor in (*module.parameters(), *module.buffers())):
        shared = isinstance(module, nn.PReLU) and module.num_parameters == 1
        return None if shared else f"{type(module).__name__} is not sliced"
    return None


def _behind_gates(made: Kinds, gates: FixedGates) -> Kinds:
    kinds = made.copy()
    kinds[gates.live & (made == Kind.CONSTANT)] = Kind.VARYING
    kinds[gates.closed] = Kind.ZERO
    return kinds


def _made(graph: Graph, node: fx.Node, kinds: Mapping[fx.Node, Kinds], count: int) -> Kinds:
    """The kinds of what a node makes of its inputs' channels."""
    varying = np.full(count, Kind.VARYING, dtype=np.int8)
    if obstacle(graph, node) is not None:
        return varying
    given = [kinds[source] for source in graph.inputs(node)]
    if channels.is_depthwise(graph, node):
        return _made_apart(graph.modules[str(node.target)], given[0])
    if channels.is_filter(graph, node):
        module = graph.modules[str(node.target)]
        return np.full(count, _made_by_filter(module, given[0]), dtype=np.int8)
    if channels.is_addition(graph, node):
        return np.minimum.reduce(given)
    if parts := joined(graph, node):
        return np.concatenate([kinds[part] for part in parts])
    if part := sliced(graph, node):
        return kinds[part[0]][part[1] :][:count]
    source = handed_on(graph, node)
    assert source is not None
    before = np.repeat(kinds[source], count // len(kinds[source]))
    if keeps_constant(graph, node):
        return before
    if is_elementwise(graph, node):
        after_zero = Kind.ZERO if channels.keeps_zero(graph, node) else Kind.CONSTANT
        return np.where(before == Kind.ZERO, after_zero, before).astype(np.int8)
    keeps = channels.keeps_zero(graph, node) or is_flat(graph, node)
    return np.where((before == Kind.ZERO) & keeps, Kind.ZERO, varying).astype(np.int8)


def _made_by_filter(module: nn.Module, given: Kinds) -> Kind:
    if (given == Kind.ZERO).all():
        return Kind.ZERO if module.bias is None else Kind.CONSTANT
    if (given == Kind.VARYING).any():
        return Kind.VARYING
    border = varies_at_border(module) and (given == Kind.CONSTANT).any()
    return Kind.VARYING if border else Kind.CONSTANT


def _made_apart(module: nn.Module, given: Kinds) -> Kinds:
    after_zero = Kind.ZERO if module.bias is None else Kind.CONSTANT
    after_constant = Kind.VARYING if varies_at_border(module) else Kind.CONSTANT
    return np.array([Kind.VARYING, after_constant, after_zero], dtype=np.int8)[given]


def keeps_constant(graph: Graph, node: fx.Node) -> bool:
    """Whether a node hands on channels that hold one value as they are: pools without a border."""
    name, module = channels.operation(node), graph.module(node)
    if is_mean(graph, node) or channels.is_unsqueezed(graph, node):
        return True
    if is_flat(graph, node):
        return name != "sum"
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d | nn.MaxPool2d):
        return True
    if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d"):
        return True
    if isinstance(module, nn.AvgPool2d):
        return not _any(module.padding) and module.divisor_override is None
    return name == "avg_pool2d" and len(node.args) <= 3 and set(node.kwargs) <= {"stride"}


def place_of(mask: Mask, first: int, count: int) -> Mask:
    """Return the mask of a slice of channels as one of all `count` channels."""
    return np.pad(mask, (first, count - first - len(mask)))


def _any(padding: Any) -> bool:
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def _needs(
    graph: Graph,
    user: fx.Node,
    node: fx.Node,
    made: Mapping[fx.Node, Kinds],
    kinds: Mapping[fx.Node, Kinds],
    needed: Mapping[fx.Node, Mask],
) -> Mask:
    """The channels of `node` that one of its users reads."""
    everything = np.ones(len(kinds[node]), dtype=bool)
    if user not in made or obstacle(graph, user) is not None:
        return everything
    wanted = needed[user] & (made[user] == Kind.VARYING) & (kinds[user] == Kind.VARYING)
    if channels.is_filter(graph, user) and not channels.is_depthwise(graph, user):
        border = varies_at_border(graph.module(user))
        read = kinds[node] <= (Kind.CONSTANT if border else Kind.VARYING)
        return read & wanted.any()
    if parts := joined(graph, user):
        bounds = np.cumsum([len(kinds[part]) for part in parts])[:-1]
        pieces = zip(parts, np.split(wanted, bounds), strict=True)
        return np.logical_or.reduce([piece for part, piece in pieces if part is node])
    if part := sliced(graph, user):
        return place_of(wanted, part[1], len(everything))
    if len(wanted) == len(everything):
        return wanted
    if is_flat(graph, user):
        return wanted.reshape(len(everything), -1).any(axis=1)
    return everything & wanted.any()  # one scale for all channels
