"""What a page shows: plain arrays, checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PageTable:
    """A table of text: a title, a sentence that says what it shows, columns, rows."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PageBar:
    """An accuracy, 0 to 1, and half the width of its 95 % interval."""

    name: str
    accuracy: float
    interval: float


@dataclass(frozen=True, eq=False)
class Page:
    """N images of C classes with their G gates, and what was found out about them.

    Without labels the page explains single images: it shows them beside the mean of the class that
    was predicted, where `rates` has it, and no statistics over images.

    Raises ValueError where the arrays do not fit each other.
    """

    title: str
    classes: tuple[str, ...]
    slices: Mapping[str, slice]
    """Columns of each gate point, in the order of execution."""
    bits: NDArray[np.uint8]
    """(N, ⌈G / 8⌉), each row packed as by `numpy.packbits`: `GateRecord.bits`."""
    images: NDArray[np.uint8]
    """(N, H, W, 3)."""
    predictions: NDArray[np.integer]
    """(N,), the predicted class of each image."""
    labels: NDArray[np.integer] | None = None
    """(N,), the class of each image."""
    names: tuple[str, ...] | None = None
    """What the images are called; none: their number."""
    numbers: NDArray[np.integer] | None = None
    """(N,), ascending, the place of each image in its split; none: 0 … N − 1."""
    drawn_from: int | None = None
    """Images that these were drawn from at random; none: these are all."""
    shown: NDArray[np.integer] | None = None
    """(D,), ascending, the gates that are shown one by one; the others are the same for every
    image. None: those that depend on the input, of images without labels all."""
    confidences: NDArray[np.floating] | None = None
    """(N,), the probability of the predicted class."""
    embedding: NDArray[np.floating] | None = None
    """(N, 2); none: the images lie on a grid."""
    mutual_information: NDArray[np.floating] | None = None
    """(G,), between each gate and the class, in bits."""
    similarity: NDArray[np.floating] | None = None
    """(C, C), the mean share of gates alike in two images, one of each class; NaN: not known."""
    macs: NDArray[np.number] | None = None
    """(N,), multiply-accumulates that each image needs, gater included."""
    backbone_macs: int | None = None
    """Of the plain backbone, for each image."""
    rates: NDArray[np.floating] | None = None
    """(R, G), how often classes open each gate, over other images."""
    rated: NDArray[np.integer] | None = None
    """(R,), the classes of which there are `rates`."""
    rates_of: str | None = None
    """The images that `rates` are of, in words."""
    opening: NDArray[np.integer] | None = None
    """(E, G), places in the split of the images that open each gate most, the first one most."""
    closing: NDArray[np.integer] | None = None
    """(E, G), of those that close it most."""
    split_rates: NDArray[np.floating] | None = None
    """(2, G), how often each gate is open over all images of this split, and of another."""
    against: str | None = None
    """The other split."""
    bars: tuple[PageBar, ...] = ()
    """Accuracies under other gates, that under each image's own first."""
    chance: float | None = None
    """Of the accuracies."""
    tables: tuple[PageTable, ...] = ()

    def __post_init__(self) -> None:
        count, gates, classes = len(self.bits), self.gate_count, len(self.classes)
        shapes = {
            "bits": (count, -(-gates // 8)),
            "images": (count, *self.images.shape[1:3], 3),
            "predictions": (count,),
            "labels": (count,),
            "confidences": (count,),
            "embedding": (count, 2),
            "mutual_information": (gates,),
            "similarity": (classes, classes),
            "macs": (count,),
            "numbers": (count,),
            "opening": (0 if self.opening is None else len(self.opening), gates),
            "closing": (0 if self.opening is None else len(self.opening), gates),
            "split_rates": (2, gates),
            "rates": (0 if self.rated is None else len(self.rated), gates),
        }
        if not count:
            raise ValueError("a page needs at least one image")
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} is {array.shape}, it must be {shape}")
        if self.names is not None and len(self.names) != count:
            raise ValueError(f"there are {len(self.names)} names for {count} images")
        for name in ("predictions", "labels"):
            array = getattr(self, name)
            if array is not None and (array.min() < 0 or array.max() >= classes):
                raise ValueError(f"{name} has numbers that are none of the {classes} classes")

    @property
    def gate_count(self) -> int:
        """G."""
        return max(columns.stop for columns in self.slices.values())

    def open_counts(self) -> NDArray[np.int64]:
        """Return for how many images each gate is open, (G,)."""
        counts = np.zeros(self.gate_count, dtype=np.int64)
        for start in range(0, len(self.bits), 1024):
            rows = np.unpackbits(self.bits[start : start + 1024], axis=1, count=self.gate_count)
            counts += rows.sum(axis=0, dtype=np.int64)
        return counts

    def shown_gates(self) -> NDArray[np.int64]:
        """Return the gates that are shown one by one, (D,)."""
        if self.shown is not None:
            return np.asarray(self.shown, dtype=np.int64)
        if self.labels is None:
            return np.arange(self.gate_count)
        counts = self.open_counts()
        return np.flatnonzero((counts > 0) & (counts < len(self.bits)))
