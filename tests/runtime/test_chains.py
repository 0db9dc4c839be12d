"""Neighbouring units in one call: the same values as one by one, and no more calls than need be."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowered_networks import ordinary, random_gates
from torch import Tensor, fx, nn
from torch.export import Dim, export

from gaternet.gate_flow import follow
from gaternet.gate_points import find_gate_points
from gaternet.graph import trace
from gaternet.runtime.chains import GatedChain, chained
from gaternet.runtime.lowering import lower
from gaternet.runtime.operator import (
    STEP,
    gated_conv2d_chain,
    gated_conv2d_chain_reference,
)
from gaternet.runtime.units import find_units
from small_networks import SIZE, ResidualNet, conv

Operands = dict[str, Any]
Change = Callable[[Operands], Operands]


class TwoRoads(nn.Module):
    """Two stems, both read later; to one of them is added what no chain with it could make."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 8), conv(3, 8)
        self.onward = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
        self.last = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x)
        mixed = self.onward(torch.tanh(right))
        return torch.cat([self.last(mixed) + left, right], dim=1).mean((2, 3))


def both_forms(network: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a network lowered, unit by unit and chained."""
    graph = trace(ordinary(network), SIZE)
    flow = follow(graph, find_gate_points(graph, "both"))
    units = find_units(flow, network)
    whole = lower(flow, network, units)
    return whole, chained(whole)


def chains(network: nn.Module) -> list[int]:
    """Return how many units each chain has."""
    return [len(m.steps) // STEP for m in network.modules() if isinstance(m, GatedChain)]


@pytest.mark.usefixtures("kernels")
@torch.no_grad()
@pytest.mark.parametrize(("kind", "expected"), [(ResidualNet, [6]), (TwoRoads, [2, 2])])
def test_chains_compute_the_same_bits(kind: type[nn.Module], expected: list[int]) -> None:
    torch.manual_seed(0)
    whole, short = both_forms(kind())
    assert (chains(short), chains(whole)) == (expected, [])
    gates = random_gates(3, 64, 0.5)
    images = torch.randn(3, *SIZE).contiguous(memory_format=torch.channels_last)
    given = images.clone(memory_format=torch.preserve_format)
    found = short(given, gates)
    assert torch.equal(found, whole(images, gates))
    assert torch.equal(given, images)
    for copied in (short, copy.deepcopy(short), pickle.loads(pickle.dumps(short))):
        assert torch.equal(copied(given, gates), found)


@pytest.mark.usefixtures("kernels")
@torch.no_grad()
def test_chains_are_exported_with_any_batch() -> None:
    torch.manual_seed(0)
    _, short = both_forms(ResidualNet())
    batch = Dim("batch")
    examples = torch.randn(2, *SIZE), random_gates(2, 64, 0.5)
    program = export(short, examples, dynamic_shapes=({0: batch}, {0: batch}))
    assert any("gated_conv2d_chain" in str(node.target) for node in program.graph.nodes)
    given = torch.randn(5, *SIZE), random_gates(5, 64, 0.5)
    assert torch.equal(program.module()(*given), short(*given))


def operands() -> Operands:
    """Three steps: from the image, from the first, from the second and added to the first."""
    torch.manual_seed(0)
    columns = torch.arange(16, dtype=torch.int32) // 8
    own = (torch.randn(1, 3, 3, 16, 16), torch.randn(16), columns, columns)
    moves = [1, 1, 1, 1, 1, 1]
    return {
        "images": [torch.randn(2, 16, 5, 6).contiguous(memory_format=torch.channels_last)],
        "gates": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "parameters": list(own) * 3,
        "steps": [0, -1, 1, 0, *moves, 1, -1, 0, 0, *moves, 2, 1, 1, 1, *moves],
        "kept": [1, 2],
    }


@pytest.mark.usefixtures("kernels")
def test_the_kernel_computes_what_the_reference_does() -> None:
    given = operands()
    expected = gated_conv2d_chain_reference(**given)
    found = gated_conv2d_chain(**given)
    assert len(found) == 2
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(*found)
    torch.library.opcheck(gated_conv2d_chain, tuple(given.values()))


WRONG: dict[str, tuple[Change, str]] = {
    "a number is missing": (lambda o: {"steps": o["steps"][:-1]}, "10 numbers"),
    "a parameter is missing": (lambda o: {"parameters": o["parameters"][:-1]}, "4 parameters"),
    "a later value": (lambda o: {"steps": [1, *o["steps"][1:]]}, "step 0 reads what is not"),
    "below 0": (lambda o: {"steps": [-1, *o["steps"][1:]]}, "step 0 reads what is not"),
    "adds to an image": (
        lambda o: {"steps": [*o["steps"][:21], 0, *o["steps"][22:]]},
        "step 2 adds to what no earlier step made",
    ),
    "keeps what is not there": (lambda o: {"kept": [3]}, "no step 3"),
    "keeps what was added to": (lambda o: {"kept": [0, 2]}, "no step 0"),
    "reads what was added to": (
        lambda o: {
            "parameters": [*o["parameters"], *o["parameters"][:4]],
            "steps": [*o["steps"], 1, *o["steps"][1:10]],
        },
        "step 3 reads what is not there",
    ),
    "another number of channels": (
        lambda o: {"images": [o["images"][0][:, :8]]},
        "weight must be packed",
    ),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_chains_are_refused_in_words(wrong: str) -> None:
    given = operands()
    change, message = WRONG[wrong]
    with pytest.raises(RuntimeError, match=message):
        gated_conv2d_chain(**(given | change(given)))
