"""Which filters a run opens for a user's own images, beside what their class usually opens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaternet import checkpoint
from gaternet.analysis.classes import class_rates
from gaternet.analysis.page import Page, PageTable
from gaternet.analysis.saved import GATES, analysis_of, read_record, source_of, weights_of
from gaternet.commands import Prediction, Seen, see_images
from gaternet.errors import UsageError, UserError
from gaternet.model import GatedModel
from gaternet.training.run import open_run

LIKELIEST = 5
"""Classes that the page names for each image."""

SPLITS = ("test", "validation", "train")
"""Whose images a class's mean is taken of: the first that was analyzed."""


@dataclass(frozen=True)
class LayerView:
    """What one image opens in one layer.

    gates: 0 or 1 for each, in order
    distance: from the mean of the predicted class, Σ |gate − rate|; None where it is not known
    usual: the mean of that over the images of the class, Σ 2·rate·(1 − rate)
    """

    name: str
    gates: tuple[int, ...]
    distance: float | None
    usual: float | None


@dataclass(frozen=True)
class ImageView:
    """What a run says of one image, and its gates layer by layer."""

    prediction: Prediction
    layers: tuple[LayerView, ...]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Images and the page that shows them.

    compared: the images that the means of classes are of, in words; None where none were analyzed
    """

    images: tuple[ImageView, ...]
    compared: str | None
    page: Page


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """How often each class opens each gate, (C, G), and over which images.

    A row of NaN: none of them is of that class.
    """

    rates: NDArray[np.float32]
    images: str

    def of(self, label: int) -> NDArray[np.float32] | None:
        """Return how often one class opens each gate, (G,); None where no image was of it."""
        rates = self.rates[label]
        return None if np.isnan(rates).any() else rates


def explain_images(path: Path, images: tuple[Path, ...], device: str = "auto") -> Explanation:
    """Classify image files and show the gates of each, beside the mean of the class predicted.

    The means are those of the images that `gaternet analyze` saw, where it saw this network.

    Raises UserError where a file is no image, UsageError where the run has no gates.
    """
    run = open_run(path)
    model, seen = see_images(path, images, device)
    if not isinstance(model, GatedModel):
        raise UsageError(f"{path} is a plain network: --explain needs gates")
    classes = run.config.classes
    means = saved_means(path, model)
    if means is not None and means.rates.shape[0] != len(classes):
        means = None
    opened = np.stack([one.gates for one in seen])
    views = tuple(
        ImageView(
            one.prediction,
            _layers(model, one.gates, None if means is None else means.of(one.label)),
        )
        for one in seen
    )
    likeliest = np.array([one.label for one in seen])
    rated = _rated(means, likeliest)
    page = Page(
        title=f"What {path.name} opens for {'an image' if len(seen) == 1 else 'images'}",
        classes=classes,
        slices=model.slices,
        bits=np.packbits(opened, axis=1),
        images=_pictures(seen),
        predictions=likeliest,
        names=tuple(one.prediction.image for one in seen),
        confidences=np.array([one.prediction.probabilities[0] for one in seen]),
        shown=None if means is None else _dependent(opened, means.rates),
        rates=None if means is None else means.rates[rated],
        rated=rated,
        rates_of=None if means is None else means.images,
        tables=(_likeliest(seen),),
    )
    return Explanation(views, None if means is None else means.images, page)


def saved_means(path: Path, model: GatedModel) -> ClassMeans | None:
    """Return what `gaternet analyze` found of this very network; None where it found nothing."""
    binarizer = model.binarizer
    weights = weights_of(checkpoint.newest(open_run(path).checkpoints))
    for split in SPLITS:
        directory = analysis_of(path) / split / GATES
        source = source_of(directory)
        wanted = {
            "weights": weights,
            "form": str(binarizer.form),
            "threshold": binarizer.threshold,
        }
        if source is None or any(source.get(name) != value for name, value in wanted.items()):
            continue
        try:
            record = read_record(directory)
        except UserError:  # damaged: the images are explained without it
            continue
        return ClassMeans(class_rates(record), f"{len(record):,} {split} images")
    return None


def _layers(
    model: GatedModel, gates: NDArray[np.uint8], rates: NDArray[np.float32] | None
) -> tuple[LayerView, ...]:
    """Return the gates of each layer beside a class's rates, (G,), where they are known."""
    views = []
    for name, columns in model.slices.items():
        own = gates[columns]
        distance = usual = None
        if rates is not None:
            mean = rates[columns].astype(np.float64)
            distance = float(np.abs(own - mean).sum())
            usual = float((2 * mean * (1 - mean)).sum())
        views.append(LayerView(name, tuple(own.tolist()), distance, usual))
    return tuple(views)


def _rated(means: ClassMeans | None, labels: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return which of these classes have known means, ascending."""
    if means is None:
        return None
    return np.array([k for k in np.unique(labels) if means.of(k) is not None], dtype=np.int64)


def _dependent(opened: NDArray[np.uint8], rates: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the gates that differ between these images (N, G), or between any of all classes."""
    # Comparisons with NaN, of classes that were not seen, are false.
    sometimes_open = (opened > 0).any(axis=0) | (rates > 0).any(axis=0)
    sometimes_closed = (opened == 0).any(axis=0) | (rates < 1).any(axis=0)
    return np.flatnonzero(sometimes_open & sometimes_closed)


def _likeliest(seen: list[Seen]) -> PageTable:
    rows = []
    for one in seen:
        found = one.prediction
        likely = zip(found.classes[:LIKELIEST], found.probabilities, strict=False)
        rows.append((found.image, *(f"{name} {100 * p:.1f} %" for name, p in likely)))
    ranks = ("likeliest", *(f"{rank}." for rank in range(2, len(rows[0]))))
    return PageTable("What the images were taken for", "", ("image", *ranks), tuple(rows))


def _pictures(seen: list[Seen]) -> NDArray[np.uint8]:
    """Return the images as the network saw them, (N, H, W, 3)."""
    pixels = np.stack([one.pixels.cpu().numpy() for one in seen]).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))
