"""Shake-Shake: values by α, gradients by β, draws by key, the shifted shortcut pixel by pixel."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet import randomness
from gaternet.backbones import shake_shake
from gaternet.backbones.shake_shake import (
    Coefficients,
    ShakeShake,
    ShakeShakeBlock,
    TwoPathShortcut,
    shake,
)


def branches(count: int) -> tuple[Tensor, Tensor, Coefficients]:
    torch.manual_seed(0)
    first, second = (torch.randn(count, 3, 2, 2, requires_grad=True) for _ in range(2))
    return first, second, Coefficients(torch.rand(count), torch.rand(count))


def test_value_is_alpha_s_and_gradient_is_beta_s_for_each_sample() -> None:
    first, second, coefficients = branches(5)
    upstream = torch.randn(5, 3, 2, 2)
    mixed = shake(first, second, coefficients)
    mixed.backward(upstream)
    assert first.grad is not None
    assert second.grad is not None
    for n in range(5):
        alpha, beta = float(coefficients.forward[n]), float(coefficients.backward[n])
        torch.testing.assert_close(mixed[n], alpha * first[n] + (1 - alpha) * second[n])
        torch.testing.assert_close(first.grad[n], beta * upstream[n])
        torch.testing.assert_close(second.grad[n], (1 - beta) * upstream[n])


def test_mixture_keeps_the_precision_of_the_branches() -> None:
    first, second, coefficients = branches(2)
    mixed = shake(first.bfloat16(), second.bfloat16(), coefficients)
    assert mixed.dtype == torch.bfloat16
    mixed.sum().backward()
    assert first.grad is not None
    assert first.grad.dtype == torch.float32


def test_shortcut_s_second_path_sees_the_pixels_above_and_to_the_left() -> None:
    torch.manual_seed(0)
    shortcut = TwoPathShortcut(2, 6, stride=2).eval()
    nn.init.uniform_(shortcut.bn.weight, 0.5, 2.0)
    x = torch.randn(1, 2, 4, 4)
    weight = shortcut.conv.weight[:, :, 0, 0]
    expected = torch.zeros(1, 6, 2, 2)
    for row in range(2):
        for column in range(2):
            seen = x[0, :, 2 * row, 2 * column].relu()
            inside = row > 0 and column > 0
            above = x[0, :, 2 * row - 1, 2 * column - 1].relu() if inside else torch.zeros(2)
            expected[0, :3, row, column] = weight[:3] @ seen
            expected[0, 3:, row, column] = weight[3:] @ above
    torch.testing.assert_close(shortcut(x), shortcut.bn(expected))


def test_block_is_the_mean_of_its_branches_in_evaluation() -> None:
    torch.manual_seed(0)
    block = ShakeShakeBlock(4, 4, stride=1).eval()
    x = torch.randn(2, 4, 6, 6)
    sums = []
    for branch in (block.branch1, block.branch2):
        inner = branch.bn1(F.conv2d(x.relu(), branch.conv1.weight, padding=1))
        sums.append(branch.bn2(F.conv2d(inner.relu(), branch.conv2.weight, padding=1)))
    torch.testing.assert_close(block(x), x + (sums[0] + sums[1]) / 2)


def test_evaluation_draws_nothing() -> None:
    model = ShakeShake(2).eval()
    images = torch.randn(2, 3, 8, 8)
    state = torch.get_rng_state()
    logits = model(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits, model(images, keys=torch.tensor([1, 2])))


def test_draws_follow_from_the_key_alone() -> None:
    torch.manual_seed(0)
    model = ShakeShake(2).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    keys = torch.tensor([3, 1, 4, 1_000_000])
    logits = model(images, keys=keys)
    assert torch.equal(model(images, keys=keys), logits)
    assert not torch.allclose(model(images, keys=keys + 1), logits)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(images[order], keys=keys[order]), logits[order])
    assert not torch.allclose(model(images), model(images))


def test_coefficients_are_uniform_independent_and_not_another_s_draws() -> None:
    model = ShakeShake(2)
    keys = randomness.sample_keys(0, randomness.Purpose.NETWORK, 0, torch.arange(4000))
    draws = model._draw(torch.empty(4000, 3, 8, 8), keys)
    assert draws.shape == (4000, 2 * 12)
    assert (draws.min() >= 0, draws.max() < 1) == (True, True)
    # Standard errors: mean 0.0046, variance 0.0012, correlation 0.016; five of them.
    torch.testing.assert_close(draws.mean(0), torch.full((24,), 0.5), atol=0.023, rtol=0)
    torch.testing.assert_close(draws.var(0), torch.full((24,), 1 / 12), atol=0.006, rtol=0)
    others = randomness.uniform(keys, 24)
    correlations = torch.corrcoef(torch.cat((draws, others), dim=1).T) - torch.eye(48)
    assert correlations.abs().max() < 0.08


def test_training_mixes_by_the_drawn_coefficients_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = ShakeShake(2)
    images = torch.randn(3, 3, 8, 8)
    draws = torch.rand(3, 24)
    monkeypatch.setattr(model, "_draw", lambda images, keys: draws)
    x = model.bn(model.conv(images))
    for i, block in enumerate(model.blocks):
        assert isinstance(block, ShakeShakeBlock)
        alpha = draws[:, 2 * i, None, None, None]
        mixed = alpha * block.branch1(x) + (1 - alpha) * block.branch2(x)
        x = block.shortcut(x) + mixed
    torch.testing.assert_close(model(images), model.fc(x.relu().mean(dim=(2, 3))))


def test_compiles_whole_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shake_shake, "BLOCKS", 1)  # a quarter of the time
    torch.manual_seed(0)
    model = ShakeShake(2)
    images, keys = torch.randn(4, 3, 8, 8), torch.arange(4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        network(images, keys=keys).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_network_without_classifier_gives_pooled_features() -> None:
    model = ShakeShake(2, classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 8, 8, 8)
    assert torch.equal(model(images), features.mean(dim=(2, 3)))


def test_initial_weights_of_the_shortcut_count_each_of_its_paths() -> None:
    torch.manual_seed(0)
    shortcut = ShakeShake(64).blocks[8].shortcut
    assert isinstance(shortcut, TwoPathShortcut)
    assert shortcut.conv.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)


def test_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 33 is not even"):
        ShakeShake(33)
