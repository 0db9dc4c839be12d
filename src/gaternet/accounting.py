"""Multiply-accumulates that a sample needs, from the gates that it opens.

    layer = multiply-accumulates of one pair of channels · Σ over groups  open inputs · open outputs

Both numbers are the sample's own, so their product is averaged over samples and not made of
averages. The gater's are part of it. A filter that nobody needs counts as not computed, and a
channel counts as not read where it is exactly zero (`gaternet.gate_flow`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from gaternet.gate_flow import UNGATED, FilterLayer, GateFlow, Gates, follow
from gaternet.graph import Graph, trace
from gaternet.local import LocalGaterNet
from gaternet.model import GatedModel, GaterNet

SAMPLES = 64
"""Samples that are counted at once."""


@dataclass(frozen=True)
class LayerMacs:
    """One layer: its name, and its multiply-accumulates per image with every gate open."""

    name: str
    dense: int


class MacCounter(nn.Module):
    """Gates (N, G) → multiply-accumulates (N, L) of each sample in each layer.

    layers: the backbone's, a row a call, in the order of execution; then those of who decides,
        which always run
    uncounted: operations that cost something and are not counted: "layer: operation" → calls

    It is differentiable in the gates; gates between 0 and 1 count by their part. It counts in the
    gates' dtype: float64 is exact. Calls raise ValueError for gates of another shape.
    """

    whole: Tensor
    unit: Tensor
    slot_rows: Tensor
    inputs: Tensor
    outputs: Tensor

    def __init__(
        self,
        flow: GateFlow,
        deciding: Sequence[LayerMacs] = (),
        uncounted: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        graph = flow.graph
        self.gate_count = sum(point.gates for point in flow.points)
        self.backbone_layers = _layers(graph)
        self.deciding_layers = tuple(deciding)
        self.uncounted = dict(graph.uncounted if uncounted is None else uncounted)
        rows = {node: row for row, node in enumerate(_counted(graph))}
        gated = [layer for layer in flow.layers if layer.gated and layer.inputs and layer.outputs]
        saving = {rows[layer.node] for layer in gated}
        dense = [layer.dense for layer in self.layers]
        self._keep("whole", [0.0 if row in saving else float(n) for row, n in enumerate(dense)])
        # A slot is one group of one layer: within it every input meets every output.
        self._keep("unit", [_pair_macs(layer) for layer in gated for _ in range(layer.groups)])
        slot_rows = [rows[layer.node] for layer in gated for _ in range(layer.groups)]
        self._keep("slot_rows", slot_rows)
        self._keep("inputs", self._entries(gated, [layer.inputs for layer in gated]))
        self._keep("outputs", self._entries(gated, [layer.outputs for layer in gated]))

    @property
    def layers(self) -> tuple[LayerMacs, ...]:
        """The rows: the backbone's layers, then those of who decides."""
        return (*self.backbone_layers, *self.deciding_layers)

    @property
    def backbone_macs(self) -> int:
        """Multiply-accumulates per image of the plain backbone."""
        return sum(layer.dense for layer in self.backbone_layers)

    @property
    def deciding_macs(self) -> int:
        """Multiply-accumulates per image of who decides: the gater, or the local heads."""
        return sum(layer.dense for layer in self.deciding_layers)

    def forward(self, gates: Tensor) -> Tensor:
        if gates.ndim != 2 or gates.shape[1] != self.gate_count:
            raise ValueError(
                f"gates of shape {tuple(gates.shape)} are not this network's: give "
                f"(images, {self.gate_count})"
            )
        # In parts: in a DenseNet every layer reads the gates of all before it.
        return torch.cat([self._count(part) for part in gates.split(SAMPLES)])

    def _count(self, gates: Tensor) -> Tensor:
        # A last column that is always open stands for channels without a gate.
        gates = torch.cat((gates, gates.new_ones(len(gates), 1)), dim=1)
        slots = self._open(gates, self.inputs) * self._open(gates, self.outputs)
        slots = slots * self.unit.to(gates.dtype)
        whole = self.whole.to(gates.dtype).expand(len(gates), -1)
        return whole.index_add(1, self.slot_rows, slots)

    def shares(self, gates: Tensor) -> Tensor:
        """Return each sample's multiply-accumulates as a share of the plain backbone's, (N,)."""
        return self(gates).sum(dim=1) / self.backbone_macs

    def _open(self, gates: Tensor, entries: Tensor) -> Tensor:
        """Return how many channels of each slot are open, (N, slots)."""
        slots, columns, counts = entries
        opened = gates.index_select(1, columns) * counts.to(gates.dtype)
        return gates.new_zeros(len(gates), len(self.unit)).index_add(1, slots, opened)

    def _entries(
        self, layers: Sequence[FilterLayer], sides: Sequence[Gates]
    ) -> tuple[list[int], list[int], list[int]]:
        """Return slots, columns of the gates and channels of them, for one side of all layers."""
        slots: list[int] = []
        columns: list[int] = []
        counts: list[int] = []
        slot = 0
        for layer, gates in zip(layers, sides, strict=True):
            width = len(gates) // layer.groups
            for start in range(0, len(gates), width):
                for gate, channels in Counter(gates[start : start + width]).items():
                    slots.append(slot)
                    columns.append(self.gate_count if gate == UNGATED else gate)
                    counts.append(channels)
                slot += 1
        return slots, columns, counts

    def _keep(self, name: str, values: Sequence[float] | Sequence[Sequence[int]]) -> None:
        dtype = torch.float64 if name in ("whole", "unit") else torch.int64
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> MacCounter:
    """Return the counter of a gated model, or of a plain network: gates (N, 0) then.

    input_size: (C, H, W) of an image
    """
    if not isinstance(model, GatedModel):
        return MacCounter(follow(trace(model, input_size), ()))
    graph = trace(model.backbone, input_size)
    deciding, uncounted = _deciding(model, input_size)
    named = {f"backbone.{name}": calls for name, calls in graph.uncounted.items()}
    return MacCounter(follow(graph, model.points), deciding, named | uncounted)


