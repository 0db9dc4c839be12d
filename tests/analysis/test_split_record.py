"""One pass over a split against the network on single images, and what is read back from disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gaternet.analysis import (
    SplitRecord,
    extreme_images,
    labelled_batches,
    observe,
    read_record,
    write_record,
)
from gaternet.analysis.saved import source_of
from gaternet.binarizers import GateForm
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Batch, Loading
from gaternet.data.settings import DIGITS
from gaternet.errors import UserError
from gaternet.local import LocalGaterNet
from gaternet.model import GatedModel, GaterNet
from gaternet.rivals import RandomGates
from gaternet.training.evaluation import evaluate
from small_runs import PLAIN, cpu_plan, few_digits, sign_again, tiny_backbone, tiny_gated

CLASSES = tuple("0123456789")


@pytest.fixture
def model() -> GaterNet:
    torch.manual_seed(0)
    return tiny_gated().eval()


def digits(count: int = 50) -> Tensor:
    return normalise(few_digits(count).images, DIGITS.mean, DIGITS.std)


def batches(size: int = 16, count: int = 50) -> list[Batch]:
    found = labelled_batches(few_digits(count), DIGITS, Loading(torch.device("cpu")), size)
    return list(found)


def same(first: SplitRecord, second: SplitRecord) -> bool:
    pairs = [
        (first.gates.bits, second.gates.bits),
        (first.index, second.index),
        (first.labels, second.labels),
        (first.predictions, second.predictions),
        *(
            (vars(first.extremes)[name], vars(second.extremes)[name])
            for name in vars(first.extremes)
        ),
    ]
    alike = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    return alike and (first.gates.slices, first.classes) == (second.gates.slices, second.classes)


def test_every_image_is_there_with_what_the_model_says(model: GaterNet) -> None:
    record = observe(model, batches(), CLASSES)
    with torch.no_grad():
        outputs = [model(image[None]) for image in digits()]
    assert len(record) == 50
    assert record.index.tolist() == list(range(50))
    assert np.array_equal(record.gates.gates(), torch.cat([o.gates for o in outputs]).numpy())
    assert record.predictions.tolist() == [int(o.logits.argmax()) for o in outputs]
    assert record.labels.tolist() == few_digits(50).labels.tolist()
    assert record.right.tolist() == (record.labels == record.predictions).tolist()
    assert record.gates.slices == model.slices
    assert record.classes == CLASSES


def test_accuracy_and_gates_are_those_of_the_evaluation(model: GaterNet) -> None:
    record = observe(model, batches(), CLASSES)
    measured = evaluate(model, few_digits(50), DIGITS, cpu_plan(PLAIN))
    assert 100 * (1 - record.right.mean()) == pytest.approx(measured.error_percent)
    assert measured.gates is not None
    assert record.gates.open_per_image().mean() == pytest.approx(measured.gates.mean_open)


def test_order_of_batches_does_not_matter(model: GaterNet) -> None:
    assert same(observe(model, batches(), CLASSES), observe(model, batches()[::-1], CLASSES))


@pytest.mark.parametrize("kind", ["random", "local"])
def test_other_gates_are_recorded_in_one_pass(kind: str) -> None:
    torch.manual_seed(0)
    model: GatedModel = tiny_gated() if kind == "random" else LocalGaterNet(tiny_backbone())
    if kind == "random":
        model.binarizer = RandomGates(0.4)
    record = observe(model.eval(), batches(), CLASSES)
    again = observe(model, batches(25), CLASSES)
    assert np.array_equal(record.gates.bits, again.gates.bits)
    if kind == "local":
        with torch.no_grad():
            assert np.array_equal(record.gates.gates(), model(digits()).gates.numpy())


def test_the_model_is_left_as_it_was(model: GaterNet) -> None:
    model.train()
    observe(model, batches(), CLASSES)
    assert model.training


def test_extremes_are_the_highest_and_lowest_logits(model: GaterNet) -> None:
    record = observe(model, batches(), CLASSES)
    with torch.no_grad():
        logits = model.decide(digits(), GateForm.HARD).logits.numpy()
    extremes = record.extremes
    assert extremes.opening.shape == extremes.closing.shape == (8, 20)
    for gate in range(20):
        order = np.argsort(logits[:, gate])
        for shown, places, values in (
            (order[::-1][:8], extremes.opening, extremes.opening_logits),
            (order[:8], extremes.closing, extremes.closing_logits),
        ):
            assert places[:, gate].tolist() == shown.tolist()
            assert values[:, gate] == pytest.approx(logits[shown, gate], abs=1e-5)
    table = extreme_images(record, 5)
    assert table["image"].tolist() == [*extremes.opening[:, 5], *extremes.closing[:, 5]]
    labels = few_digits(50).labels
    assert table["label"].tolist() == [str(int(labels[i])) for i in table["image"]]
    assert table["open"].tolist() == (table["logit"] >= 0).tolist()


def test_of_few_images_all_are_extreme(model: GaterNet) -> None:
    record = observe(model, batches(count=3), CLASSES)
    assert record.extremes.opening.shape == (3, 20)
    assert sorted(record.extremes.opening[:, 0]) == [0, 1, 2]


def test_rows_are_found_by_place(model: GaterNet) -> None:
    record = observe(model, batches()[1:], CLASSES)  # the first 16 images were left out
    assert record.rows(np.array([49, 16])).tolist() == [33, 0]
    for absent in (3, 50):
        with pytest.raises(ValueError, match="lacks some of these images"):
            record.rows(np.array([20, absent]))


def test_what_is_read_is_what_was_written(model: GaterNet, tmp_path: Path) -> None:
    record = observe(model, batches(), CLASSES)
    source = {"weights": "abc", "threshold": 0.0, "readers": None}
    write_record(record, tmp_path / "gates", source)
    assert same(read_record(tmp_path / "gates"), record)
    assert source_of(tmp_path / "gates") == source
    assert source_of(tmp_path) is None
    with pytest.raises(UserError, match="exists already"):
        write_record(record, tmp_path / "gates", source)


def test_altered_files_are_not_read(model: GaterNet, tmp_path: Path) -> None:
    path = tmp_path / "gates"
    write_record(observe(model, batches(), CLASSES), path, {})
    file = path / "gates.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="truncated or altered"):
        read_record(path)
    file.write_bytes(whole)
    about = json.loads((path / "gates.json").read_text())
    for change, message in (({"version": 99}, "another version"), ({"layers": 3}, "no record")):
        (path / "gates.json").write_text(json.dumps(about | change))
        sign_again(path)
        with pytest.raises(UserError, match=message):
            read_record(path)
    with pytest.raises(UserError, match="holds no model"):
        read_record(tmp_path)
