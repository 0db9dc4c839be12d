"""Undecoded images with their labels, one after the other, from the files of a folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gaternet.data.decoding import first_line
from gaternet.data.folders import Folder, files_of
from gaternet.errors import UserError
from gaternet.given_files import describe_pickle_file, size_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_AT_ONCE = 32
_MOST_UNPACKED = 16
"""A parquet file's columns have at most this many times its bytes: images are compressed already,
and images of one value that stands there once are not many images."""
_SMALL = 2**27
"""Bytes that they may have in any case."""
_REPEATED_AT_ONCE = 2**24
"""Bytes of rows held at once, were each the largest value that can stand for many."""
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

    def undecoded(self) -> Path | bytes:
        """Return the content; raise ValueError, in words that follow `origin`, if there is none."""
        if self.content is None:
            raise ValueError("holds no image: remove it")
        return self.content


def check_label(label: int | None, classes: tuple[str, ...]) -> int:
    """Return the label; raise ValueError, in words that follow the image's name, if it is none."""
    if label is None or not 0 <= label < len(classes):
        raise ValueError(
            f"has label {label}: labels go from 0 to {len(classes) - 1}; "
            "a split without labels cannot be used"
        )
    return label


@dataclass(frozen=True)
class Reader:
    """A split's class names, and its rows, which can be gone through once."""

    source: str
    classes: tuple[str, ...]
    rows: Iterator[Row]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are meant, and the names that the labels stand for."""

    image: str
    label: str
    classes: tuple[str, ...]


def read_folder(folder: Folder, split: str, classes: int | None) -> Reader:
    """Open a split of a local folder; of several columns of labels the one with `classes` classes.

    Raises UserError, here or while the rows are read, naming a file that is corrupt or unfit.
    """
    files = [folder.path / file for file in files_of(folder, split)]
    if folder.kind == "parquet":
        columns, _ = check_tables(files, classes)
        return Reader(str(folder.path), columns.classes, _parquet_rows(files, columns))
    numbers = {name: number for number, name in enumerate(folder.classes)}
    rows = (Row(file, numbers[file.parent.name], str(file), None) for file in files)
    return Reader(str(folder.path), folder.classes, rows)


def check_tables(files: Sequence[Path], classes: int | None) -> tuple[Columns, list[int]]:
    """Return the columns that the files have in common, and each one's number of rows.

    It reads their footers. Raises UserError, naming a file that is corrupt or unlike the first.
    """
    counts, columns = [], None
    for file in files:
        with open_parquet(file) as table:
            found = _features(table, file, len(columns.classes) if columns else classes)
            counts.append(table.metadata.num_rows)
        columns = columns or found
        if found != columns:
            raise UserError(f"{file} and {files[0]} have different columns or classes")
    assert columns is not None
    return columns, counts


def _parquet_rows(files: Sequence[Path], columns: Columns) -> Iterator[Row]:
    for file in files:
        numbers = count()
        for batch in read_batches(file, [columns.image, columns.label]):
            for image, label in zip(batch[columns.image], batch[columns.label], strict=True):
                yield make_row(image.as_py(), label.as_py(), str(file), next(numbers))


def read_batches(file: Path, columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
    """Yield some columns of a parquet file, a few rows at a time.

    Raises UserError where the file is corrupt, or unpacks to far more than its size, as it does
    where one large value stands for many rows, or a page of zeros is compressed.
    """
    limit = max(_MOST_UNPACKED * size_of(file), _SMALL)
    with open_parquet(file) as table:
        chunks = _chunks(table.metadata, columns)
        taken = 0
        if sum(chunk.total_uncompressed_size for chunk in chunks) > limit:
            raise _unpacks_to(file, limit)
        for batch in table.iter_batches(_rows_at_once(chunks), columns=columns):
            taken += batch.nbytes
            if taken > limit:
                raise _unpacks_to(file, limit)
            yield batch


def _chunks(metadata: "pq.FileMetaData", columns: Sequence[str]) -> "list[pq.ColumnChunkMetaData]":
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    # The leaf `image.bytes` is a part of the column `image`.
    parts = tuple(f"{column}." for column in columns)
    return [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(parts)]


def _rows_at_once(chunks: "Sequence[pq.ColumnChunkMetaData]") -> int:
    repeated = [chunk.total_uncompressed_size for chunk in chunks if chunk.has_dictionary_page]
    largest = max(repeated, default=0)
    return min(ROWS_AT_ONCE, max(1, _REPEATED_AT_ONCE // max(1, largest)))


def _unpacks_to(file: Path, limit: int) -> UserError:
    return UserError(
        f"{file} has {size_of(file):,} bytes and unpacks to more than {limit:,}: write each image "
        "once, as a PNG or JPEG file"
    )


def make_row(image: Mapping[str, Any] | None, label: int | None, source: str, number: int) -> Row:
    """Return a row from what `datasets` holds for an undecoded image."""
    return Row(image["bytes"] if image else None, label, source, number)


def _features(table: "pq.ParquetFile", file: Path, classes: int | None) -> Columns:
    import datasets
    import pyarrow as pa

    schema = table.schema_arrow
    try:
        features = datasets.Features.from_arrow_schema(schema)
    except Exception as error:  # of all kinds: the features are JSON in the file's footer
        raise UserError(f"{file} does not say what its columns are ({first_line(error)})") from None
    columns = choose_columns(features, str(file), classes)
    image, label = (schema.field(name).type for name in (columns.image, columns.label))
    content = [
        image.field(i).type for i in range(image.num_fields) if image.field(i).name == "bytes"
    ]
    if content not in ([pa.binary()], [pa.large_binary()]) or not pa.types.is_integer(label):
        raise UserError(
            f"{file} holds {image} and {label} for images and labels: they must be image files, as "
            "struct<bytes: binary, path: string>, and integers"
        )
    return columns


def choose_columns(features: Mapping[str, Any], name: str, classes: int | None) -> Columns:
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
    return Columns(images[0], label, tuple(features[label].names))


@contextmanager
def open_parquet(file: Path) -> "Iterator[pq.ParquetFile]":
    """Open a parquet file; what goes wrong with it in the body becomes a UserError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if pickled := describe_pickle_file(file):
            raise UserError(f"{file} {pickled}; give parquet files") from None
        raise UserError(
            f"{file} cannot be read as parquet ({first_line(error)}): it may be truncated or "
            "corrupt; download it again"
        ) from None
