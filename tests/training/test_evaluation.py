"""Error rates and gate counts against slow loops over single images."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet.accounting import count_macs
from gaternet.analysis.record import collect
from gaternet.binarizers import GateForm
from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.data.settings import DIGITS
from gaternet.gater import Gater
from gaternet.local import Granularity, LocalGaterNet
from gaternet.model import GatedModel, GaterNet
from gaternet.randomness import Purpose, normal, sample_keys
from gaternet.rivals import RandomGates, SoftGates
from gaternet.training.evaluation import evaluate, judge
from small_runs import PLAIN, cpu_plan, few_digits, tiny_backbone, tiny_gated

CPU = cpu_plan(PLAIN)


def scaled(images: ImageSet) -> Tensor:
    return (images.images / 255 - DIGITS.mean[0]) / DIGITS.std[0]


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_errors_equal_a_loop_over_single_images() -> None:
    images, model = few_digits(101), linear()
    wrong = wrong5 = loss = 0.0
    with torch.no_grad():
        for pixels, label in zip(scaled(images), images.labels.tolist(), strict=True):
            scores = model(pixels[None])[0].tolist()
            better = sum(score > scores[label] for score in scores)
            wrong += better >= 1
            wrong5 += better >= 5
            loss += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    found = evaluate(model, images, DIGITS, CPU, batch_size=25)
    assert found.images == 101
    assert found.error_percent == pytest.approx(100 * wrong / 101)
    assert found.top5_error_percent == pytest.approx(100 * wrong5 / 101)
    assert 0 < found.top5_error_percent < found.error_percent
    assert found.loss == pytest.approx(loss / 101, rel=1e-5)
    assert found.gates is None


def test_right_images_are_those_of_a_loop_over_single_images() -> None:
    images, model = few_digits(101), linear()
    with torch.no_grad():
        right = [
            int(model(pixels[None]).argmax()) == label
            for pixels, label in zip(scaled(images), images.labels.tolist(), strict=True)
        ]
    found, judged = judge(model, images, DIGITS, CPU, batch_size=25)
    assert judged is not None
    assert judged.tolist() == right
    assert found == evaluate(model, images, DIGITS, CPU, batch_size=25)


def test_every_image_comes_once_with_a_ragged_last_batch() -> None:
    images, model = few_digits(101), linear()
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    evaluate(model, images, DIGITS, CPU, batch_size=25)
    assert [len(batch) for batch in seen] == [25, 25, 25, 25, 1]
    torch.testing.assert_close(torch.cat(seen), scaled(images).flatten(1))


def test_top5_of_fewer_classes_is_never_wrong() -> None:
    digits = few_digits(20)
    images = make_image_set(digits.images, digits.labels % 3, ("a", "b", "c"), "three")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert evaluate(model, images, DIGITS, CPU).top5_error_percent == 0


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(training: bool) -> None:
    model = tiny_gated().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, few_digits(20), DIGITS, CPU)
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Brightness(nn.Module):
    """Images to their mean value, (N, 1): an extractor whose features are known."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.fixture
def planted() -> GaterNet:
    """5 gates always on, 6 always off, 9 that follow the brightness, their logits known."""
    model = GaterNet(tiny_backbone(), Gater(Brightness(), bottleneck=1))
    head = nn.Linear(1, 20)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([9.0] * 5 + [-9.0] * 6 + [0.2] * 9))
        head.weight.copy_(torch.tensor([[0.0]] * 11 + [[20.0]] * 9))
    model.gater.head = nn.Sequential(head)
    return model.eval()


def test_gates_are_counted(planted: GaterNet) -> None:
    images = few_digits(90)
    follow = [20 * pixels.mean().item() + 0.2 for pixels in scaled(images)]
    bright = sum(logit >= 0 for logit in follow)
    assert 0 < bright < 90
    gates = evaluate(planted, images, DIGITS, CPU, batch_size=40).gates
    assert gates is not None
    assert (gates.total, gates.always_on, gates.always_off, gates.input_dependent) == (20, 5, 6, 9)
    assert gates.mean_open == pytest.approx((90 * 5 + 9 * bright) / 90)
    near = 9 * sum(abs(logit) < 1 for logit in follow)
    assert gates.near_threshold == pytest.approx(near / (90 * 20))


