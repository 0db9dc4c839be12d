"""Classifiers that see nothing but gates: sorted neighbours in a loop, and known answers."""

import numpy as np
import pytest

from gaternet.analysis import probe, probes
from gaternet.analysis.probes import linear, nearest_neighbours, why_no_probes
from gaternet.analysis.sampling import shuffled
from generated_gates import gates_of, random_gates, record_of


def slow_neighbours(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> list[int]:
    found = []
    for query in asked.tolist():
        far = [sum(a != b for a, b in zip(query, row, strict=True)) for row in known.tolist()]
        nearest = sorted(range(len(known)), key=lambda row: (far[row], row))[:10]
        votes = [labels[row] for row in nearest]
        found.append(min(set(votes), key=lambda label: (-votes.count(label), label)))
    return found


def test_neighbours_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_QUERIES", 7)
    generator = np.random.default_rng(0)
    known, asked = generator.random((60, 9)) < 0.5, generator.random((40, 9)) < 0.5
    labels = generator.integers(0, 4, 60)
    found = nearest_neighbours(gates_of(known), labels, gates_of(asked))
    assert found.tolist() == slow_neighbours(known, labels, asked)
    few = nearest_neighbours(gates_of(known[:3]), labels[:3], gates_of(asked))
    assert few.tolist() == slow_neighbours(known[:3], labels[:3], asked)


def test_gates_that_copy_the_class_tell_it() -> None:
    labels = np.arange(200) % 5
    noise = random_gates(200, 6, seed=1)
    copies = labels[:, None] == np.arange(5)
    wrong = np.where(np.arange(200) < 50, (labels + 1) % 5, labels)
    found = probe(record_of(np.concatenate([copies, noise], axis=1), labels, wrong))
    assert found.images == 200
    assert (found.linear, found.model) == (1, 0.75)
    assert found.neighbours > 0.9
    assert found.chance < 0.25


def test_model_is_judged_where_neighbours_tell_the_class_and_where_not() -> None:
    labels = np.arange(400) % 4
    said = np.where(np.arange(400) % 10 < 3, (labels + 1) % 4, labels)  # by the gates: 70 % right
    gates = np.repeat(said[:, None] == np.arange(4), 3, axis=1)
    # The model follows its gates, but for some of either kind.
    follows = np.arange(400) % 7 > 0
    found = probe(record_of(gates, labels, np.where(follows, said, (labels + 2) % 4)))
    assert found.neighbours == pytest.approx(0.7)
    right = said == labels
    assert found.model_where_told == pytest.approx(follows[right].mean())
    assert found.model_where_untold == 0
    always = probe(record_of(labels[:, None] == np.arange(4), labels))
    assert always.neighbours == 1
    assert always.model_by_neighbours == [("right", 1.0)]


def test_gates_that_know_nothing_tell_nothing() -> None:
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(2000) % 4)
    found = probe(record_of(generator.random((2000, 30)) < 0.5, labels))
    for accuracy in (found.neighbours, found.linear, found.chance):
        assert accuracy == pytest.approx(0.25, abs=0.05)


def test_what_is_not_linear_only_neighbours_find() -> None:
    gates = np.random.default_rng(0).random((600, 2)) < 0.5
    labels = gates[:, 0] ^ gates[:, 1]
    found = probe(record_of(gates, labels))
    assert found.neighbours == 1
    assert found.linear < 0.85


def test_an_image_is_never_classified_by_itself() -> None:
    # Each image's gates are its own, far from all others': only a probe that saw it could tell.
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(400) % 2)
    found = probe(record_of(np.eye(400), labels))
    assert found.linear == pytest.approx(0.5, abs=0.1)
    assert found.neighbours == pytest.approx(0.5, abs=0.1)


def test_chance_is_the_commonest_class_of_the_other_half() -> None:
    labels = (np.arange(100) < 20).astype(np.int64)
    record = record_of(random_gates(100, 8), labels)
    halves = np.split(labels[shuffled(100)], 2)
    expected = sum(int((half == 0).sum()) for half in halves) / 100
    assert probe(record).chance == expected == 0.8


def test_linear_probe_learns_classes_by_number() -> None:
    labels = np.array([2, 7] * 30)
    gates = gates_of(np.stack([labels == 2, random_gates(60, 3)[:, 1]], axis=1))
    assert linear(gates, labels, gates).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("rows", "labels", "reason"),
    [
        (np.ones((20, 4)), np.arange(20) % 2, "no gate depends on the input"),
        (random_gates(20, 4), np.zeros(20), "fewer than two classes"),
        (np.eye(20)[:, :1], np.arange(20) % 2, "in a half of the images"),
    ],
)
def test_what_cannot_be_probed_is_reported(
    rows: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    record = record_of(rows, labels)
    assert reason in str(why_no_probes(record))
    with pytest.raises(ValueError, match=reason):
        probe(record)
