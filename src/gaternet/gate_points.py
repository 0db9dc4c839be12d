"""Gate points: the submodules of a backbone whose output channels are opened and closed.

    output (N, C, H, W)  →  output · gates[:, start:stop, None, None]

Backbones know nothing about gates; forward hooks put them there (paper, section 3.1,
equations 3 and 4).
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from gaternet import inner, structure
from gaternet.graph import Graph

Layers = Literal["outer", "inner", "both"]
"""outer: the last layers of residual branches, and whatever else the structural rule gates (the
paper); inner: the other layers of residual branches, where the next layer saves as much again."""


UNGATED = -1
"""In place of a gate: a channel that no gate closes."""


@dataclass(frozen=True)
class GatePoint:
    """A submodule whose output (N, channels, H, W) is gated, `block` channels by one gate.

    gate_of: for each channel the number of its gate, `UNGATED` for one that is always open; None:
        every `block` neighbouring channels have one. Compressed networks have it.
    """

    name: str
    channels: int
    block: int = 1
    gate_of: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or self.channels % self.block:
            raise ValueError(
                f"gate point `{self.name}`: {self.channels} channels are not a multiple of "
                f"blocks of {self.block}"
            )
        if self.gate_of is not None:
            count = max(self.gate_of, default=UNGATED) + 1
            numbers = set(self.gate_of) - {UNGATED}
            numbered = min(numbers, default=UNGATED) == 0 and len(numbers) == count
            if len(self.gate_of) != self.channels or not numbered:
                raise ValueError(
                    f"gate point `{self.name}`: gate_of numbers the gates of {self.channels} "
                    f"channels from 0, with {UNGATED} for none: {self.gate_of} does not"
                )

    @property
    def gates(self) -> int:
        """The number of its gates."""
        return self.channels // self.block if self.gate_of is None else max(self.gate_of) + 1

    @property
    def gate_of_channels(self) -> tuple[int, ...]:
        """For each channel the number of its gate, or `UNGATED`."""
        if self.gate_of is not None:
            return self.gate_of
        return tuple(channel // self.block for channel in range(self.channels))


def find_gate_points(
    graph: Graph, layers: Layers = "outer", block: int = 1
) -> tuple[GatePoint, ...]:
    """The gate points of a backbone by the structural rule (see `gaternet.structure`).

    layers: which layers are gated; inner ones are those of `gaternet.inner`
    block: neighbouring filters that one gate opens or closes together

    Raises ValueError where there are none, for a layer where no gate can sit, and for a layer
    whose filters are not a multiple of the block.
    """
    outer = [] if layers == "inner" else structure.gated_nodes(graph)
    within = [] if layers == "outer" else inner.inner_nodes(graph)
    if layers != "inner" and not outer:
        raise ValueError(
            "no addition, concatenation or chain of convs with a gate point was found in the "
            "backbone: name the gate points yourself"
        )
    if layers != "outer" and not within:
        raise ValueError(
            "the backbone has no residual branch with an inner layer: gate its outer layers, or "
            "name the gate points yourself"
        )
    nodes = sorted({*outer, *within}, key=graph.order)
    return tuple(_point(graph, structure.name_of(graph, node), node, block) for node in nodes)


def name_gate_points(
    graph: Graph, names: Iterable[str] | Callable[[str], bool]
) -> tuple[GatePoint, ...]:
    """Gate points by the names of submodules, or by a predicate on all their names.

    They come in the order of execution, whatever the order of the names.

    Raises ValueError for a name that is unknown or given twice, for a submodule that is called
    other than once or whose output is not (N, C, H, W), and where there is no name at all.
    """
    chosen = [n for n in graph.outputs if names(n)] if callable(names) else list(names)
    if not chosen:
        raise ValueError("no submodule is named as a gate point")
    twice = next((name for name, count in Counter(chosen).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"gate point `{twice}` is named twice")
    outputs = {name: _checked_output(graph, name) for name in chosen}
    for name, node in outputs.items():
        twin = next(n for n, other in outputs.items() if other is node)
        if twin != name:
            raise ValueError(f"gate points `{twin}` and `{name}` are one and the same output")
    ordered = sorted(outputs, key=lambda name: graph.order(outputs[name]))
    return tuple(_point(graph, name, outputs[name]) for name in ordered)


def _point(graph: Graph, name: str | None, node: Node, block: int = 1) -> GatePoint:
    shape = graph.shape(node)
    assert name is not None
    assert shape is not None
    return GatePoint(name, shape[1], block)


def _checked_output(graph: Graph, name: str) -> Node:
    if name not in graph.outputs:
        near = difflib.get_close_matches(name, graph.outputs, n=3, cutoff=0.5)
        hint = f"; near it: {', '.join(f'`{n}`' for n in near)}" if near else ""
        raise ValueError(f"the backbone has no submodule `{name}`{hint}")
    calls = graph.outputs[name]
    if len(calls) != 1:
        raise ValueError(
            f"`{name}` cannot be a gate point: it is called {len(calls)} times in a forward, "
            f"not once{_inside(graph, name)}"
        )
    if calls[0] is None:
        raise ValueError(f"`{name}` cannot be a gate point: its output is not one tensor")
    reason = structure.refusal(graph, calls[0])
    if reason is not None:
        raise ValueError(f"`{name}` cannot be a gate point: {reason}")
    return calls[0]


def _inside(graph: Graph, name: str) -> str:
    owner = name.rpartition(".")[0]
    while owner:
        calls = (node for node in graph.outputs[owner] if node is not None)
        if any(graph.module(node) is graph.modules[owner] for node in calls):
            return f" (it is a part of `{owner}`, which is one operation here: name that)"
        owner = owner.rpartition(".")[0]
    return ""


class GateHolder:
    """Where the hooks of one backbone find the gates of the present forward.

    The gates stay until the next forward of the backbone, because activation checkpointing runs
    submodules again in the backward (which therefore must come before the next forward). A
    forward of the backbone that was not armed takes them away: it is the plain network.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.gates: list[Tensor | None] | None = None  # one (N, gates) a gate point
        self.decided_on_the_way = False
        self.armed = False
        self.lock = RLock()  # of a forward: the gates are one thread's at a time

    def arm(self, gates: Tensor | None) -> None:
        """Set the gates (N, G) of the backbone's next forward; None: it decides on its way."""
        undecided: list[Tensor | None] = [None] * len(self.sizes)
        self.gates = undecided if gates is None else list(gates.split(self.sizes, dim=1))
        self.decided_on_the_way = gates is None
        self.armed = True

    def clear(self) -> None:
        """Let go of the gates: where no backward follows."""
        self.gates = None
        self.armed = False

    def __reduce__(self) -> tuple[type["GateHolder"], tuple[list[int]]]:
        # Gates belong to one forward; with their autograd history they could not be copied.
        return GateHolder, (self.sizes,)


