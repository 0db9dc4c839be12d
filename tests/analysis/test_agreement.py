"""Two splits' gates beside each other, and costs by outcome, against loops and scipy."""

import numpy as np
import pytest
from scipy import stats

from gaternet.accounting import count_macs
from gaternet.analysis import compare_costs, compare_kinds, compare_rates, needed_macs, report_macs
from generated_gates import gates_of, random_gates, record_of
from small_runs import tiny_gated


def test_rates_are_compared_gate_by_gate() -> None:
    first, second = random_gates(200, 12), random_gates(120, 12, seed=5)
    second[:, 4], second[0, 0] = 1, 1
    found = compare_rates(gates_of(first), gates_of(second))
    rates, others = (rows.mean(axis=0) for rows in (first, second))
    assert found.images == 120
    assert found.mean_difference == pytest.approx(np.mean(np.abs(rates - others)))
    assert found.largest_difference == pytest.approx(np.abs(rates - others).max())
    assert found.correlation == pytest.approx(stats.pearsonr(rates, others)[0])
    kinds = [
        [{0: "off", 1: "on"}.get(rate, "varies") for rate in part.tolist()]
        for part in (rates, others)
    ]
    assert found.same_kind == sum(a == b for a, b in zip(*kinds, strict=True)) == 10
    table = compare_kinds(gates_of(first), gates_of(second))
    assert table.loc["always off", "input-dependent"] == 1
    assert table.loc["input-dependent", "always on"] == 1
    assert int(table.to_numpy().sum()) == 12


def test_samples_of_the_same_gates_differ_as_by_chance() -> None:
    generator = np.random.default_rng(0)
    rates = generator.random(2000)
    rows = [generator.random((count, 2000)) < rates for count in (400, 250)]
    found = compare_rates(*(gates_of(part) for part in rows))
    assert found.mean_difference == pytest.approx(found.by_chance, rel=0.05)
    other = compare_rates(gates_of(rows[0]), gates_of(rows[1][:, ::-1]))
    assert other.mean_difference > 5 * other.by_chance


def test_constant_gates_agree_without_a_correlation() -> None:
    found = compare_rates(gates_of(np.ones((5, 3))), gates_of(np.ones((4, 3))))
    assert (found.same_kind, found.mean_difference, found.correlation) == (3, 0, None)


def test_records_of_other_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="of other gates"):
        compare_rates(gates_of(np.ones((5, 3))), gates_of(np.ones((5, 3)), (1, 2)))


def test_costs_are_counted_image_by_image() -> None:
    model = tiny_gated().eval()
    counter = count_macs(model, (1, 8, 8))
    rows = random_gates(300, 20)
    gates = gates_of(rows)
    gates = type(gates)(gates.bits, model.slices)
    found = needed_macs(counter, gates)
    assert found.shape == (300,)
    assert report_macs(counter, gates).mean == pytest.approx(found.mean())
    for image in (0, 150, 299):
        alone = report_macs(counter, gates.take(np.array([image])))
        assert found[image] == alone.mean
    with pytest.raises(ValueError, match="has 3 gates"):
        needed_macs(counter, gates_of(np.ones((2, 3))))


def test_costs_of_wrong_images_beside_right_ones() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros(500, dtype=np.int64)
    predictions = (generator.random(500) < 0.3).astype(np.int64)
    macs = 100 + 10 * generator.standard_normal(500) + 5 * predictions
    found = compare_costs(record_of(np.ones((500, 1)), labels, predictions, classes=2), macs)
    wrong, right = macs[predictions == 1], macs[predictions == 0]
    assert (found.right, found.wrong) == (right.mean(), wrong.mean())
    assert found.difference == pytest.approx(wrong.mean() - right.mean())
    test = stats.ttest_ind(wrong, right, equal_var=False)
    assert found.difference is not None
    assert found.interval == pytest.approx(1.96 * found.difference / test.statistic)


def test_a_model_without_mistakes_has_no_costs_of_wrong_images() -> None:
    found = compare_costs(record_of(np.ones((9, 1)), np.zeros(9)), np.arange(9.0))
    assert set(vars(found).values()) == {None}
