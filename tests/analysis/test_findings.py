"""What is found out of a record with known answers, and what is said not to be."""

import numpy as np
import pytest

from gaternet.analysis.findings import rate_histogram
from gaternet.analysis.macs import CostByOutcome
from gaternet.analysis.missing import what_is_missing
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import summarise_open_gates
from generated_gates import gates_of, random_gates, record_of

COSTS = CostByOutcome(1.0, 2.0, 1.0, 0.1)
LABELS = np.arange(60) % 2


def test_rates_at_the_edge_of_a_bin_are_in_the_one_above() -> None:
    for images in (20, 100, 12, 30):
        gates = np.arange(images)[:, None] < np.arange(images + 1)
        counts = [20 * n // images for n in range(1, images)]
        assert rate_histogram(gates_of(gates)) == tuple(np.bincount(counts, minlength=20))


def missing(record: SplitRecord, costs: CostByOutcome = COSTS) -> dict[str, str]:
    return dict(what_is_missing(record, summarise_open_gates(record.gates), costs))


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (200, []),
        (201, ["class-agreement"]),
        (1000, ["class-agreement"]),
        (1001, ["class-agreement", "similarity on the page"]),
        (2001, ["similar", "class-agreement", "similarity on the page"]),
    ],
)
def test_of_many_classes_it_is_said_what_is_left_out(classes: int, names: list[str]) -> None:
    found = missing(record_of(random_gates(60, 9), LABELS, classes=classes))
    assert list(found) == names
    assert all(reason.startswith(f"{classes:,} classes: more than") for reason in found.values())


def test_of_one_class_there_is_nothing_to_compare() -> None:
    found = missing(record_of(random_gates(60, 9), 0 * LABELS, classes=10))
    assert list(found) == ["probes", "special", "similar", "class-agreement", "swaps"]
    assert found["similar"] == "the images are of one class"


def test_of_images_each_of_its_own_class_none_has_another_s_gates() -> None:
    found = missing(record_of(random_gates(6, 9), np.arange(6)))
    assert found["swaps"] == "no gates of the same class: no class has two images"


def test_of_images_all_alike_nothing_is_said() -> None:
    nothing = CostByOutcome(None, None, None, None)
    found = missing(record_of(np.ones((60, 3)), LABELS), nothing)
    assert list(found) == [
        *("probes", "similar", "class-agreement", "open_gates.distance", "costs.by_outcome")
    ]
