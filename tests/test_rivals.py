"""The rivals of Improved SemHash against closed forms and the distributions of their noise."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from gaternet.binarizers import Binarizer, GateForm, ImprovedSemHash, saturating_sigmoid
from gaternet.errors import UsageError
from gaternet.randomness import Purpose, sample_keys
from gaternet.rivals import (
    BINARIZERS,
    GumbelSigmoid,
    HardConcrete,
    RandomGates,
    SoftGates,
    StraightThrough,
    gumbel_sigmoid,
    hard_concrete,
    make_binarizer,
    straight_through,
)

X = torch.linspace(-5, 5, 2001, dtype=torch.float64)[None]  # (1, 2001)
SHIFT = 0.7 * torch.ones_like(X)
KEYS = sample_keys(3, Purpose.NETWORK, 1, torch.arange(4000))
NAMES = sorted(BINARIZERS)


def make(name: str) -> Binarizer:
    return make_binarizer(name, 0.3 if name == "random" else None)


def gradient(gates: Tensor, logits: Tensor) -> np.ndarray:
    (found,) = torch.autograd.grad(gates.sum(), logits)
    return found.numpy()


# Values and gradients


def test_straight_through_is_hard_with_the_sigmoids_gradient() -> None:
    logits = X.clone().requires_grad_()
    gates = straight_through(logits)
    assert torch.equal(gates.detach(), (X >= 0).double())
    sigma = special.expit(X.numpy())
    np.testing.assert_allclose(gradient(gates, logits), sigma * (1 - sigma), atol=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_gumbel_sigmoid_is_hard_with_the_tempered_gradient(temperature: float) -> None:
    logits = X.clone().requires_grad_()
    gates = gumbel_sigmoid(logits, SHIFT, temperature)
    assert torch.equal(gates.detach(), (X + 0.7 >= 0).double())
    sigma = special.expit((X.numpy() + 0.7) / temperature)
    expected = sigma * (1 - sigma) / temperature
    np.testing.assert_allclose(gradient(gates, logits), expected, atol=1e-14)


def test_gumbel_sigmoid_is_the_two_class_gumbel_softmax() -> None:
    on, off = torch.randn(2, 1, 50, dtype=torch.float64)
    noise_on, noise_off = torch.from_numpy(stats.gumbel_r.rvs(size=(2, 1, 50), random_state=0))
    classes = torch.stack((off + noise_off, on + noise_on)).requires_grad_()
    soft = torch.softmax(classes / 0.7, dim=0)[1]
    x = (classes[1] - classes[0]).detach().requires_grad_()
    gates = gumbel_sigmoid(x, torch.zeros_like(x), 0.7)
    assert torch.equal(gates.detach(), classes.argmax(dim=0).double())
    np.testing.assert_allclose(gradient(gates, x), gradient(soft, classes)[1], atol=1e-14)


def test_hard_concrete_equals_the_originals_formula() -> None:
    logits = X.clone().requires_grad_()
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    gates = hard_concrete(logits, SHIFT)
    sigma = special.expit((X.numpy() + 0.7) / beta)
    stretched = sigma * (zeta - gamma) + gamma
    np.testing.assert_allclose(gates.detach().numpy(), np.clip(stretched, 0, 1), atol=1e-14)
    slope = (zeta - gamma) / beta * sigma * (1 - sigma)
    expected = np.where((stretched > 0) & (stretched < 1), slope, 0.0)
    np.testing.assert_allclose(gradient(gates, logits), expected, atol=1e-13)


def test_originals_test_form_of_hard_concrete_is_the_soft_form() -> None:
    gates = HardConcrete().eval().evaluate(X, GateForm.SOFT)
    expected = np.clip(special.expit(X.numpy()) * (1.1 + 0.1) - 0.1, 0, 1)
    np.testing.assert_allclose(gates.numpy(), expected, atol=1e-14)


def test_soft_gates_are_alike_in_training_and_evaluation() -> None:
    binarizer = SoftGates()
    logits = X.clone().requires_grad_()
    gates = binarizer(logits)
    assert torch.equal(gates.detach(), saturating_sigmoid(X))
    assert torch.equal(binarizer.eval()(X), saturating_sigmoid(X))
    sigma = special.expit(X.numpy())
    expected = np.where(np.abs(X.numpy()) < math.log(11), 1.2 * sigma * (1 - sigma), 0)
    np.testing.assert_allclose(gradient(gates, logits), expected, atol=1e-14)


def test_straight_through_is_alike_in_training_and_evaluation() -> None:
    binarizer = StraightThrough()
    assert torch.equal(binarizer(X), binarizer.eval()(X))
    assert torch.equal(binarizer(X), binarizer.evaluate(X, GateForm.NOISY))


# Draws


@pytest.mark.parametrize("keyed", [True, False])
def test_gumbel_gates_open_with_the_probability_of_the_logit(keyed: bool) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[-3.0, -0.5, 0.0, 1.0, 4.0]]).expand(4000, 5)
    opened = GumbelSigmoid()(logits, KEYS if keyed else None).sum(dim=0).int().tolist()
    for count, probability in zip(opened, special.expit(logits[0].numpy()), strict=True):
        assert stats.binomtest(count, 4000, probability).pvalue > 1e-3


@pytest.mark.parametrize("keyed", [True, False])
def test_hard_concrete_has_logistic_noise(keyed: bool) -> None:
    torch.manual_seed(0)
    gates = HardConcrete()(torch.full((4000, 20), 0.4), KEYS if keyed else None).double().numpy()
    # P(gate = 0) = σ(β·ln(−γ/ζ) − logit): Louizos et al., equation 12, the other way round.
    closed = special.expit(2 / 3 * math.log(0.1 / 1.1) - 0.4)
    assert stats.binomtest(int((gates == 0).sum()), gates.size, closed).pvalue > 1e-3
    inside = gates[(gates > 0) & (gates < 1)]
    noise = special.logit((inside + 0.1) / 1.2) * 2 / 3 - 0.4
    low, high = (stats.logistic.cdf(end * math.log(11) * 2 / 3 - 0.4) for end in (-1, 1))
    assert stats.kstest((stats.logistic.cdf(noise) - low) / (high - low), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
def test_random_gates_are_open_at_their_rate_whatever_the_logits(
    training: bool, keyed: bool
) -> None:
    torch.manual_seed(0)
    keys = KEYS if keyed else None
    binarizer = RandomGates(0.3).train(training)
    gates = binarizer(torch.full((4000, 20), math.nan), keys)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert stats.binomtest(int(gates.sum()), gates.numel(), 0.3).pvalue > 1e-3
    assert len(gates.unique(dim=0)) > 3000  # drawn for every sample
    assert torch.equal(gates, binarizer(torch.zeros(4000, 20), keys)) is keyed


@pytest.mark.parametrize("name", NAMES)
def test_draws_belong_to_the_sample_not_to_the_batch(name: str) -> None:
    binarizer, logits, keys = make(name), torch.randn(64, 10), KEYS[:64]
    whole = binarizer(logits, keys)
    order = torch.randperm(64)[:20]
    assert torch.equal(binarizer(logits[order], keys[order]), whole[order])


@pytest.mark.parametrize("name", ["semhash", "gumbel-sigmoid", "hard-concrete", "random"])
def test_gates_decided_in_parts_have_independent_draws(name: str) -> None:
    binarizer = make(name)
    logits = torch.zeros(4000, 8)
    first, second = (binarizer(logits, KEYS, start) >= 0.5 for start in (0, 8))
    both = torch.cat((first, second), dim=1).double()
    correlation = np.corrcoef(both.numpy().T)
    assert np.abs(correlation - np.eye(16)).max() < 5 / math.sqrt(4000)


def test_gates_decided_in_parts_share_the_branch_of_their_sample() -> None:
    binarizer = ImprovedSemHash()
    parts = [binarizer(torch.zeros(1000, 8), KEYS[:1000], start) for start in (0, 8, 500)]
    hard = [((part == 0) | (part == 1)).all(dim=1) for part in parts]
    assert 400 < hard[0].sum() < 600
    assert torch.equal(hard[0], hard[1])
    assert torch.equal(hard[0], hard[2])


# What all have in common


@pytest.mark.parametrize("name", NAMES)
def test_every_binarizer_has_the_same_interface(name: str) -> None:
    binarizer = make(name)
    assert type(binarizer) is BINARIZERS[name]
    logits = torch.randn(50, 20, dtype=torch.bfloat16, requires_grad=True)
    gates = binarizer(logits, KEYS[:50])
    assert gates.dtype == torch.float32
    assert gates.min() >= 0
    assert gates.max() <= 1
    if name != "random":
        gates.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad.any()
    binarizer.eval()
    evaluated = binarizer(logits, KEYS[:50])
    assert torch.equal(evaluated, binarizer.evaluate(logits, binarizer.form, KEYS[:50]))
    assert torch.equal(evaluated, binarizer.evaluate(logits, keys=KEYS[:50]))
    assert (set(evaluated.unique().tolist()) == {0.0, 1.0}) is (name != "soft")
    assert binarizer.state_dict() == {}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random"}))
def test_threshold_moves_evaluation_only(name: str) -> None:
    binarizer, logits = make(name), torch.randn(50, 20)
    before = binarizer(logits, KEYS[:50])
    binarizer.threshold = 0.5
    assert torch.equal(binarizer(logits, KEYS[:50]), before)
    torch.testing.assert_close(
        binarizer.eval()(logits), make(name).eval()(logits - 0.5), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ["gumbel-sigmoid", "hard-concrete"])
def test_noise_fades_with_the_stage(name: str) -> None:
    binarizer, logits = make(name), torch.randn(50, 20)
    binarizer.set_stage(noise_scale=0.0, hard_share=1.0)
    expected = {
        "gumbel-sigmoid": (logits >= 0).float(),
        "hard-concrete": saturating_sigmoid(logits * 1.5),
    }
    torch.testing.assert_close(binarizer(logits), expected[name], rtol=0, atol=1e-6)
    noisy = binarizer.evaluate(torch.zeros(4000, 20), GateForm.NOISY, KEYS)  # its own, in full
    assert noisy.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_stages_do_not_compile_again(name: str) -> None:
    torch._dynamo.reset()
    binarizer = make(name)
    compiled = torch.compile(binarizer, backend="aot_eager", fullgraph=True)
    logits, keys = torch.randn(6, 5), KEYS[:6]
    for scale, share in ((1.0, 0.5), (0.6, 0.75), (0.0, 1.0)):
        binarizer.set_stage(scale, share)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(logits, keys), binarizer(logits, keys))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown binarizer 'gumbel'; did you mean gumbel-sigm"):
        make_binarizer("gumbel")
    with pytest.raises(ValueError, match="random needs one"):
        make_binarizer("random")
    with pytest.raises(ValueError, match="only random"):
        make_binarizer("soft", 0.5)
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        RandomGates(1.5)
    with pytest.raises(ValueError, match="temperature is 0"):
        GumbelSigmoid(temperature=0)
    with pytest.raises(UsageError, match="no soft form"):
        RandomGates(0.5).evaluate(X, GateForm.SOFT)
