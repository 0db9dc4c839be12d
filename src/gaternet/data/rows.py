"""Undecoded images by their number, from files on disk: any of a million, in any order."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from gaternet.data.cache import cache_directory
from gaternet.data.decoding import first_line
from gaternet.data.folders import Folder, class_of
from gaternet.data.hub import quiet
from gaternet.data.readers import Columns, Row, make_row, read_batches
from gaternet.errors import UserError

if TYPE_CHECKING:
    import datasets


class Rows(Protocol):
    """Undecoded images that worker processes can ask for by number."""

    def __getitem__(self, number: int) -> Row: ...


@dataclass(frozen=True, eq=False)
class FileRows:
    """Image files: each one's name below a folder, and the number of its class."""

    root: str
    text: np.ndarray  # uint8, all names one after the other: bytes take a tenth of what paths do
    ends: np.ndarray  # (N,) int64, where each name ends
    labels: Tensor  # (N,) int64

    def __getitem__(self, number: int) -> Row:
        start = int(self.ends[number - 1]) if number else 0
        name = os.fsdecode(self.text[start : self.ends[number]].tobytes())
        path = Path(self.root, name)
        return Row(path, int(self.labels[number]), str(path), None)


def file_rows(folder: Folder, files: Sequence[str]) -> FileRows:
    """Return the images of a folder by class."""
    numbers = {name: number for number, name in enumerate(folder.classes)}
    names = [os.fsencode(file) for file in files]
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    labels = torch.tensor([numbers[class_of(file)] for file in files])
    return FileRows(str(folder.path), np.frombuffer(b"".join(names), np.uint8), ends, labels)


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of parquet files, out of a copy of them that the system maps into memory."""

    table: "datasets.Dataset"
    columns: Columns
    files: tuple[str, ...]
    ends: tuple[int, ...]
    """Number of the first row after each file."""

    def __getitem__(self, number: int) -> Row:
        row = self.table[number]
        which = bisect_right(self.ends, number)
        within = number - (self.ends[which - 1] if which else 0)
        return make_row(row[self.columns.image], row[self.columns.label], self.files[which], within)

    def labels(self) -> Tensor:
        """Return every row's label, (N,) int64; −1 where there is none."""
        column = self.table.data.column(self.columns.label)
        return torch.from_numpy(column.fill_null(-1).to_numpy().astype(np.int64))


def table_rows(files: Sequence[Path], columns: Columns, counts: Iterable[int]) -> TableRows:
    """Copy the files' images and labels to the cache, where no earlier call has, and map them.

    A parquet file gives an image only with the hundred around it; the copy (Arrow, as large as the
    files) gives any one at once. Raises UserError naming a file that is corrupt, or unpacks to far
    more than its size.
    """
    import datasets
    from datasets.io.parquet import ParquetDatasetReader

    wanted = [columns.image, columns.label]
    with quiet():
        try:
            copy = ParquetDatasetReader(
                [str(file) for file in files],
                cache_dir=str(cache_directory() / "tables"),
                columns=wanted,
            )
            if not Path(copy.builder.cache_dir).exists():
                _read_through(files, wanted)  # whether it fits is known before it fills the disk
            table = copy.read()
        except UserError:
            raise
        except Exception as error:  # a builder's errors wrap what pyarrow or the disk said
            _read_through(files, wanted)
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise UserError(
                f"{files[0].parent} cannot be copied to {cache_directory() / 'tables'} "
                f"({first_line(cause)}): is there room? GATERNET_CACHE names another place"
            ) from None
        table = table.cast_column(columns.image, datasets.Image(decode=False))
    ends = np.cumsum(list(counts)).tolist()
    return TableRows(table, columns, tuple(str(file) for file in files), tuple(ends))


def _read_through(files: Sequence[Path], columns: list[str]) -> None:
    """Raise the UserError of the first file that is corrupt or too large, if there is one."""
    for file in files:
        for _ in read_batches(file, columns):
            pass
