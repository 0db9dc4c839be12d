"""Improved SemHash against closed forms (paper, section 3.2.2)."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from gaternet.binarizers import (
    GateForm,
    ImprovedSemHash,
    hard_gates,
    improved_semhash,
    saturating_sigmoid,
)
from gaternet.randomness import Purpose, sample_keys

LOGITS = torch.linspace(-5, 5, 2001, dtype=torch.float64)[None]  # (1, 2001)
NO_NOISE = torch.zeros_like(LOGITS)
HARD, SOFT = torch.tensor([[True]]), torch.tensor([[False]])


def closed_form_gradient(x: np.ndarray) -> np.ndarray:
    """1.2·σ(x)·(1 − σ(x)) where the clamp is open: |x| < ln 11, since 1.2·σ(ln 11) − 0.1 = 1."""
    sigma = special.expit(x)
    return np.where(np.abs(x) < math.log(11), 1.2 * sigma * (1 - sigma), 0.0)


def test_saturating_sigmoid_equals_the_papers_formula() -> None:
    expected = np.maximum(0, np.minimum(1, 1.2 * special.expit(LOGITS.numpy()) - 0.1))
    np.testing.assert_allclose(saturating_sigmoid(LOGITS).numpy(), expected, atol=1e-15)


@pytest.mark.parametrize("take_hard", [HARD, SOFT])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_both_branches_have_the_closed_form_gradient(take_hard: torch.Tensor, shift: float) -> None:
    logits = LOGITS.clone().requires_grad_()
    weights = torch.rand_like(LOGITS)
    gates = improved_semhash(logits, NO_NOISE + shift, take_hard)
    (gates * weights).sum().backward()
    expected = weights.numpy() * closed_form_gradient(LOGITS.numpy() + shift)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_branch_is_exactly_binary_and_soft_branch_is_soft(dtype: torch.dtype) -> None:
    logits = (torch.randn(200, 500, dtype=dtype) * 2).requires_grad_()
    noise = torch.randn_like(logits)
    take_hard = torch.arange(200)[:, None] % 2 == 0
    gates = improved_semhash(logits, noise, take_hard).detach()
    x = (logits + noise).detach()
    assert torch.equal(gates[::2], (x[::2] >= 0).to(dtype))
    assert torch.equal(gates[1::2], saturating_sigmoid(x)[1::2])


def test_logit_at_the_threshold_is_on() -> None:
    logits = torch.tensor([[0.0, -0.0, -1e-7, 1e-7]])
    assert hard_gates(logits).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert hard_gates(logits - 0.5, threshold=-0.5).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    take_hard = torch.tensor([[True]])
    assert improved_semhash(logits, torch.zeros(1, 4), take_hard)[0, 0] == 1.0


def test_half_precision_logits_give_float32_gates_with_full_noise() -> None:
    logits = torch.full((1, 1), 100.0, dtype=torch.bfloat16)
    noise = torch.tensor([[-100.01]])  # bfloat16 would round it to -100 and open the gate
    gates = improved_semhash(logits, noise, HARD)
    assert gates.dtype == torch.float32
    assert gates.item() == 0.0
    assert hard_gates(logits).dtype == torch.float32


def test_evaluation_is_deterministic_hard_and_moves_with_the_threshold() -> None:
    logits = torch.randn(50, 40)
    binarizer = ImprovedSemHash().eval()
    assert torch.equal(binarizer(logits), (logits >= 0).float())
    assert torch.equal(binarizer(logits), binarizer(logits))
    opened = []
    for threshold in (-1.0, 0.0, 1.0):
        binarizer.threshold = threshold
        opened.append(binarizer(logits).mean().item())
    assert opened[0] > opened[1] > opened[2]


@pytest.mark.parametrize("keyed", [True, False])
def test_training_draws_standard_noise_and_a_branch_for_each_sample(keyed: bool) -> None:
    torch.manual_seed(0)
    samples, count = 4000, 60
    keys = sample_keys(3, Purpose.NETWORK, 1, torch.arange(samples)) if keyed else None
    gates = ImprovedSemHash()(torch.full((samples, count), 0.3), keys).double().numpy()
    binary = (gates == 0.0) | (gates == 1.0)
    took_hard = binary.all(axis=1)
    # A soft sample of 60 gates that all saturate by chance: (1 − 0.97)⁶⁰, never.
    assert stats.binomtest(int(took_hard.sum()), samples, 0.5).pvalue > 1e-3
    opened = int(gates[took_hard].sum())
    total = int(took_hard.sum()) * count
    assert stats.binomtest(opened, total, stats.norm.cdf(0.3)).pvalue > 1e-3
    inside = gates[~took_hard]
    inside = inside[(inside > 0.0) & (inside < 1.0)]
    noise = special.logit((inside + 0.1) / 1.2) - 0.3
    low, high = -math.log(11) - 0.3, math.log(11) - 0.3
    assert stats.kstest(noise, stats.truncnorm(low, high).cdf).pvalue > 1e-3


def test_branch_is_independent_of_the_noise() -> None:
    keys = sample_keys(0, Purpose.NETWORK, 0, torch.arange(6000))
    gates = ImprovedSemHash()(torch.zeros(6000, 8), keys)
    took_hard = ((gates == 0) | (gates == 1)).all(dim=1)
    opened = (gates >= 0.5).float()
    difference = opened[took_hard].mean(0) - opened[~took_hard].mean(0)
    assert difference.abs().max() < 5 * math.sqrt(0.25 / 1500)


def test_keyed_draws_belong_to_the_sample_not_to_the_batch() -> None:
    binarizer = ImprovedSemHash()
    logits = torch.randn(64, 10)
    keys = sample_keys(0, Purpose.NETWORK, 0, torch.arange(64))
    whole = binarizer(logits, keys)
    order = torch.randperm(64)[:20]
    torch.testing.assert_close(binarizer(logits[order], keys[order]), whole[order])


def test_stage_sets_noise_and_branch_and_is_not_saved() -> None:
    binarizer = ImprovedSemHash()
    logits = torch.randn(100, 20)
    binarizer.set_stage(noise_scale=0.0, hard_share=1.0)
    assert torch.equal(binarizer(logits), hard_gates(logits))
    binarizer.set_stage(noise_scale=0.0, hard_share=0.0)
    assert torch.equal(binarizer(logits), saturating_sigmoid(logits))
    assert binarizer.state_dict() == {}


@pytest.mark.parametrize(("scale", "share"), [(-0.1, 0.5), (math.inf, 0.5), (1.0, 1.1)])
def test_impossible_stage_is_refused(scale: float, share: float) -> None:
    with pytest.raises(ValueError, match="it is a"):
        ImprovedSemHash().set_stage(scale, share)


def test_forms_of_evaluation() -> None:
    binarizer = ImprovedSemHash(threshold=-0.5).eval()
    binarizer.set_stage(noise_scale=0.0, hard_share=1.0)  # concerns training only
    logits = torch.randn(500, 40)
    assert torch.equal(binarizer.evaluate(logits), binarizer(logits))
    assert torch.equal(binarizer.evaluate(logits, GateForm.SOFT), saturating_sigmoid(logits + 0.5))
    keys = sample_keys(0, Purpose.NETWORK, 0, torch.arange(500))
    noisy = binarizer.evaluate(torch.zeros(500, 40), GateForm.NOISY, keys)
    assert set(noisy.unique().tolist()) == {0.0, 1.0}
    assert noisy.mean().item() == pytest.approx(stats.norm.cdf(0.5), abs=0.02)
    with pytest.raises(ValueError, match="'fuzzy' is not a valid GateForm"):
        binarizer.evaluate(logits, "fuzzy")  # type: ignore[arg-type]


def test_stages_do_not_compile_again() -> None:
    torch._dynamo.reset()
    binarizer = ImprovedSemHash()
    compiled = torch.compile(binarizer, backend="aot_eager", fullgraph=True)
    logits = torch.randn(6, 5)
    keys = torch.arange(6)
    for scale, share in ((1.0, 0.5), (0.6, 0.75), (0.1, 0.9), (0.0, 1.0)):
        binarizer.set_stage(scale, share)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(logits, keys), binarizer(logits, keys))
