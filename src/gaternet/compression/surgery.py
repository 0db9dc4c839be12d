"""The smaller network: every operation of the graph that is still needed, with what is left of it.

x + branch, a fifth of the branch's filters left    →    x + Scatter(smaller branch)
dense layer whose new channels are all closed       →    gone, and so is its bottleneck
reader of a constant channel                        →    smaller, the constant in its bias
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gaternet import channels
from gaternet.compression import layers
from gaternet.compression.constants import find_constants
from gaternet.compression.states import Kind, Mask, States, obstacle, place_of, varies_at_border
from gaternet.errors import UserError
from gaternet.gate_flow import handed_on, is_flat, joined, sliced
from gaternet.graph import Graph


@dataclass(frozen=True, eq=False)
class Surgery:
    """What surgery leaves.

    network: images → what the backbone returns with the closed filters closed
    gated: the submodules whose output is gated, by the node of the whole graph that they come from
    """

    network: fx.GraphModule
    gated: Mapping[fx.Node, str]


def cut(backbone: nn.Module, states: States, gated: frozenset[fx.Node]) -> Surgery:
    """Build the smaller network out of a backbone in evaluation mode, without hooks, its graph's.

    gated: the nodes that are still gated

    Layers that are kept whole are the backbone's own. Raises UserError for an operation that
    overwrites what others read later.
    """
    surgeon = _Surgeon(backbone, states, gated)
    with torch.no_grad():
        for node in states.graph.fx.nodes:
            surgeon.take(node)
    network = fx.GraphModule(surgeon.modules, surgeon.fx)
    return Surgery(network.eval(), surgeon.gated)


class _Surgeon:
    """Goes through a graph once, node by node."""

    def __init__(self, backbone: nn.Module, states: States, gated: frozenset[fx.Node]) -> None:
        self.backbone = backbone
        self.states = states
        self.graph: Graph = states.graph
        self.points = gated
        self.fx = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.new: dict[fx.Node, Any] = {}
        self.constants = find_constants(backbone, states)
        self.fetched: dict[tuple[fx.Node, bytes], fx.Node] = {}
        self.gated: dict[fx.Node, str] = {}

    def take(self, node: fx.Node) -> None:
        """Put what is left of one operation into the smaller network."""
        present = self.states.present.get(node)
        if node.op == "placeholder":
            self.images = self.new[node] = self.fx.placeholder(node.name)
        elif node not in self.states.used or (present is not None and not present.any()):
            return
        elif present is None or obstacle(self.graph, node) is not None:
            self._take_whole(node)
        elif (self.states.made[node][present] != Kind.VARYING).all():
            self.new[node] = self._constant(node, present, self.constants.made[node])
        else:
            self.new[node] = self._take_part(node, present)
        if present is not None and node in self.points:
            self.new[node] = self._gate(node)

    def _take_part(self, node: fx.Node, present: Mask) -> fx.Node:
        graph = self.graph
        if channels.is_filter(graph, node) and not channels.is_depthwise(graph, node):
            return self._filter(node, present)
        if channels.is_addition(graph, node):
            return self._sum(node, present)
        if parts := joined(graph, node):
            return self._concatenation(node, parts, present)
        if part := sliced(graph, node):
            whole, first = part
            return self._fetch(whole, place_of(present, first, len(self.states.kinds[whole])))
        source = handed_on(graph, node)
        assert source is not None
        if is_flat(graph, node) or channels.is_unsqueezed(graph, node):
            return self._reshape(node, source, present)
        if graph.is_identity(node):
            return self._fetch(source, present)
        return self._channelwise(node, present)

    def _filter(self, node: fx.Node, present: Mask) -> fx.Node:
        (source,) = self.graph.inputs(node)
        inputs = self.states.present[source]
        kinds = self.states.kinds[source]
        layer = self._module(node)
        if varies_at_border(layer):
            inputs = inputs | (kinds == Kind.CONSTANT)
        constants = None
        if (kinds[~inputs] == Kind.CONSTANT).any():
            held = self.constants.held[source]
            constants = torch.where(torch.from_numpy(inputs).to(held.device), 0.0, held)
        part = layers.part_of_filter(layer, present, inputs, constants)
        return self._call(str(node.target), part, self._fetch(source, inputs))

    def _sum(self, node: fx.Node, present: Mask) -> fx.Node:
        terms = [
            given
            for given in self.graph.inputs(node)
            if (self.states.kinds[given][present] != Kind.ZERO).any()
        ]
        fetched = [self._fetch(term, present) for term in terms]
        total = fetched[0]
        for term in fetched[1:]:
            total = self.fx.call_function(torch.add, (total, term))
        return total

    def _concatenation(self, node: fx.Node, parts: list[fx.Node], present: Mask) -> fx.Node:
        bounds = np.cumsum([len(self.states.kinds[part]) for part in parts])[:-1]
        pieces = zip(parts, np.split(present, bounds), strict=True)
        fetched = [self._fetch(part, mask) for part, mask in pieces if mask.any()]
        if len(fetched) == 1:
            return fetched[0]
        return self.fx.call_function(torch.cat, (fetched, 1))

    def _reshape(self, node: fx.Node, source: fx.Node, present: Mask) -> fx.Node:
        if channels.is_unsqueezed(self.graph, node):
            index = (slice(None), slice(None), None, None)
            return self.fx.call_function(operator.getitem, (self._fetch(source, present), index))
        given = self._fetch(source, present.reshape(len(self.states.kinds[source]), -1)[:, 0])
        if channels.operation(node) in ("mean", "amax", "sum", "squeeze"):
            return self._repeat(node, {source: given})
        return self.fx.call_function(torch.flatten, (given, 1))

    def _channelwise(self, node: fx.Node, present: Mask) -> fx.Node:
        taken = {}
        for given in self.graph.inputs(node):
            count = len(self.states.kinds[given])
            mask = present if count == len(present) else np.ones(count, dtype=bool)
            taken[given] = self._fetch(given, mask)
        if node.op != "call_module":
            return self._repeat(node, taken)
        module = self._module(node)
        if channels.is_depthwise(self.graph, node):
            module = layers.part_of_depthwise(module, present)
        elif isinstance(module, _BatchNorm):
            module = layers.part_of_norm(module, present)
        (given,) = taken.values()
        return self._call(str(node.target), module, given)

    def _take_whole(self, node: fx.Node) -> None:
        """Repeat an operation with all of its channels."""
        if node.op == "output":
            self.fx.output(fx.node.map_arg(node.args[0], self._whole))
            return
        taken = {given: self._whole(given) for given in node.all_input_nodes}
        if node.op == "get_attr":
            self.modules[str(node.target)] = self._attribute(str(node.target))
            made = self.fx.get_attr(str(node.target))
        elif node.op == "call_module":
            args = fx.node.map_arg((node.args, node.kwargs), lambda n: taken[n])
            name = self._add(str(node.target), self._module(node))
            made = self.fx.call_module(name, *args)
        else:
            made = self._repeat(node, taken)
        self.new[node] = made
        present = self.states.present.get(node)
        if present is not None and node.op != "get_attr" and not present.all():
            self.new[node] = self._select(node, made, np.flatnonzero(present))

    def _whole(self, node: fx.Node) -> Any:
        if node not in self.states.kinds:
            return self.new[node]
        return self._fetch(node, np.ones(len(self.states.kinds[node]), dtype=bool))

    def _repeat(self, node: fx.Node, taken: Mapping[fx.Node, Any]) -> fx.Node:
        """Call a function or method again, on other inputs and never in place."""
        if self.graph.works_in_place(node):
            self._check_in_place(node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: taken[n])
        kwargs = {key: False if key == "inplace" else value for key, value in kwargs.items()}
        if node.op == "call_method":
            name = str(node.target)
            return self.fx.call_method(name if "__" in name else name.rstrip("_"), args, kwargs)
        assert callable(node.target)
        return self.fx.call_function(_out_of_place(node.target), args, kwargs)

    def _fetch(self, node: fx.Node, wanted: Mask) -> fx.Node:
        """Return exactly the wanted channels of a node, constant ones too."""
        present = self.states.present[node]
        if (wanted == present).all():
            return self.new[node]
        key = (node, wanted.tobytes())
        if key not in self.fetched:
            self.fetched[key] = self._assemble(node, wanted, present)
        return self.fetched[key]

    def _assemble(self, node: fx.Node, wanted: Mask, present: Mask) -> fx.Node:
        both = wanted & present
        if not both.any():
            return self._constant(node, wanted, self.constants.held[node])
        found = self.new[node]
        if not both[present].all():
            found = self._select(node, found, np.flatnonzero(both[present]))
        if (both == wanted).all():
            return found
        values = None
        if (self.states.kinds[node][wanted & ~both] == Kind.CONSTANT).any():
            held = self.constants.held[node]  # 0 at the channels that are there
            values = _pick(held, wanted)
        places, count = np.flatnonzero(both[wanted]), int(wanted.sum())
        scatter = layers.Scatter(places.tolist(), count, self._dim(node), values)
        return self._call(f"{self._name(node)}_scatter", scatter, found)

    def _select(self, node: fx.Node, found: fx.Node, places: np.ndarray) -> fx.Node:
        select = layers.Select(places.tolist(), self._dim(node))
        return self._call(f"{self._name(node)}_select", select, found)

    def _constant(self, node: fx.Node, wanted: Mask, values: Tensor) -> fx.Node:
        shape = list(self.graph.shape(node) or ())
        shape[self._dim(node)] = int(wanted.sum())
        constant = layers.Constant(_pick(values, wanted), tuple(shape[1:]), self._dim(node))
        return self._call(f"{self._name(node)}_constant", constant, self.images)

    def _gate(self, node: fx.Node) -> fx.Node:
        """Return the output of a submodule of its own, which a hook can gate."""
        name, made = str(node.target), self.new[node]
        if made.op == "call_module" and made.target == name and len(made.users) == 0:
            self.gated[node] = name
            return made
        gated = self._call(f"{self._name(node)}_gated", nn.Identity(), made)
        self.gated[node] = str(gated.target)
        return gated

    def _module(self, node: fx.Node) -> nn.Module:
        """The layer of a node, which no longer overwrites its input."""
        if self.graph.works_in_place(node):
            self._check_in_place(node)
        module = self.backbone.get_submodule(str(node.target))
        for part in module.modules():
            if getattr(part, "inplace", False):
                vars(part)["inplace"] = False
        return module

    def _check_in_place(self, node: fx.Node) -> None:
        for given in self.graph.inputs(node):
            later = [
                r for r in self.graph.readers(given) if self.graph.order(r) > self.graph.order(node)
            ]
            if later:
                raise UserError(
                    f"`{self._name(node)}` overwrites its input, which `{self._name(later[0])}` "
                    "reads later: this network cannot be compressed unless it works on a copy"
                )

    def _call(self, name: str, module: nn.Module, given: fx.Node) -> fx.Node:
        return self.fx.call_module(self._add(name, module), (given,))

    def _add(self, name: str, module: nn.Module) -> str:
        free, number = name, 1
        while self.modules.get(free, module) is not module:
            number += 1
            free = f"{name}_{number}"
        self.modules[free] = module
        return free

    def _attribute(self, name: str) -> Any:
        owner, _, attribute = name.rpartition(".")
        return getattr(self.backbone.get_submodule(owner), attribute)

    def _name(self, node: fx.Node) -> str:
        named = self.graph.names(node)
        if named:
            return named[0]
        return str(node.target) if node.op == "call_module" else node.name

    def _dim(self, node: fx.Node) -> int:
        if len(self.graph.shape(node) or ()) == 2:
            return 1
        dim = channels.channel_dim(self.graph, node)
        assert dim is not None
        return dim


def _pick(values: Tensor, mask: Mask) -> Tensor:
    return values.index_select(0, torch.from_numpy(np.flatnonzero(mask)).to(values.device))


def _out_of_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """The form of a function that does not overwrite its input: add for iadd, relu for relu_."""
    name = function.__name__
    if hasattr(operator, name) and name.startswith("i") and hasattr(operator, name[1:]):
        return getattr(operator, name[1:])
    if not name.endswith("_") or name.startswith("_"):
        return function
    homes = (home for home in (F, torch) if hasattr(home, name.rstrip("_")))
    return getattr(next(homes), name.rstrip("_"))
