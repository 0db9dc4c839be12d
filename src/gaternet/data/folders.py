"""What a local folder of images holds: its splits, its files, and a key for their content."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from gaternet.errors import UserError
from gaternet.given_files import describe_pickle_file, size_of

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
"""What a split is called in files, folders and commands, and what it is called here."""

IMAGES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
_ADVICE = "give a folder with train-….parquet and test-….parquet, or with train/CLASS/IMAGE"
_LOOKED_AT = 64
"""Files that may be pickles, as those of CIFAR-10's own archive are."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Folder:
    """The files of a folder, by split."""

    path: Path
    kind: Literal["parquet", "imagefolder"]
    files: dict[str, tuple[str, ...]]
    """Relative to the folder, with "/": a million of them take less room than as paths."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders that images lie in, over all splits."""
        return tuple(sorted({class_of(file) for files in self.files.values() for file in files}))


def class_of(file: str) -> str:
    """Return the name of the folder that an image lies in."""
    return file.split("/")[-2]


def find_files(path: Path) -> Folder:
    """Find parquet files, or else images by class, below a folder.

    A parquet file belongs to the split that begins its name or names its folder, as on the hub:
    `train-00000-of-00002.parquet`, `train/0000.parquet`; without such a name to training. Images
    lie in SPLIT/CLASS/, or in CLASS/ where all are for training. Raises UserError where there is
    neither, naming what is missing or in the wrong place.
    """
    files = list(_files_below(path))
    if tables := [file for file in files if file.endswith(".parquet") and file.count("/") < 3]:
        splits = _group((_parquet_split(file), file) for file in tables)
        for split, shards in splits.items():
            _check_shards(path, split, shards)
        return Folder(path, "parquet", splits)
    if not files:
        if pickled := _first_pickle(path):
            raise UserError(f"{pickled}; {_ADVICE}")
        raise UserError(
            f"{path} holds neither parquet files nor images ({', '.join(IMAGES[:4])}, …): {_ADVICE}"
        )
    return Folder(path, "imagefolder", _image_splits(path, files))


def files_of(folder: Folder, split: str) -> tuple[str, ...]:
    """Return the files of a split. Raises UserError, with the splits that there are."""
    if split not in folder.files:
        there = ", ".join(sorted(folder.files))
        raise UserError(f"{folder.path} has no split {split!r}: it has {there}")
    return folder.files[split]


def content_key(folder: Folder, split: str) -> str:
    """Return the SHA-256 of the names and contents of a split's files, and of all class names.

    Contents rather than times: a copied or moved folder keeps its key, a changed file never does,
    and reading is cheap beside decoding.
    """
    digest = hashlib.sha256()
    for file in files_of(folder, split):
        try:
            with (folder.path / file).open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise UserError(f"{folder.path / file} cannot be read: {error.strerror}") from None
        digest.update(os.fsencode(file) + b"\0" + content)
    if folder.kind == "imagefolder":
        digest.update(os.fsencode("\0".join(folder.classes)))
    return digest.hexdigest()


def size_key(folder: Folder, split: str) -> str:
    """Return the SHA-256 of the names and sizes of a split's files, and of all class names.

    That is what can be known of a hundred gigabytes in seconds: a file that was changed and kept
    its size is not noticed.
    """
    digest = hashlib.sha256()
    for file in files_of(folder, split):
        try:
            size = os.stat(os.path.join(folder.path, file)).st_size
        except OSError as error:
            raise UserError(f"{folder.path / file} cannot be read: {error.strerror}") from None
        digest.update(os.fsencode(file) + b"\0%d\0" % size)
    if folder.kind == "imagefolder":
        digest.update(os.fsencode("\0".join(folder.classes)))
    return digest.hexdigest()


def _files_below(folder: Path, prefix: str = "", depth: int = 4) -> Iterator[str]:
    """Yield the files at most three folders deep that are not hidden, sorted; links are followed.

    That is one folder deeper than an image belongs, so that none is passed over unnoticed.

    Raises UserError for a link that leads nowhere, a pipe and the like under an image's name.
    """
    try:
        with os.scandir(folder / prefix) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder / prefix} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is(entry.is_dir):
            if depth > 1:
                yield from _files_below(folder, f"{prefix}{entry.name}/", depth - 1)
        elif os.path.splitext(entry.name)[1].lower() in (*IMAGES, ".parquet"):
            if not _is(entry.is_file):
                size_of(folder / prefix / entry.name)
            yield prefix + entry.name


def _is(kind: Callable[[], bool]) -> bool:
    """Return what an entry says of itself; links in a circle are neither file nor folder."""
    try:
        return kind()
    except OSError:
        return False


def _first_pickle(folder: Path) -> str | None:
    """Return what is said of the first pickle in a folder, or in one of those in it."""
    files = islice((*sorted(folder.glob("*")), *sorted(folder.glob("*/*"))), _LOOKED_AT)
    return next((f"{file} {what}" for file in files if (what := describe_pickle_file(file))), None)


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for split, file in pairs:
        groups.setdefault(split, []).append(file)
    return {split: tuple(files) for split, files in groups.items()}


def _parquet_split(file: str) -> str:
    *folders, name = file.split("/")
    names = (re.split(r"[-_.]", name)[0], *reversed(folders))
    return next((SPLITS[name] for name in names if name in SPLITS), "train")


def _check_shards(path: Path, split: str, files: tuple[str, ...]) -> None:
    """Refuse a split of which a part is missing, or which is there twice."""
    folders = sorted({(path / file).parent for file in files})
    if len(folders) > 1:
        raise UserError(f"{folders[0]} and {folders[1]} both hold {split} files: give one")
    shards = [match for file in files if (match := _SHARD.search(file))]
    for match in shards:
        if len(shards) != int(match[2]):
            raise UserError(
                f"{folders[0]} holds {len(shards)} of {int(match[2])} {split} files "
                f"(…{match[0]}.parquet): download it again"
            )


def _image_splits(path: Path, images: list[str]) -> dict[str, tuple[str, ...]]:
    # A class may be called "train" as well: only a folder that holds folders is a split.
    firsts = {image.split("/")[0] for image in images if image.count("/") > 1}
    split_names = firsts & set(SPLITS)
    depth = 3 if split_names else 2
    pairs = []
    for image in images:
        first, *rest = image.split("/")
        if split_names and first not in split_names:
            continue  # beside train/ and test/ there may be pictures that belong to no split
        if len(rest) + 1 != depth:
            layout = "SPLIT/CLASS/IMAGE" if split_names else "CLASS/IMAGE"
            raise UserError(f"{path / image} is not where an image belongs: in {path}/{layout}")
        pairs.append((SPLITS[first] if split_names else "train", image))
    return _group(pairs)
