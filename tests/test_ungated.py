"""Images that training shows to the plain backbone."""

import math

import pytest
import torch
from scipy import stats

from gaternet.local import LocalGaterNet
from gaternet.randomness import Purpose, sample_keys
from gaternet.ungated import UngatedImages
from small_runs import tiny_backbone, tiny_gated

KEYS = sample_keys(0, Purpose.NETWORK, 0, torch.arange(4000))


def opening(share: float) -> UngatedImages:
    images = UngatedImages()
    images.set_share(share)
    return images


@pytest.mark.parametrize("keyed", [True, False])
def test_a_share_of_the_images_has_every_gate_open(keyed: bool) -> None:
    torch.manual_seed(0)
    gates = torch.rand(4000, 5)
    found = opening(0.3)(gates, KEYS if keyed else None)
    opened = (found == 1).all(dim=1)
    assert torch.equal(found[~opened], gates[~opened])
    assert stats.binomtest(int(opened.sum()), 4000, 0.3).pvalue > 1e-3


def test_draws_belong_to_the_sample() -> None:
    images, gates = opening(0.5), torch.zeros(64, 16)
    whole = images(gates, KEYS[:64])
    order = torch.randperm(64)[:20]
    assert torch.equal(images(gates[:20], KEYS[order]), whole[order])


def test_gates_of_an_open_image_get_no_gradient() -> None:
    gates = torch.rand(200, 10, requires_grad=True)
    found = opening(0.5)(gates, KEYS[:200])
    found.sum().backward()
    expected = (found < 1).all(dim=1, keepdim=True).float().expand(200, 10)
    assert gates.grad is not None
    assert torch.equal(gates.grad, expected)


def test_nothing_is_done_in_evaluation_or_without_a_share() -> None:
    gates = torch.rand(20, 10)
    state = torch.random.get_rng_state()
    assert UngatedImages()(gates) is gates
    assert opening(0.5).eval()(gates) is gates
    assert torch.equal(torch.random.get_rng_state(), state)
    assert opening(0.5).state_dict() == {}


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="it is a probability below 1"):
        UngatedImages().set_share(share)


@pytest.mark.parametrize("by_layers", [False, True])
def test_some_images_see_the_plain_backbone_and_the_gates_returned_are_those_decided(
    by_layers: bool,
) -> None:
    torch.manual_seed(0)
    model = LocalGaterNet(tiny_backbone(), bottleneck=4) if by_layers else tiny_gated()
    images, keys = torch.randn(100, 1, 8, 8), KEYS[:100]
    model.train().backbone.eval()  # so that images do not see each other
    model.ungated.set_share(0.4)
    with torch.no_grad():
        logits, gates = model(images, keys=keys)
        alone, gated = model.backbone(images), model(images, gates=gates).logits
    plain = torch.isclose(logits, alone, atol=1e-6).all(dim=1)
    assert 25 < int(plain.sum()) < 55
    assert torch.allclose(logits[~plain], gated[~plain], atol=1e-6)
    assert not torch.isclose(gated, alone, atol=1e-6).all(dim=1).any()
