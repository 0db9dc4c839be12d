"""An analysis as a page: every number and picture stands by its own image."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gaternet import saved_models
from gaternet.accounting import count_macs
from gaternet.analysis.derived import derive
from gaternet.analysis.embedding import Embedding
from gaternet.analysis.findings import Measured, Subject, find
from gaternet.analysis.page import Page, report
from gaternet.analysis.split_record import labelled_batches, observe
from gaternet.data.batches import Loading, evaluation_batches
from gaternet.data.digits import load_digits
from gaternet.data.image_set import make_image_set
from gaternet.data.settings import DIGITS
from gaternet.model import GaterNet
from small_runs import few_digits
from terminal import Terminal


def analyzed(run: Path, embedding: Embedding | None) -> Page:
    """Return the page of 40 digits."""
    model, images = saved_models.load(run), few_digits(40, "test")
    assert isinstance(model, GaterNet)
    loading = Loading(torch.device("cpu"))
    record = observe(model, labelled_batches(images, DIGITS, loading, 16), images.classes)
    counter = count_macs(model, DIGITS.input_size)
    measured = Measured((), embedding, None, None, {})
    derived = derive(record, counter)
    found = find(Subject("run", "recipe", "digits", "test"), record, derived, counter, measured)
    seen = evaluation_batches(images, DIGITS, 16, loading)
    return report.report_page(found, record, derived, measured, seen)


def test_all_images_in_their_order(gated_run: Path) -> None:
    page, digits = analyzed(gated_run, None), few_digits(40, "test")
    assert page.names is page.numbers is page.drawn_from is None
    assert page.labels is not None
    assert page.labels.tolist() == digits.labels.tolist()
    assert np.array_equal(page.images[..., 1], digits.images[:, 0].numpy())
    model = saved_models.load(gated_run)
    assert isinstance(model, GaterNet)
    logits, gates = model((digits.images / 255 - DIGITS.mean[0]) / DIGITS.std[0])
    assert page.predictions.tolist() == logits.argmax(dim=1).tolist()
    assert np.array_equal(np.unpackbits(page.bits, axis=1, count=page.gate_count), gates.int())


def test_some_images_in_the_plane(gated_run: Path) -> None:
    rows = np.array([31, 4, 17, 0])
    points = np.arange(8, dtype=np.float32).reshape(4, 2)
    page, digits = analyzed(gated_run, Embedding(points, rows, 2, 1.0)), few_digits(40, "test")
    whole = analyzed(gated_run, None)
    assert page.embedding is not None
    assert page.numbers is not None
    assert page.numbers.tolist() == [0, 4, 17, 31]
    assert page.drawn_from == 40
    for at, row in enumerate(sorted(rows)):
        assert page.embedding[at].tolist() == points[list(rows).index(row)].tolist()
        assert np.array_equal(page.images[at, ..., 0], digits.images[row, 0].numpy())
        assert np.array_equal(page.bits[at], whole.bits[row])
        assert page.macs is not None
        assert whole.macs is not None
        assert page.macs[at] == whole.macs[row]


def test_many_images_are_drawn_from(gated_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = analyzed(gated_run, None)
    monkeypatch.setattr(report, "MOST_IMAGES", 7)
    page = analyzed(gated_run, None)
    assert len(page.bits) == len(page.images) == 7
    assert page.numbers is not None
    places = page.numbers.tolist()
    assert places == sorted(set(places))
    expected = few_digits(40, "test").images[places, 0].numpy()
    assert np.array_equal(page.images[..., 2], expected)
    # Which gates depend on the input is what all images say.
    gates = np.unpackbits(whole.bits, axis=1, count=whole.gate_count)
    assert page.shown_gates().tolist() == np.flatnonzero(np.ptp(gates, axis=0)).tolist()


def test_large_pictures_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    large = few_digits(4).images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    images = make_image_set(large, few_digits(4).labels, few_digits(4).classes, "large")
    monkeypatch.setattr("gaternet.analysis.page.sprite.LARGEST_TILE", 8)
    loading = Loading(torch.device("cpu"))
    seen = evaluation_batches(images, replace(DIGITS, image_size=24), 2, loading)
    pictures = report._pictures(seen, np.arange(4))
    assert np.array_equal(pictures[..., 0], few_digits(4).images[:, 0].numpy())


def test_the_command_writes_it(terminal: Terminal, gated_run: Path, tmp_path: Path) -> None:
    words = ("analyze", gated_run, "--data", "digits", "--no-tsne", "--device", "cpu")
    terminal.succeed(*words, "--out", tmp_path)
    text = (tmp_path / "test" / "report.html").read_text()
    assert re.search(r"<title>digits/resnet8-gated on digits, test images</title>", text)
    assert f'"images": {len(load_digits("test"))}' in text
