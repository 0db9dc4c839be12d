"""`verify` against differences that were made on purpose."""

import copy
import math

import pytest
import torch
from torch import Tensor

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.gater import Gater
from gaternet.local import LocalGaterNet
from gaternet.model import GaterNet, GaterNetOutput
from gaternet.rivals import SoftGates
from gaternet.verification import verify

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> GaterNet:
    torch.manual_seed(0)
    backbone = CifarResNet(8, widths=(4, 8, 8), image_size=8)
    gater = Gater(CifarResNet(8, classes=0, widths=(4, 4, 4), image_size=8), bottleneck=4)
    return GaterNet(backbone, gater).eval()


def test_a_copy_is_equal(model: GaterNet) -> None:
    result = verify(model, copy.deepcopy(model), IMAGES)
    assert (result.logit_error, result.flips, result.rounding_flips) == (0.0, 0, 0)
    assert result.gates == 4 * 20
    assert result.agrees(0.0)
    mask = torch.rand(20) < 0.5
    assert verify(model, copy.deepcopy(model), IMAGES, gates=mask).gates == 0


def test_error_is_the_largest_difference_over_the_largest_logit(model: GaterNet) -> None:
    def shifted(images: Tensor, gates: Tensor) -> GaterNetOutput:
        logits, gates = model(images, gates=gates)
        logits = logits.clone()
        logits[2, 1] += 0.25
        return GaterNetOutput(logits, gates)

    mask = torch.ones(20)
    with torch.no_grad():
        largest = model(IMAGES, gates=mask).logits.abs().max().item()
    result = verify(model, shifted, IMAGES, gates=mask)
    assert result.logit_error == pytest.approx(0.25 / largest, rel=1e-4)
    assert not result.agrees()
    assert result.agrees(tolerance=1.0)


def test_a_flipped_gate_is_counted_and_does_not_touch_the_logits(model: GaterNet) -> None:
    with torch.no_grad():
        far = model.gate_logits(IMAGES).abs()[0].argmax()

    def flipping(images: Tensor) -> GaterNetOutput:
        gates = model(images).gates.clone()
        gates[0, far] = 1 - gates[0, far]
        return model(images, gates=gates)

    result = verify(model, flipping, IMAGES)
    assert (result.logit_error, result.flips, result.rounding_flips) == (0.0, 1, 0)
    assert not result.agrees()


def test_a_flip_next_to_the_threshold_is_rounding(model: GaterNet) -> None:
    with torch.no_grad():
        at = model.gate_logits(IMAGES)[1, 3].item()
    model.binarizer.threshold = at - 5e-5
    other = copy.deepcopy(model)
    other.binarizer.threshold = at + 5e-5
    result = verify(model, other, IMAGES)
    assert result.flips == result.rounding_flips >= 1
    assert result.agrees(0.0)
    assert verify(model, other, IMAGES, rounding=1e-6).rounding_flips == 0


def test_soft_gates_may_differ_by_rounding(model: GaterNet) -> None:
    model.binarizer = SoftGates()

    def shifted(images: Tensor, by: float) -> GaterNetOutput:
        gates = model(images).gates + by
        return model(images, gates=gates)

    assert verify(model, lambda images: shifted(images, 1e-6), IMAGES).agrees(0.0)
    result = verify(model, lambda images: shifted(images, 1e-2), IMAGES)
    assert result.flips == 4 * 20 > result.rounding_flips


def test_local_gates_after_a_rounded_one_decide_on_other_feature_maps() -> None:
    torch.manual_seed(0)
    local = LocalGaterNet(CifarResNet(8, widths=(4, 8, 8), image_size=8), bottleneck=4).eval()
    for head in list(local.heads)[1:]:
        head.get_parameter("fc2.weight").data *= 1e4  # whatever changes before flips gates here
    logits = local.decide(IMAGES).logits
    local.binarizer.threshold = logits[1, 2].item() - 5e-5
    other = copy.deepcopy(local)
    other.binarizer.threshold = logits[1, 2].item() + 5e-5
    flipped = local(IMAGES).gates != other(IMAGES).gates
    assert flipped[1, 4:].any()
    result = verify(local, other, IMAGES)
    assert result.flips == result.rounding_flips == flipped.sum()

    def unprompted(images: Tensor) -> GaterNetOutput:
        gates = local(images).gates.clone()
        gates[0, 7] = 1 - gates[0, 7]
        return local(images, gates=gates)

    assert not verify(local, unprompted, IMAGES).agrees()


def test_nan_never_agrees(model: GaterNet) -> None:
    other = copy.deepcopy(model)
    other.backbone.get_parameter("fc.bias").data[0] = math.nan
    result = verify(model, other, IMAGES)
    assert math.isnan(result.logit_error)
    assert not result.agrees(math.inf)


def test_lists_of_feature_maps_are_compared_one_by_one(model: GaterNet) -> None:
    def maps(images: Tensor, scale: float) -> tuple[list[Tensor], Tensor]:
        logits, gates = model(images)
        return [logits, logits * scale], gates

    reference = copy.deepcopy(model)
    reference.backbone.register_forward_hook(lambda module, args, output: [output, output * 2])
    assert verify(reference, lambda images: maps(images, 2.0), IMAGES).agrees(0.0)
    result = verify(reference, lambda images: maps(images, 3.0), IMAGES)
    assert result.logit_error == pytest.approx(0.5)


def test_what_cannot_be_compared_is_refused(model: GaterNet) -> None:
    def narrow(images: Tensor) -> GaterNetOutput:
        logits, gates = model(images)
        return GaterNetOutput(logits[:, :1], gates)

    with pytest.raises(ValueError, match=r"logits are \(4, 1\), not \(4, 10\)"):
        verify(model, narrow, IMAGES)
    with pytest.raises(ValueError, match="training mode"):
        verify(model.train(), model, IMAGES)