def test_macs_are_those_of_the_gates_that_each_image_opens(planted: GaterNet) -> None:
    images = few_digits(90)
    gates = evaluate(planted, images, DIGITS, CPU, batch_size=40).gates
    assert gates is not None
    counter = count_macs(planted, DIGITS.input_size)
    with torch.no_grad():
        each = [counter(planted.decide(one[None]).gates.double()).sum() for one in scaled(images)]
    assert gates.needed_macs == pytest.approx(sum(each).item() / 90)
    assert gates.backbone_macs == counter.backbone_macs
    assert gates.needed_macs < counter.backbone_macs


def test_soft_gate_that_is_not_closed_needs_its_filter(planted: GaterNet) -> None:
    soft, hard = (
        evaluate(planted, few_digits(20), DIGITS, CPU, form).gates
        for form in (GateForm.SOFT, GateForm.HARD)
    )
    assert soft is not None
    assert hard is not None
    assert hard.needed_macs < soft.needed_macs


def test_threshold_counts(planted: GaterNet) -> None:
    planted.binarizer.threshold = -9.5
    gates = evaluate(planted, few_digits(90), DIGITS, CPU).gates
    assert gates is not None
    assert gates.always_off == 0
    assert gates.always_on >= 11
    assert gates.near_threshold >= 6 / 20


@pytest.mark.parametrize("form", list(GateForm))
def test_forms_of_gates_take_part(form: GateForm, planted: GaterNet) -> None:
    images = few_digits(90)
    pixels = scaled(images)
    with torch.no_grad():
        x = planted.gate_logits(pixels)
        if form == GateForm.NOISY:
            x = x + normal(sample_keys(0, Purpose.NETWORK, 0, torch.arange(90)), 20)
        gates = torch.where(x >= 0, 1.0, 0.0)
        if form == GateForm.SOFT:
            gates = (1.2 / (1 + torch.exp(-x)) - 0.1).clamp(0, 1)
        logits = planted(pixels, gates=gates).logits
    found = evaluate(planted, images, DIGITS, CPU, form, batch_size=40)
    assert found.loss == pytest.approx(F.cross_entropy(logits, images.labels).item(), rel=1e-4)
    assert found.gates is not None
    assert found.gates.mean_open == pytest.approx((gates > 0).sum().item() / 90)
    assert found.gates.always_on == int((gates > 0).all(dim=0).sum())


@pytest.mark.parametrize("granularity", ["filters", "branches"])
def test_local_gates_are_evaluated_in_one_pass(granularity: Granularity) -> None:
    torch.manual_seed(0)
    images, model = few_digits(90), LocalGaterNet(tiny_backbone(), granularity=granularity).eval()
    with torch.no_grad():
        logits, gates = model(scaled(images))
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    found = evaluate(model, images, DIGITS, CPU, batch_size=40)
    assert passes == [40, 40, 10]
    assert found.loss == pytest.approx(F.cross_entropy(logits, images.labels).item(), rel=1e-4)
    assert found.gates is not None
    assert found.gates.mean_open == pytest.approx(gates.sum().item() / 90, rel=1e-4)


def test_form_is_the_binarizers_own_unless_another_is_asked_for(planted: GaterNet) -> None:
    images = few_digits(90)
    hard = evaluate(planted, images, DIGITS, CPU, GateForm.HARD)
    soft = evaluate(planted, images, DIGITS, CPU, GateForm.SOFT)
    assert evaluate(planted, images, DIGITS, CPU) == hard != soft
    planted.binarizer = SoftGates()
    assert evaluate(planted, images, DIGITS, CPU) == soft
    assert evaluate(planted, images, DIGITS, CPU, GateForm.HARD) == hard


@pytest.mark.parametrize("kind", ["gater", "layers"])
def test_random_gates_are_the_same_whenever_they_are_evaluated(kind: str) -> None:
    torch.manual_seed(0)
    images = few_digits(90)
    model: GatedModel = tiny_gated() if kind == "gater" else LocalGaterNet(tiny_backbone())
    model.binarizer = RandomGates(0.4)
    found = evaluate(model, images, DIGITS, CPU, batch_size=40)
    assert evaluate(model, images, DIGITS, CPU, batch_size=25).gates == found.gates
    assert found.gates is not None
    assert found.gates.mean_open == pytest.approx(8, abs=0.8)
    record = collect(model, scaled(images).split(16))
    assert record.gates().sum() == pytest.approx(found.gates.mean_open * 90)
