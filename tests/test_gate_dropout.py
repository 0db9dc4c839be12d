"""Dropout on gates against a loop and its distribution (paper, appendix B)."""

import math

import pytest
import torch
from scipy import stats

from gaternet.gate_dropout import GateDropout, gate_dropout
from gaternet.randomness import Purpose, sample_keys

KEYS = sample_keys(0, Purpose.NETWORK, 0, torch.arange(4000))


def dropping(rate: float) -> GateDropout:
    dropout = GateDropout()
    dropout.set_rate(rate)
    return dropout


def test_equals_a_loop_over_gates() -> None:
    gates, uniform = torch.rand(5, 7), torch.rand(5, 7)
    found = gate_dropout(gates, torch.tensor(0.4), uniform)
    for row, column in torch.cartesian_prod(torch.arange(5), torch.arange(7)).tolist():
        kept = uniform[row, column] >= 0.4
        expected = gates[row, column].item() / 0.6 if kept else 0.0
        assert found[row, column].item() == pytest.approx(expected)


@pytest.mark.parametrize("keyed", [True, False])
def test_expected_gate_is_the_gate(keyed: bool) -> None:
    torch.manual_seed(0)
    gates = torch.tensor([0.0, 0.25, 1.0]).expand(4000, 3)
    dropped = dropping(0.05)(gates, KEYS if keyed else None)
    count = int((dropped[:, 1:] == 0).sum())
    assert stats.binomtest(count, 8000, 0.05).pvalue > 1e-3
    error = 0.25 * math.sqrt(0.05 / 0.95 / 4000)
    assert dropped.mean(dim=0)[1].item() == pytest.approx(0.25, abs=4 * error)
    assert not dropped[:, 0].any()


def test_a_dropped_gate_passes_no_gradient() -> None:
    gates = torch.rand(20, 10, requires_grad=True)
    dropped = dropping(0.5)(gates, KEYS[:20])
    dropped.sum().backward()
    assert torch.equal(gates.grad, torch.where(dropped == 0, 0.0, 2.0))  # type: ignore[arg-type]


def test_draws_belong_to_the_sample_and_are_its_own() -> None:
    dropout, gates = dropping(0.5), torch.ones(64, 16)
    whole = dropout(gates, KEYS[:64])
    order = torch.randperm(64)[:20]
    assert torch.equal(dropout(gates[:20], KEYS[order]), whole[order])
    assert not torch.equal(dropout(gates, KEYS[:64], start=16), whole)


def test_nothing_is_done_in_evaluation_or_before_a_rate_is_set() -> None:
    gates = torch.rand(20, 10)
    state = torch.random.get_rng_state()
    assert GateDropout()(gates) is gates
    assert dropping(0.5).eval()(gates) is gates
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(dropping(0.0)(gates), gates)
    assert dropping(0.5).state_dict() == {}


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="it is a probability below 1"):
        GateDropout().set_rate(rate)


def test_a_schedule_compiles_once() -> None:
    torch._dynamo.reset()
    dropout = dropping(0.0)
    compiled = torch.compile(dropout, backend="aot_eager", fullgraph=True)
    gates = torch.rand(6, 5)
    compiled(gates, KEYS[:6])
    for rate in (0.01, 0.03, 0.05):
        dropout.set_rate(rate)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(gates, KEYS[:6]), dropout(gates, KEYS[:6]))