def _deciding(
    model: GatedModel, input_size: tuple[int, int, int]
) -> tuple[list[LayerMacs], dict[str, int]]:
    """Return the layers of who decides on the gates, and what of it is not counted."""
    if isinstance(model, LocalGaterNet):
        return _linear_layers(model.heads, "heads"), {}
    assert isinstance(model, GaterNet)
    gater = model.gater
    channels, height, width = input_size
    seen = (channels, height, width)
    if gater.input_size is not None:
        seen = (channels, gater.input_size, gater.input_size)
    extractor = trace(gater.extractor, seen)
    assert gater.head is not None
    rows = [LayerMacs(f"gater.{layer.name}", layer.dense) for layer in _layers(extractor)]
    uncounted = {f"gater.{name}": calls for name, calls in extractor.uncounted.items()}
    return rows + _linear_layers(gater.head, "gater.head"), uncounted


def _linear_layers(module: nn.Module, prefix: str) -> list[LayerMacs]:
    layers = ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear))
    return [LayerMacs(f"{prefix}.{n}", m.in_features * m.out_features) for n, m in layers]


def _counted(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.fx.nodes if graph.node_macs(node)]


def _layers(graph: Graph) -> tuple[LayerMacs, ...]:
    """Every operation that is counted, by the name of its layer."""
    return tuple(
        LayerMacs(
            str(node.target) if node.op == "call_module" else graph.layer(node) or node.name,
            graph.node_macs(node),
        )
        for node in _counted(graph)
    )


def _pair_macs(layer: FilterLayer) -> float:
    """Return the multiply-accumulates of one input with one output channel of the same group."""
    return layer.macs * layer.groups / (len(layer.inputs) * len(layer.outputs))
