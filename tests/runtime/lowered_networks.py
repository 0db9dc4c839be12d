"""Networks lowered, units skipping, chained or dense, beside the masked one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gaternet.gate_flow import follow
from gaternet.gate_points import GatePoint, name_gate_points
from gaternet.graph import Graph, trace
from gaternet.runtime.chains import chained
from gaternet.runtime.compiled import MaskedBackbone, masked_backbone
from gaternet.runtime.lowering import lower
from gaternet.runtime.units import Unit, find_units
from gaternet.verification import relative_error

Size = tuple[int, int, int]
TOLERANCE = 1e-5


def ordinary(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give the norms of a network weights and statistics of ordinary size; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if not isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm):
            continue
        if module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.0, generator)
            nn.init.normal_(module.bias, 0.0, 0.1, generator)
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator)
            nn.init.normal_(module.running_mean, 0.0, 0.1, generator)
    return network.eval()


def random_gates(batch: int, count: int, rate: float, seed: int = 0) -> Tensor:
    """Return gates (N, G), 0 or 1, open with probability `rate`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, count, generator=generator) < rate).float()


@dataclass(frozen=True)
class Lowered:
    """A masked network and its lowered forms."""

    masked: MaskedBackbone
    forms: Mapping[str, nn.Module]
    units: tuple[Unit, ...]
    gate_count: int
    size: Size

    @torch.no_grad()
    def error(self, batch: int, rate: float, seed: int = 0) -> float:
        """Return the largest of the forms' errors under random gates, over the largest logit."""
        images = torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(seed))
        gates = random_gates(batch, self.gate_count, rate, seed)
        expected = self.masked(images.clone(), gates)
        return max(self._errors(images, gates, expected))

    def _errors(self, images: Tensor, gates: Tensor, expected: Any) -> Iterable[float]:
        last = images.contiguous(memory_format=torch.channels_last)
        for form in self.forms.values():
            for given in (images, last):
                yield relative_error(form(given.clone(), gates), expected)


def lowered(network: nn.Module, points: Sequence[GatePoint], graph: Graph) -> Lowered:
    """Lower a network in evaluation mode, gated at `points`."""
    flow = follow(graph, points)
    units = find_units(flow, network)
    skipping = lower(flow, network, units)
    forms = {
        "skipping": skipping,
        "dense": lower(flow, network, units, dense=units),
        "chained": chained(skipping),
    }
    count = sum(point.gates for point in points)
    return Lowered(masked_backbone(network, points), forms, units, count, graph.input_size)


def lowered_at(network: nn.Module, names: Iterable[str], size: Size = (3, 8, 8)) -> Lowered:
    """Lower a network with norms of ordinary size, gated at the submodules of these names."""
    network = ordinary(network)
    graph = trace(network, size)
    return lowered(network, name_gate_points(graph, names), graph)
