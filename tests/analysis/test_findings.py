"""What is found out of a record with known answers."""

import numpy as np

from gaternet.analysis.findings import rate_histogram
from generated_gates import gates_of


def test_rates_at_the_edge_of_a_bin_are_in_the_one_above() -> None:
    for images in (20, 100, 12, 30):
        gates = np.arange(images)[:, None] < np.arange(images + 1)
        counts = [20 * n // images for n in range(1, images)]
        assert rate_histogram(gates_of(gates)) == tuple(np.bincount(counts, minlength=20))