class GateHook:
    """Forward hook that multiplies an output (N, C, H, W) by the gates of its gate point.

    An object, not a closure: a copy of the backbone must get its own holder.
    """

    def __init__(self, holder: GateHolder, index: int, point: GatePoint) -> None:
        self.holder = holder
        self.index = index
        self.block = point.block
        self.columns: Tensor | None = None
        if point.gate_of is not None:
            # Behind the gates there will be a column of ones.
            columns = [point.gates if gate == UNGATED else gate for gate in point.gate_of]
            self.columns = torch.tensor(columns, device="cpu")

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.holder.gates is None:
            return None
        gates = self.holder.gates[self.index]
        assert gates is not None
        if self.columns is not None:
            # Not kept there: a first call in inference mode would keep what cannot be trained with.
            columns = self.columns.to(gates.device, non_blocking=True)
            gates = F.pad(gates, (0, 1), value=1.0).index_select(1, columns)
        elif self.block > 1:
            gates = gates.repeat_interleave(self.block, dim=1)
        return output * gates[:, :, None, None].to(output.dtype)


class FeatureWatcher(Protocol):
    """Who decides on gates from the backbone's own feature maps, on the way."""

    def see(self, index: int, features: Tensor) -> None:
        """Take the feature map that gate point number `index` is decided from."""


class WatchHook:
    """Forward pre-hook or hook that shows a module's input or output to who decides from it."""

    def __init__(self, watcher: FeatureWatcher, index: int) -> None:
        self.watcher = watcher
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Tensor | None = None) -> None:
        self.watcher.see(self.index, args[0] if output is None else output)


class _Disarm:
    """Forward pre-hook of the backbone: the armed gates serve one forward."""

    def __init__(self, holder: GateHolder) -> None:
        self.holder = holder

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.holder.armed:
            self.holder.armed = False
        else:
            self.holder.gates = None


def attach(backbone: nn.Module, points: Sequence[GatePoint]) -> GateHolder:
    """Hook the gate points of a backbone to one holder; gates are in the order of the points.

    State dicts keep their keys.

    Raises ValueError where the backbone has gates already, or no submodule of that name.
    """
    for name, module in backbone.named_modules():
        if any(isinstance(hook, GateHook) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"the backbone is already gated, at `{name}`: take its gates off by "
                "gaternet.detach(backbone), or gate another one"
            )
    holder = GateHolder([point.gates for point in points])
    modules = [_submodule(backbone, point.name) for point in points]
    for index, (module, point) in enumerate(zip(modules, points, strict=True)):
        # Before any other hook: whoever watches this submodule sees what flows on.
        module.register_forward_hook(GateHook(holder, index, point), prepend=True)
    backbone.register_forward_pre_hook(_Disarm(holder))
    return holder


def detach(backbone: nn.Module) -> None:
    """Take all gates off a backbone, which then is the plain network; its GaterNet is done for."""
    ours = GateHook | WatchHook | _Disarm
    for module in backbone.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, ours)]:
                del hooks[key]


def _submodule(backbone: nn.Module, name: str) -> nn.Module:
    try:
        return backbone.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the backbone has no submodule `{name}`") from None
