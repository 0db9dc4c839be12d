"""Which filters a run opens for a user's own images, beside what their class usually opens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaternet import checkpoint
from gaternet.analysis.classes import class_rates
from gaternet.analysis.page import Page, PageTable
from gaternet.analysis.saved import GATES, read_record, source_of, weights_of
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
    """How often each class opens each gate, (C, G), and over which images."""

    rates: NDArray[np.float32]
    images: str


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
    rates = np.full((len(classes), model.gate_count), np.nan) if means is None else means.rates
    views = tuple(
        ImageView(one.prediction, _layers(model, one.gates, rates[one.label])) for one in seen
    )
    likeliest = np.array([one.label for one in seen])
    page = Page(
        title=f"What {path.name} opens for {'an image' if len(seen) == 1 else 'images'}",
        classes=classes,
        slices=model.slices,
        bits=np.packbits(opened, axis=1),
        images=_pictures(seen),
        predictions=likeliest,
        names=tuple(one.prediction.image for one in seen),
        confidences=np.array([one.prediction.probabilities[0] for one in seen]),
        rates=None if means is None else _of_classes(means.rates, likeliest),
        rates_of=None if means is None else means.images,
        tables=(_likeliest(seen),),
    )
    return Explanation(views, None if means is None else means.images, page)


def saved_means(path: Path, model: GatedModel) -> ClassMeans | None:
    """Return what `gaternet analyze` found of this very network; None where it found nothing."""
    binarizer = model.binarizer
    weights = weights_of(checkpoint.newest(open_run(path).checkpoints))
    for split in SPLITS:
        directory = path / "analysis" / split / GATES
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
    model: GatedModel, gates: NDArray[np.uint8], rates: NDArray[np.floating]
) -> tuple[LayerView, ...]:
    """Return the gates of each layer beside a class's rates, (G,); NaN where they are not known."""
    views = []
    for name, columns in model.slices.items():
        own, mean = gates[columns], rates[columns].astype(np.float64)
        distance = usual = None
        if not np.isnan(mean).any():
            distance = float(np.abs(own - mean).sum())
            usual = float((2 * mean * (1 - mean)).sum())
        views.append(LayerView(name, tuple(own.tolist()), distance, usual))
    return tuple(views)


def _of_classes(rates: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rates of the classes that occur; the others' are NaN, which takes no room."""
    kept = np.full_like(rates, np.nan)
    kept[labels] = rates[labels]
    return kept


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
