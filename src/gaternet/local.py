"""Local gates: each layer, or each residual branch, decides on its own gates from its own input.

    feature map (N, C, H, W) → global average pool → FC1 → BatchNorm → ReLU → FC2 → logits (N, g)

The paper argues against them ("You Look Twice", section 1): one gater sees the image as a whole.
Branches are the gates of ConvNet-AIG (Veit and Belongie, ECCV 2018), which the paper compares with.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gaternet.binarizers import Binarizer, GateForm
from gaternet.gate_inputs import GateInput, branch_input, filter_input, find_branches
from gaternet.gate_points import GatePoint, WatchHook
from gaternet.gater import gate_head
from gaternet.graph import Graph, trace
from gaternet.model import (
    Decision,
    GatedModel,
    GaterNetOutput,
    Points,
    count_parameters,
    resolve_points,
)

Granularity = Literal["filters", "branches"]


class LocalGaterNet(GatedModel):
    """Images (N, C, H, W) → GaterNetOutput(logits, gates), the gates decided layer by layer.

    points: where the gates are; None finds them by the structural rule (of branches: those beside a
        shortcut), else names of submodules, a predicate on names, or GatePoints in their order
    granularity: "filters": one gate a filter, as in a GaterNet, decided from the input of the conv
        that makes the filters; "branches": one gate for a whole residual branch, decided from the
        input of its residual unit
    bottleneck: the width between FC1 and FC2 of every head; ConvNet-AIG has 16
    batch_norm: False leaves the BatchNorm out
    opening_bias: FC2's initial bias; 1.9 is ConvNet-AIG's, whose gates start out 87 % open
    binarizer: from gate logits to gates; None is Improved SemHash, ConvNet-AIG has GumbelSigmoid
    input_size: (C, H, W) of an image, where the backbone does not declare it

    Gates of earlier layers have their part in what later layers decide. A sample takes the hard or
    the soft branch of Improved SemHash with all its gates, as in a GaterNet. In training without
    keys, keys are drawn from torch's generator.

    Raises ValueError where there is no gate point, a given one cannot be gated, or none of the
    backbone's submodules has the feature map that it would be decided from.
    """

    def __init__(
        self,
        backbone: nn.Module,
        points: Points | None = None,
        granularity: Granularity = "filters",
        *,
        bottleneck: int = 16,
        batch_norm: bool = True,
        opening_bias: float = 0.0,
        binarizer: Binarizer | None = None,
        input_size: tuple[int, int, int] | None = None,
    ) -> None:
        if bottleneck < 1:
            raise ValueError(f"bottleneck is {bottleneck}; it must be at least 1")
        graph = trace(backbone, input_size)
        resolved, inputs = _places(graph, points, granularity)
        super().__init__(backbone, resolved, graph.input_size, binarizer)
        self.granularity: Granularity = granularity
        self.bottleneck = bottleneck
        self.batch_norm = batch_norm
        self.inputs = inputs
        self._starts = [columns.start for columns in self.slices.values()]
        self._present = _ForwardState()
        self.heads = nn.ModuleList()
        for index, (point, given) in enumerate(zip(resolved, inputs, strict=True)):
            head = gate_head(
                given.channels,
                bottleneck,
                point.gates,
                batch_norm=batch_norm,
                opening_bias=opening_bias,
            )
            pool = ("pool", GlobalAveragePool(given.channel_dim))
            self.heads.append(nn.Sequential(OrderedDict([pool, *head.named_children()])))
            self._watch(index, given)
        if (like := next(backbone.parameters(), None)) is not None:
            self.heads.to(like.device, like.dtype)

    def decide(
        self, images: Tensor, form: GateForm | None = None, keys: Tensor | None = None
    ) -> Decision:
        """Return evaluation's gates in a form, by default the binarizer's; the backbone runs.

        The gates of earlier layers take part in the same form.
        """
        return self.evaluate(images, form, keys)[1]

    def evaluate(
        self, images: Tensor, form: GateForm | None = None, keys: Tensor | None = None
    ) -> tuple[Any, Decision]:
        """Return what the backbone returns under the gates of `decide`, and the decision."""
        return self._run_deciding(images, keys, _ForwardState(keys, evaluates=True, form=form))

    def see(self, index: int, features: Tensor) -> None:
        """Decide gate point number `index` from its feature map; the backbone's hooks call it."""
        holder, present = self._holder, self._present
        if holder.gates is None or not holder.decided_on_the_way:
            return
        logits, start = self.heads[index](features), self._starts[index]
        if present.evaluates:
            gates = used = self.binarizer.evaluate(logits, present.form, present.keys, start)
        else:
            gates = self.binarizer(logits, present.keys, start)
            used = self.ungated(self.dropout(gates, present.keys, start), present.keys)
        present.logits[index], present.gates[index] = logits, gates
        holder.gates[index] = used

    def _forward(self, images: Tensor, keys: Tensor | None) -> GaterNetOutput:
        own = keys
        if own is None and self.training:
            # One key a sample for all layers: they share its branch, and draw what is their own.
            own = torch.randint(2**32, (images.shape[0],), device=images.device)
        logits, decision = self._run_deciding(images, keys, _ForwardState(own))
        return GaterNetOutput(logits, decision.gates)

    def _run_deciding(
        self, images: Tensor, keys: Tensor | None, present: "_ForwardState"
    ) -> tuple[Any, Decision]:
        with self._alone():
            self._present = present
            logits = self._run(images, None, keys)
            if not torch.is_grad_enabled():
                self._present = _ForwardState()
        points = range(len(self.points))
        decision = Decision(
            torch.cat([present.logits[index] for index in points], dim=1),
            torch.cat([present.gates[index] for index in points], dim=1),
        )
        return logits, decision

    def _watch(self, index: int, given: GateInput) -> None:
        module, hook = self.backbone.get_submodule(given.module), WatchHook(self, index)
        if given.side == "input":
            module.register_forward_pre_hook(hook)
        else:
            module.register_forward_hook(hook)

    def _describe_decider(self) -> str:
        return (
            f"{len(self.heads)} heads → {self.bottleneck} → gates of {self.granularity}, "
            f"{count_parameters(self.heads)}"
        )


