"""Kinds, rates, open gates and entropies against slow loops and scipy."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from gaternet.analysis import (
    GateRecord,
    count_kinds,
    distinct_vectors,
    gate_table,
    layer_table,
    opening_rates,
    record,
    summarise_open_gates,
)
from gaternet.analysis.statistics import binary_entropy, normal_distance
from generated_gates import gates_of, random_gates

WIDTHS = (3, 9, 1, 17)
GATES = random_gates(300, 30)


@pytest.fixture
def gates() -> GateRecord:
    return gates_of(GATES, WIDTHS)


def slow_entropy(values: list) -> float:
    return -sum(n / len(values) * math.log2(n / len(values)) for n in Counter(values).values())


def test_a_layer_is_unpacked_alone(gates: GateRecord) -> None:
    for name, columns in gates.slices.items():
        assert np.array_equal(gates.layer(name), GATES[:, columns])
    assert np.array_equal(gates.take(np.array([7, 2, 2])).gates(), GATES[[7, 2, 2]])


def test_rows_are_counted_in_parts(gates: GateRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "UNPACKED", 30 * 7)
    parts = list(gates.parts())
    assert [len(part) for part in parts[:-1]] == [7] * (len(parts) - 1)
    assert np.array_equal(np.concatenate(parts), GATES)
    assert gates.open_counts().tolist() == [sum(column) for column in GATES.T.astype(int).tolist()]
    assert gates.open_per_image().tolist() == [sum(row) for row in GATES.astype(int).tolist()]
    gates.open_counts()[:] = 0  # a caller's own
    assert gates.open_counts().any()


def test_kinds_are_counted_gate_by_gate(gates: GateRecord) -> None:
    found = count_kinds(gates)
    on = off = often = 0
    for column in GATES.T:
        on += all(column)
        off += not any(column)
        often += 3 <= sum(column.tolist()) <= 297
    assert (found.total, found.always_on, found.always_off) == (30, on, off)
    assert found.input_dependent == 30 - on - off
    assert found.often == often
    assert opening_rates(gates).tolist() == [sum(c) / 300 for c in GATES.T.astype(int).tolist()]
    assert gates.dependent().tolist() == [g for g in range(30) if 0 < GATES[:, g].mean() < 1]


def test_a_gate_open_for_one_of_a_hundred_switches_often() -> None:
    rows = np.zeros((200, 3))
    rows[:2, 0], rows[:1, 1], rows[:198, 2] = 1, 1, 1
    assert count_kinds(gates_of(rows)).often == 2


def test_table_of_gates_is_a_loop_over_gates(gates: GateRecord) -> None:
    table = gate_table(gates)
    places = [(f"layer{k}", n) for k, width in enumerate(WIDTHS) for n in range(width)]
    assert list(zip(table["layer"], table["number"], strict=True)) == places
    for column, row in zip(GATES.T.tolist(), table.to_dict("records"), strict=True):
        kind = {0: "always off", 300: "always on"}.get(sum(column), "input-dependent")
        assert (row["opened"], row["kind"]) == (sum(column), kind)
        assert row["entropy"] == pytest.approx(slow_entropy(column), abs=1e-12)


def test_table_of_layers_is_a_loop_over_layers(gates: GateRecord) -> None:
    for (name, columns), row in zip(
        gates.slices.items(), layer_table(gates).to_dict("records"), strict=True
    ):
        part = GATES[:, columns]
        vectors = [tuple(image) for image in part.tolist()]
        use = [tuple(sorted(set(column))) for column in part.T.tolist()]
        assert row["layer"] == name
        assert row["gates"] == part.shape[1]
        assert (row["always_on"], row["always_off"]) == (use.count((1,)), use.count((0,)))
        assert row["input_dependent"] == use.count((0, 1))
        assert row["open"] == pytest.approx(np.mean([sum(vector) for vector in vectors]))
        entropies = [slow_entropy(column) for column in part.T.tolist()]
        assert row["entropy"] == pytest.approx(np.mean(entropies))
        assert row["distinct"] == len(set(vectors))
        assert row["vector_entropy"] == pytest.approx(slow_entropy(vectors), abs=1e-12)


def test_distinct_vectors_are_counted() -> None:
    packed = np.array([[1, 2], [1, 2], [2, 1], [1, 2], [0, 0]], dtype=np.uint8)
    assert distinct_vectors(packed).tolist() == [3, 1, 1]


def test_entropy_is_that_of_scipy() -> None:
    shares = np.array([0, 0.01, 0.3, 0.5, 1])
    expected = [stats.entropy([p, 1 - p], base=2) for p in shares]
    assert binary_entropy(shares) == pytest.approx(expected, abs=1e-15)
    assert binary_entropy(shares)[[0, 4]].tolist() == [0, 0]


def test_open_gates_are_summarised(gates: GateRecord) -> None:
    opened = GATES.sum(axis=1).astype(int).tolist()
    found = summarise_open_gates(gates)
    assert (found.least, found.most) == (min(opened), max(opened))
    assert found.mean == pytest.approx(sum(opened) / 300)
    assert found.deviation == pytest.approx(
        math.sqrt(sum((x - found.mean) ** 2 for x in opened) / 300)
    )
    assert found.distance == pytest.approx(slow_distance(np.array(opened)))


def slow_distance(values: np.ndarray) -> float:
    normal = stats.norm(values.mean(), values.std())
    return max(
        abs(float((values <= k).mean()) - float(normal.cdf(k + 0.5)))
        for k in range(values.min() - 5, values.max() + 6)
    )


@pytest.mark.parametrize("values", [[1, 1, 1, 9], [0, 1], [3, 4, 4, 5], [0] * 9 + [50]])
def test_distance_from_the_normal_distribution(values: list[int]) -> None:
    assert normal_distance(np.array(values)) == pytest.approx(slow_distance(np.array(values)))


def test_what_is_normal_is_near_and_what_is_not_is_far() -> None:
    generator = np.random.default_rng(0)
    normal = np.rint(generator.normal(5453, 20, 10_000)).astype(np.int64)
    two = np.where(generator.random(10_000) < 0.5, 5400, 5500) + generator.integers(0, 9, 10_000)
    near, far = normal_distance(normal), normal_distance(two)
    assert near is not None
    assert far is not None
    assert near < 0.02 < 0.2 < far


def test_images_with_as_many_open_gates_have_no_distance() -> None:
    found = summarise_open_gates(gates_of([[1, 0], [0, 1]]))
    assert (found.deviation, found.distance) == (0, None)
