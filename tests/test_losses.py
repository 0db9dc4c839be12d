"""The loss against a slow obvious loop and closed-form gradients (paper, section 3.2.2)."""

import math

import pytest
import torch

from gaternet.losses import budget_loss, gate_sparsity, gated_cross_entropy, rate_loss


def test_equals_a_loop_over_samples() -> None:
    logits, gates = torch.randn(5, 4), torch.rand(5, 7).round()
    labels = torch.tensor([0, 3, 1, 1, 2])
    total = 0.0
    for row, opened, label in zip(logits.tolist(), gates.tolist(), labels.tolist(), strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(value) for value in row))
        total += 0.3 * sum(opened) / 7
    loss = gated_cross_entropy(logits, gates, labels, sparsity=0.3)
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_penalty_pulls_at_every_gate_alike_closed_ones_too() -> None:
    gates = torch.tensor([[0.0, 1.0, 0.4], [0.0, 0.0, 1.0]], requires_grad=True)
    (0.5 * gate_sparsity(gates)).backward()
    assert gates.grad is not None
    assert torch.equal(gates.grad, torch.full((2, 3), 0.5 / 6))


def test_label_smoothing_and_soft_labels() -> None:
    logits, gates = torch.randn(3, 4), torch.zeros(3, 2)
    labels = torch.tensor([2, 0, 1])
    smoothed = gated_cross_entropy(logits, gates, labels, sparsity=1.0, label_smoothing=0.2)
    spread = torch.full((3, 4), 0.2 / 4)
    spread[range(3), labels] += 0.8
    torch.testing.assert_close(smoothed, gated_cross_entropy(logits, gates, spread, sparsity=1.0))
    assert smoothed.item() == pytest.approx(-(spread * logits.log_softmax(1)).sum(1).mean().item())


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(8, 10).bfloat16()
    labels = torch.arange(8)
    loss = gated_cross_entropy(logits, torch.zeros(8, 1), labels, sparsity=0.0)
    assert loss.dtype == torch.float32
    expected = gated_cross_entropy(logits.double(), torch.zeros(8, 1), labels, sparsity=0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_rate_loss_equals_a_loop_over_gates() -> None:
    gates = torch.rand(6, 5).round()
    total = 0.0
    for gate in range(5):
        opened = sum(gates[sample, gate].item() for sample in range(6)) / 6
        total += (opened - 0.7) ** 2
    assert rate_loss(gates, 0.7).item() == pytest.approx(total / 5)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    without = gated_cross_entropy(logits, gates, labels, sparsity=0.2)
    with_it = gated_cross_entropy(logits, gates, labels, sparsity=0.2, target_rate=0.7)
    assert (with_it - without).item() == pytest.approx(total / 5, rel=1e-4)


def test_budget_loss_and_its_gradient_are_the_closed_forms() -> None:
    shares = torch.tensor([0.3, 0.9, 0.6], requires_grad=True)
    loss = budget_loss(shares, 0.5)
    assert loss.item() == pytest.approx((0.6 / 0.5 - 1) ** 2)
    loss.backward()
    # d/ds of (mean / t − 1)² is 2·(mean / t − 1) / (N·t): alike for cheap and for dear samples.
    assert shares.grad is not None
    torch.testing.assert_close(shares.grad, torch.full((3,), 2 * 0.2 / (3 * 0.5)))


def test_rate_loss_is_about_every_gate_not_their_mean() -> None:
    half_on = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = rate_loss(half_on, 0.5)
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    # d/dg of ((mean − t)²) / c is 2·(mean − t) / (N·c).
    assert half_on.grad is not None
    assert torch.equal(half_on.grad, torch.tensor([[0.25, -0.25], [0.25, -0.25]]))
