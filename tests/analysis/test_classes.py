"""What gates tell of classes, against loops over images and pairs, sklearn, and known answers."""

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from gaternet.analysis import (
    SplitRecord,
    chance_information,
    class_agreement,
    class_layer_rates,
    class_rates,
    classes,
    informative_gates,
    mutual_information,
    similar_classes,
    special_gates,
)
from generated_gates import random_gates, record_of

IMAGES, GATES, CLASSES = 90, 14, 4
WIDTHS = (5, 9)


@pytest.fixture
def record() -> SplitRecord:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, CLASSES, IMAGES)
    gates = random_gates(IMAGES, GATES)
    gates[:, 3] = labels == 2
    gates[:, 7] = (labels < 2) ^ (generator.random(IMAGES) < 0.1)
    # The last class has a name and no image.
    return record_of(gates, labels, widths=WIDTHS, classes=CLASSES + 1)


def test_information_is_that_of_sklearn(
    record: SplitRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "COLUMNS", 5)
    expected = [
        mutual_info_score(record.labels, column) / math.log(2) for column in record.gates.gates().T
    ]
    assert mutual_information(record) == pytest.approx(expected, abs=1e-12)


def test_known_information() -> None:
    labels = np.repeat(np.arange(8), 4)
    bits = [(labels >> bit) & 1 for bit in range(3)]
    parity = np.arange(32) % 2
    record = record_of(np.stack([*bits, np.ones(32), np.zeros(32), parity], 1), labels)
    assert mutual_information(record) == pytest.approx([1, 1, 1, 0, 0, 0], abs=1e-12)
    # With two classes a gate that copies the class tells log₂ 2 = 1 bit: all there is.
    two = record_of((labels < 4)[:, None], labels < 4)
    assert mutual_information(two) == pytest.approx([1.0])
    # Of eight classes the gate of one alone tells H(1/8).
    alone = record_of((labels == 5)[:, None], labels)
    expected = -(1 / 8 * math.log2(1 / 8) + 7 / 8 * math.log2(7 / 8))
    assert mutual_information(alone) == pytest.approx([expected])


def test_independent_gates_show_as_much_information_as_chance_has() -> None:
    generator = np.random.default_rng(0)
    gates = generator.random((2000, 400)) < 0.5
    record = record_of(gates, generator.integers(0, 10, 2000))
    found = mutual_information(record).mean()
    assert found == pytest.approx(chance_information(record), rel=0.1)


def test_class_rates_are_a_loop_over_images(record: SplitRecord) -> None:
    gates, rates = record.gates.gates(), class_rates(record)
    assert rates.shape == (CLASSES + 1, GATES)
    for label in range(CLASSES):
        shown = [gates[row].tolist() for row in range(IMAGES) if record.labels[row] == label]
        assert record.class_sizes[label] == len(shown)
        for gate in range(GATES):
            assert record.class_counts[label, gate] == sum(image[gate] for image in shown)
            expected = sum(image[gate] for image in shown) / len(shown)
            assert rates[label, gate] == pytest.approx(expected)
    assert np.isnan(rates[CLASSES]).all()


def test_layers_are_opened_by_classes(record: SplitRecord) -> None:
    table, gates = class_layer_rates(record), record.gates.gates()
    assert list(table.index) == [f"class {label}" for label in range(CLASSES)]
    assert table.loc["class 1", "layer1"] == pytest.approx(gates[record.labels == 1, 5:].mean())
    assert not table.isna().to_numpy().any()


def test_special_gates_differ_most_from_the_other_classes(record: SplitRecord) -> None:
    table, gates = special_gates(record, 3), record.gates.gates().astype(float)
    assert table["class"].value_counts().to_dict() == {f"class {k}": 3 for k in range(CLASSES)}
    for label in range(CLASSES):
        mine = record.labels == label
        difference = gates[mine].mean(axis=0) - gates[~mine].mean(axis=0)
        found = table[table["class"] == f"class {label}"]
        assert np.abs(found["difference"]).tolist() == pytest.approx(
            sorted(np.abs(difference), reverse=True)[:3]
        )
        for row in found.to_dict("records"):
            gate = row["gate"]
            assert row["difference"] == pytest.approx(difference[gate])
            assert row["rate"] - row["elsewhere"] == pytest.approx(difference[gate])
            assert (row["layer"], row["number"]) == (
                ("layer0", gate) if gate < 5 else ("layer1", gate - 5)
            )
    best = table[table["class"] == "class 2"].iloc[0]
    assert (best["gate"], best["rate"], best["elsewhere"]) == (3, 1, 0)


def test_informative_gates_come_first(record: SplitRecord) -> None:
    table = informative_gates(record, 2)
    assert set(table["gate"]) == {3, 7}
    assert table["information"].tolist() == sorted(mutual_information(record), reverse=True)[:2]


def test_agreement_is_a_loop_over_pairs(
    record: SplitRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "COLUMNS", 4)
    gates = record.gates.gates()[:, record.gates.dependent()]
    assert gates.shape[1] < GATES
    found = class_agreement(record)
    for a in range(CLASSES):
        for b in range(CLASSES):
            alike = [
                float((gates[i] == gates[j]).mean())
                for i in np.flatnonzero(record.labels == a)
                for j in np.flatnonzero(record.labels == b)
                if i != j
            ]
            assert found[a, b] == pytest.approx(sum(alike) / len(alike))
    assert np.isnan(found[CLASSES]).all()
    table = similar_classes(record, 100)
    assert len(table) == CLASSES * (CLASSES - 1) // 2
    assert table["agreement"].tolist() == sorted(found[np.triu_indices(CLASSES, 1)])[::-1]
    first = table.iloc[0]
    pair = [int(str(first[name])[-1]) for name in ("class", "other")]
    assert found[pair[0], pair[1]] == first["agreement"]


def test_one_class_and_constant_gates() -> None:
    one = record_of(random_gates(20, 5), np.zeros(20))
    assert mutual_information(one) == pytest.approx(np.zeros(5))
    assert chance_information(one) == 0
    assert len(special_gates(one)) == 0
    assert len(similar_classes(one)) == 0
    constant = record_of(np.ones((20, 5)), np.arange(20) % 2)
    assert np.isnan(class_agreement(constant)).all()
    assert len(similar_classes(constant)) == 0
    assert (special_gates(constant)["difference"] == 0).all()
