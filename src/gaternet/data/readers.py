"""Undecoded images with their labels, one after the other: from files, or from a hub."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gaternet.data.folders import SPLITS, Folder, files_of
from gaternet.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow.parquet as pq

_ROWS_AT_ONCE = 512
_USUAL_LABELS = ("label", "labels", "fine_label")


class Row(NamedTuple):
    """One image, not yet decoded."""

    content: Path | bytes | None
    label: int | None
    source: str
    """The file that it is from, or the data set."""
    number: int | None
    """Its row there, counted from 0; None where the file is the image."""

    @property
    def origin(self) -> str:
        return self.source if self.number is None else f"{self.source}, row {self.number},"


@dataclass(frozen=True)
class Reader:
    """A split's class names, and its rows, which can be gone through once."""

    classes: tuple[str, ...]
    rows: Iterator[Row]


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    classes: tuple[str, ...]


def read_folder(folder: Folder, split: str, classes: int | None) -> Reader:
    """Open a split of a local folder; of several columns of labels the one with `classes` classes.

    Raises UserError, here or while the rows are read, naming a file that is corrupt or unfit.
    """
    files = files_of(folder, split)
    if folder.kind == "parquet":
        with _parquet(files[0]) as table:
            columns = _features(table, files[0], classes)
        return Reader(columns.classes, _parquet_rows(files, columns))
    numbers = {name: number for number, name in enumerate(folder.classes)}
    rows = (Row(file, numbers[file.parent.name], str(file), None) for file in files)
    return Reader(folder.classes, rows)


def read_hub(name: str, revision: str | None, split: str, classes: int | None) -> Reader:
    """Open a split of a data set on the hub, downloaded and kept by `datasets`.

    Raises UserError where it cannot be had, or has no such split.
    """
    import datasets

    with _quiet():
        try:
            found = datasets.load_dataset(name, revision=revision)
        except Exception as error:  # what fails in a download is beyond listing
            raise UserError(
                f"the hub's data set {name} cannot be loaded ({_line(error)})"
            ) from None
        splits = {SPLITS.get(key, key): part for key, part in found.items()}
        if split not in splits:
            raise UserError(f"{name} has no split {split!r}: it has {', '.join(sorted(splits))}")
        part = splits[split]
        columns = _choose(part.features, name, classes)
        part = part.select_columns([columns.image, columns.label])
        part = part.cast_column(columns.image, datasets.Image(decode=False))
        rows = _dataset_rows(part, columns, name)
    return Reader(columns.classes, rows)


def _dataset_rows(part: "datasets.Dataset", columns: _Columns, name: str) -> Iterator[Row]:
    number = 0
    for batch in part.iter(batch_size=_ROWS_AT_ONCE):
        for image, label in zip(batch[columns.image], batch[columns.label], strict=True):
            yield _row(image, label, name, number)
            number += 1


def _parquet_rows(files: Sequence[Path], columns: _Columns) -> Iterator[Row]:
    for file in files:
        number = 0
        with _parquet(file) as table:
            if _features(table, file, len(columns.classes)) != columns:
                raise UserError(f"{file} and {files[0]} have different columns or classes")
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[columns.image, columns.label]):
                images, labels = batch[columns.image].to_pylist(), batch[columns.label].to_pylist()
                for image, label in zip(images, labels, strict=True):
                    yield _row(image, label, str(file), number)
                    number += 1


def _row(image: Mapping[str, Any] | None, label: int | None, source: str, number: int) -> Row:
    return Row(image["bytes"] if image else None, label, source, number)


def _features(table: "pq.ParquetFile", file: Path, classes: int | None) -> _Columns:
    import datasets

    return _choose(datasets.Features.from_arrow_schema(table.schema_arrow), str(file), classes)


def _choose(features: Mapping[str, Any], name: str, classes: int | None) -> _Columns:
    """Find the image column and the label column by their types."""
    import datasets

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    for kind, found in (("images", images), ("class labels", labels)):
        if not found:
            raise UserError(
                f"{name} has no column of {kind}: its columns are {', '.join(features)}"
            )
    fitting = [key for key in labels if features[key].num_classes == classes] or labels
    label = next((key for key in fitting if key in _USUAL_LABELS), fitting[0])
    return _Columns(images[0], label, tuple(features[label].names))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars and log lines of `datasets` off the terminal."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def _parquet(file: Path) -> "Iterator[pq.ParquetFile]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as parquet ({_line(error)}): it may be truncated or corrupt; "
            "download it again"
        ) from None
