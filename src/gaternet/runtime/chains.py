"""Neighbouring units of a lowered backbone in one call.

Small layers take less time than calling them one by one from Python does. What is computed, and in
which order, stays the same.
"""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import getitem

from torch import Tensor, fx, nn

from gaternet.runtime.layers import GatedConv2d
from gaternet.runtime.operator import PARAMETERS, gated_conv2d_chain


@dataclass(frozen=True)
class Step:
    """A unit of a chain, and which values it reads: those given first, then what each step made.

    residual: of an earlier step, which is overwritten; None without an addition
    """

    unit: GatedConv2d
    given: int
    residual: int | None


class GatedChain(nn.Module):
    """Units one behind the other: images, as many as are read, and gates (N, G) → what is kept.

    kept: the steps whose values it returns
    """

    def __init__(self, steps: Sequence[Step], kept: Sequence[int]) -> None:
        super().__init__()
        for number, step in enumerate(steps):
            for name in PARAMETERS:
                self.register_buffer(f"{name}_{number}", getattr(step.unit, name))
        self.steps = [number for step in steps for number in _numbers(step)]
        self.kept = list(kept)

    def forward(self, images: list[Tensor], gates: Tensor) -> list[Tensor]:
        # Not by name: of 20 units that would take as long as the whole call.
        parameters = list(self._buffers.values())
        made: list[Tensor] = gated_conv2d_chain(images, gates, parameters, self.steps, self.kept)
        return made


def chained(lowered: fx.GraphModule) -> fx.GraphModule:
    """Return a lowered backbone in which neighbouring units by the operator are one call.

    The one that was given stays as it is; both have the same units.
    """
    lowered = fx.GraphModule(lowered, copy.deepcopy(lowered.graph))
    for number, run in enumerate(list(_runs(lowered))):
        _replace(lowered, run, f"gaternet_chain_{number}")
    lowered.delete_all_unused_submodules()
    lowered.recompile()
    return lowered


def _runs(lowered: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """Yield units that follow each other, two or more.

    One that adds to what was made before the first of them is left out: a chain overwrites nothing
    that it is given.
    """
    run: list[fx.Node] = []
    for node in lowered.graph.nodes:
        if _unit(lowered, node) is not None and all(each in run for each in node.args[2:]):
            run.append(node)
            continue
        if len(run) > 1:
            yield run
        run = []


def _unit(lowered: fx.GraphModule, node: fx.Node) -> GatedConv2d | None:
    if node.op != "call_module":
        return None
    module = lowered.get_submodule(str(node.target))
    return module if isinstance(module, GatedConv2d) else None


def _replace(lowered: fx.GraphModule, run: Sequence[fx.Node], name: str) -> None:
    gates = run[0].args[1]
    given = list(dict.fromkeys(node.args[0] for node in run if node.args[0] not in run))
    values = {value: place for place, value in enumerate((*given, *run))}
    kept = [node for node in run if _is_read_outside(node, run)]
    steps = [
        Step(unit, values[node.args[0]], values[node.args[2]] if node.args[2:] else None)
        for node in run
        if (unit := _unit(lowered, node)) is not None
    ]
    lowered.add_module(name, GatedChain(steps, [run.index(node) for node in kept]))
    with lowered.graph.inserting_after(run[-1]):
        call = lowered.graph.call_module(name, (given, gates))
    for place, node in reversed(list(enumerate(kept))):
        with lowered.graph.inserting_after(call):
            made = lowered.graph.call_function(getitem, (call, place))
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in run)
    for node in reversed(run):
        lowered.graph.erase_node(node)


def _is_read_outside(node: fx.Node, run: Collection[fx.Node]) -> bool:
    return any(user not in run for user in node.users)


def _numbers(step: Step) -> list[int]:
    """Spell a step as the operator reads it, in `STEP` numbers."""
    unit, how = step.unit, step.unit.geometry
    residual = -1 if step.residual is None else step.residual
    flags = (int(unit.relu), int(unit.rectified))
    return [step.given, residual, *flags, *how.stride, *how.padding, *how.dilation]
