"""How large a page and a record become, and how much memory statistics take."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gaternet.analysis import (
    class_agreement,
    count_kinds,
    distinct_vectors,
    layer_table,
    mutual_information,
    record,
    special_gates,
)
from gaternet.analysis.page import Page, write_page
from generated_gates import random_gates, record_of

GATES = 800


def page_bytes(images: int, path: Path) -> int:
    """Return the size of a page of black images with gates that cannot be compressed."""
    generator = np.random.default_rng(0)
    labels = np.arange(images) % 10
    page = Page(
        title="many",
        classes=tuple("0123456789"),
        slices={"layer": slice(0, GATES)},
        bits=generator.integers(0, 256, (images, GATES // 8), dtype=np.uint8),
        images=np.zeros((images, 8, 8, 3), dtype=np.uint8),
        predictions=labels,
        labels=labels,
        embedding=generator.random((images, 2)),
        macs=generator.random(images),
    )
    write_page(page, path)
    return path.stat().st_size


def test_a_page_takes_a_bit_for_each_gate_of_an_image(tmp_path: Path) -> None:
    small, large = (page_bytes(count, tmp_path / "page.html") for count in (1000, 3000))
    an_image = (large - small) / 2000
    # Besides: two places and a cost in float32, order, class and prediction, in base64.
    assert GATES / 8 * 4 / 3 < an_image < (GATES / 8 + 12 + 8) * 4 / 3 + 8
    assert small - 1000 * an_image < 6e6  # plotly and programs


def test_statistics_never_unpack_all_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    images, gates = 4000, 8000
    monkeypatch.setattr(record, "UNPACKED", 2**20)
    found = record_of(random_gates(images, gates), np.arange(images) % 10, widths=(500,) * 16)
    assert found.gates.bits.nbytes == images * gates / 8
    tracemalloc.start()
    for compute in (mutual_information, class_agreement, special_gates):
        compute(found)
    count_kinds(found.gates)
    layer_table(found.gates)
    distinct_vectors(found.gates.bits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images * gates / 3
