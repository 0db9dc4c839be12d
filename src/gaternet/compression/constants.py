"""What constant channels hold: the values that follow from a backbone's weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from gaternet import channels
from gaternet.compression.layers import response
from gaternet.compression.states import Kind, States, is_elementwise
from gaternet.gate_flow import channel_count, handed_on, joined, sliced
from gaternet.graph import Graph


@dataclass(frozen=True, eq=False)
class Constants:
    """Values (channels,) by node, 0 at channels that are not constant.

    made: as the node itself makes them; held: after its gates
    """

    made: Mapping[fx.Node, Tensor]
    held: Mapping[fx.Node, Tensor]


@torch.no_grad()
def find_constants(backbone: nn.Module, states: States) -> Constants:
    """Compute the constant channels of a backbone in evaluation mode, the graph's own."""
    like = next(p for p in backbone.parameters() if p.is_floating_point())
    made: dict[fx.Node, Tensor] = {}
    held: dict[fx.Node, Tensor] = {}
    for node, kinds in states.made.items():
        made[node] = held[node] = like.new_zeros(len(kinds))
        if (kinds == Kind.CONSTANT).any():
            found = _value(backbone, states.graph, node, held)
            made[node] = _where(kinds == Kind.CONSTANT, found)
            held[node] = _where(states.kinds[node] == Kind.CONSTANT, found)
    return Constants(made, held)


def _where(mask: np.ndarray, values: Tensor) -> Tensor:
    return torch.where(torch.from_numpy(mask).to(values.device), values, 0.0)


def _value(
    backbone: nn.Module, graph: Graph, node: fx.Node, held: Mapping[fx.Node, Tensor]
) -> Tensor:
    count = channel_count(graph, node) or 0
    given = [held[source] for source in graph.inputs(node)]
    if channels.is_filter(graph, node):
        layer = backbone.get_submodule(str(node.target))
        weight = layer.get_parameter("weight")
        # A depthwise filter reads its own channel alone.
        apart = channels.is_depthwise(graph, node)
        made = weight.flatten(1).sum(1) * given[0] if apart else response(weight, given[0])
        return made if layer.bias is None else made + layer.get_parameter("bias")
    if channels.is_addition(graph, node):
        return torch.stack(given).sum(0)
    if parts := joined(graph, node):
        return torch.cat([held[part] for part in parts])
    if part := sliced(graph, node):
        return held[part[0]][part[1] :][:count]
    source = handed_on(graph, node)
    assert source is not None
    spread = held[source].repeat_interleave(count // len(held[source]))
    return _run(backbone, graph, node, spread) if is_elementwise(graph, node) else spread


def _run(backbone: nn.Module, graph: Graph, node: fx.Node, values: Tensor) -> Tensor:
    """Run an elementwise operation on one pixel that holds the values."""
    pixel = values.clone().reshape(1, -1, *[1] * (len(graph.shape(node) or ()) - 2))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: pixel)
    if node.op == "call_module":
        return backbone.get_submodule(str(node.target))(*args, **kwargs).flatten()
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs).flatten()
    assert callable(node.target)
    return node.target(*args, **kwargs).flatten()