class GlobalAveragePool(nn.Module):
    """Feature map (N, C, H, W), or (N, H, W, C) where channel_dim is 3, → (N, C)."""

    def __init__(self, channel_dim: int) -> None:
        super().__init__()
        self.channel_dim = channel_dim

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3) if self.channel_dim == 1 else (1, 2))


class _ForwardState:
    """How the gates of the present forward are decided, and what was decided by now."""

    def __init__(
        self, keys: Tensor | None = None, evaluates: bool = False, form: GateForm | None = None
    ) -> None:
        self.keys = keys
        self.evaluates = evaluates
        self.form = form
        self.logits: dict[int, Tensor] = {}
        self.gates: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What was decided belongs to one forward; with its autograd history it cannot be copied.
        return vars(_ForwardState())


def _places(
    graph: Graph, points: Points | None, granularity: Granularity
) -> tuple[tuple[GatePoint, ...], tuple[GateInput, ...]]:
    """Return gate points of a granularity and what each is decided from."""
    if granularity == "filters":
        resolved = resolve_points(graph, points)
        return resolved, tuple(filter_input(graph, point) for point in resolved)
    if granularity != "branches":
        raise ValueError(f"granularity is {granularity!r}; it is filters or branches")
    given = find_branches(graph) if points is None else resolve_points(graph, points)
    for point in given:
        if point.block not in (1, point.channels):
            raise ValueError(f"gate point `{point.name}`: a branch has one gate, not {point.gates}")
    whole = tuple(replace(point, block=point.channels) for point in given)
    return whole, tuple(branch_input(graph, point) for point in whole)
