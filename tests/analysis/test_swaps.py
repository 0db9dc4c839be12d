"""The model under other images' gates, against one image at a time, and with known answers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaternet.analysis import SplitRecord, observe, swap_gates, swaps
from gaternet.analysis.swaps import MAJORITY, MEAN, OTHER_CLASS, OWN, SAME_CLASS, choose_donors
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Batch
from gaternet.data.settings import DIGITS
from gaternet.model import GaterNet
from generated_gates import record_of
from small_runs import few_digits, tiny_gated

CLASSES = tuple("0123456789")


def digit_batches(size: int = 32, count: int = 120) -> list[Batch]:
    images = few_digits(count)
    pixels = normalise(images.images, DIGITS.mean, DIGITS.std)
    parts = (torch.arange(count), pixels, images.labels)
    return [Batch(*part) for part in zip(*(p.split(size) for p in parts), strict=True)]


@pytest.fixture
def model() -> GaterNet:
    """A network that takes images for other classes under other gates."""
    torch.manual_seed(0)
    model = tiny_gated().eval()
    with torch.no_grad():
        model.gater.get_parameter("head.fc2.weight").mul_(30)
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.mul_(8)
    return model


def test_donors_are_of_the_right_class_and_never_the_image_itself() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 300)
    donors = choose_donors(labels)
    rows = np.arange(300)
    assert (labels[donors.same_class] == labels).all()
    assert (donors.same_class != rows).all()
    assert (labels[donors.other_class] != labels).all()
    # Over many images each class gives its share.
    given = np.bincount(labels[donors.other_class], minlength=5)
    assert given.min() > 35
    assert len(set(donors.same_class.tolist())) > 150


def test_who_has_no_donor_is_reported() -> None:
    donors = choose_donors(np.array([0, 0, 3]))
    assert donors.same_class.tolist() == [1, 0, -1]
    assert donors.other_class[:2].tolist() == [2, 2]
    assert donors.other_class[2] in (0, 1)
    alone = choose_donors(np.zeros(4, dtype=np.int64))
    assert (alone.other_class == -1).all()
    assert sorted({*alone.same_class.tolist()} | {0, 1, 2, 3}) == [0, 1, 2, 3]


@torch.no_grad()
def slow_classes(model: GaterNet, gates: Tensor) -> np.ndarray:
    found = []
    for row, batch in enumerate(digit_batches(1)):
        found.append(int(model(batch.images, gates=gates[row : row + 1]).logits.argmax()))
    return np.array(found)


def test_swaps_are_a_loop_over_images(model: GaterNet) -> None:
    record = observe(model, digit_batches(), CLASSES)
    found = {swap.gates: swap for swap in swap_gates(model, digit_batches()[::-1], record)}
    gates = torch.from_numpy(record.gates.gates()).float()
    donors = choose_donors(record.labels)
    rates = gates.mean(dim=0)
    expected = {
        OWN: gates,
        SAME_CLASS: gates[donors.same_class],
        OTHER_CLASS: gates[donors.other_class],
        MAJORITY: (rates >= 0.5).float().expand(120, -1),
        MEAN: rates.expand(120, -1),
    }
    assert list(found) == list(expected)
    classes = {name: slow_classes(model, given) for name, given in expected.items()}
    accuracies = {name: (given == record.labels).mean() for name, given in classes.items()}
    assert len(set(accuracies.values())) > 2
    for name, accuracy in accuracies.items():
        assert found[name].images == 120
        assert found[name].accuracy == pytest.approx(accuracy)
        assert found[name].change == pytest.approx(accuracy - accuracies[OWN])
    followed = (classes[OTHER_CLASS] == record.labels[donors.other_class]).mean()
    assert 0 < followed < 1 - accuracies[OTHER_CLASS]
    assert found[OTHER_CLASS].followed == pytest.approx(followed)
    assert found[OWN].accuracy == record.right.mean()
    assert found[OWN].interval == 0


class _ByGates(nn.Module):
    """A backbone's stand-in whose class is the number of the open gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, gates: Tensor) -> "_ByGates":
        self.logits = gates.expand(len(images), -1)
        return self


def by_gates(labels: np.ndarray, classes: int, predictions: np.ndarray) -> SplitRecord:
    return record_of(np.eye(classes)[predictions], labels, predictions)


def test_gates_that_decide_the_class_are_seen_to() -> None:
    labels = np.arange(400) % 4
    record = by_gates(labels, 4, labels)
    batch = Batch(torch.arange(400), torch.zeros(400, 1), torch.from_numpy(labels))
    found = {s.gates: s for s in swap_gates(_ByGates(), [batch], record)}  # type: ignore[arg-type]
    assert found[SAME_CLASS].accuracy == 1
    assert found[SAME_CLASS].change == 0
    assert found[OTHER_CLASS].accuracy == 0
    assert found[OTHER_CLASS].change == -1
    assert [swap.followed for swap in found.values()] == [1, 1, 1, None, None]
    assert found[MEAN].accuracy == 0.25
    # Of a change for three quarters of the images: 1.96·√(p(1 − p) / n).
    assert found[MEAN].interval == pytest.approx(1.96 * (0.75 * 0.25 / 400) ** 0.5)


def test_of_many_images_some_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "SWAPPED", 50)
    labels = np.arange(400) % 4
    record = by_gates(labels, 4, labels)
    index = torch.arange(400)
    batches = [Batch(part, torch.zeros(len(part), 1), part % 4) for part in index.split(3)]
    found = swap_gates(_ByGates(), batches, record)  # type: ignore[arg-type]
    assert [swap.images for swap in found] == [50] * 5


def test_one_class_has_no_other(model: GaterNet) -> None:
    batches = [Batch(b.indices, b.images, torch.zeros_like(b.labels)) for b in digit_batches()]
    record = observe(model, batches, CLASSES)
    assert OTHER_CLASS not in {swap.gates for swap in swap_gates(model, batches, record)}


def test_other_images_than_the_record_s_are_refused(model: GaterNet) -> None:
    record = observe(model, digit_batches(), CLASSES)
    batch = digit_batches()[0]
    with pytest.raises(ValueError, match="other labels"):
        swap_gates(model, [batch._replace(labels=batch.labels + 1)], record)
    with pytest.raises(ValueError, match="lacks some"):
        swap_gates(model, [batch._replace(indices=batch.indices + 500)], record)


def test_a_gate_open_for_half_of_the_images_is_not_open_for_most() -> None:
    """As a network compressed to one mask has it."""
    labels = np.arange(4) % 2
    record = by_gates(labels, 2, labels)  # each gate is open for two images of four
    asked: list[Tensor] = []

    class Remembering(_ByGates):
        def forward(self, images: Tensor, gates: Tensor) -> _ByGates:
            asked.append(gates)
            return super().forward(images, gates)

    batch = Batch(torch.arange(4), torch.zeros(4, 1), torch.from_numpy(labels))
    swap_gates(Remembering(), [batch], record)  # type: ignore[arg-type]
    assert any(not gates.any() for gates in asked)
