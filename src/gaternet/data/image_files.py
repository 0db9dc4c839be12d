"""A set of images that stay on disk and are decoded whenever they are asked for."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gaternet.data.folders import Folder, files_of, size_key
from gaternet.data.readers import Row, check_label, check_tables
from gaternet.data.rows import Rows, file_rows, table_rows
from gaternet.data.stacking import OnBadImage
from gaternet.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk with their labels, in a fixed order; any of them can be read at any time."""

    rows: Rows
    index: Tensor  # (N,) int64, each image's row
    classes: tuple[str, ...]
    name: str
    split: str
    fingerprint: str
    """First 16 hexadecimal digits of the SHA-256 of the files' names and sizes, of class names and
    of numbers of rows; contents are not read."""
    on_bad_image: OnBadImage = "stop"
    skipped: set[str] = field(default_factory=set)
    """Names of the images that training has left out so far; parts of a set share it."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> "ImageFiles":
        """Return the images at `index`, (M,) int64, in that order."""
        digest = hashlib.sha256(self.fingerprint.encode() + index.numpy().tobytes())
        return replace(
            self,
            index=self.index[index],
            fingerprint=digest.hexdigest()[:16],
        )

    def row(self, place: int) -> Row:
        """Return the undecoded image at a place of this set."""
        return self.rows[int(self.index[place])]


def open_folder(
    folder: Folder, split: str, classes: int | None, on_bad_image: OnBadImage
) -> ImageFiles:
    """Open a split of a local folder; of several columns of labels the one with `classes` classes.

    Raises UserError, naming a file that is corrupt or unfit, or a row without a label.
    """
    name = folder.path.resolve().name
    if folder.kind == "imagefolder":
        files = file_rows(folder, files_of(folder, split))
        return ImageFiles(
            rows=files,
            index=torch.arange(len(files.labels)),
            classes=folder.classes,
            name=name,
            split=split,
            fingerprint=size_key(folder, split)[:16],
            on_bad_image=on_bad_image,
        )
    return _open_tables(folder, split, classes, on_bad_image)


def _open_tables(
    folder: Folder, split: str, classes: int | None, on_bad_image: OnBadImage
) -> ImageFiles:
    paths = [Path(folder.path, file) for file in files_of(folder, split)]
    columns, counts = check_tables(paths, classes)
    if not sum(counts):
        raise UserError(f"{folder.path} holds no images in its split {split}: give other data")
    rows = table_rows(paths, columns, counts)
    labels = rows.labels()
    labelled = (labels >= 0) & (labels < len(columns.classes))
    unlabelled = [rows[number] for number in (~labelled).nonzero()[:, 0].tolist()]
    if unlabelled and on_bad_image == "stop":
        try:
            check_label(unlabelled[0].label, columns.classes)
        except ValueError as error:
            raise UserError(f"{unlabelled[0].origin} {error} (split {split})") from None
    description = repr((size_key(folder, split), columns.classes, counts))
    return ImageFiles(
        rows=rows,
        index=labelled.nonzero()[:, 0],
        classes=columns.classes,
        name=folder.path.resolve().name,
        split=split,
        fingerprint=hashlib.sha256(description.encode()).hexdigest()[:16],
        on_bad_image=on_bad_image,
        skipped={row.origin for row in unlabelled},
    )
