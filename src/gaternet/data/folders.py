"""What a local folder of images holds: its splits, its files, and a key for their content."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gaternet.errors import UserError

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

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Folder:
    """The files of a folder, by split."""

    path: Path
    kind: Literal["parquet", "imagefolder"]
    files: dict[str, tuple[Path, ...]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders that images lie in, over all splits."""
        return tuple(sorted({file.parent.name for files in self.files.values() for file in files}))


def find_files(path: Path) -> Folder:
    """Find parquet files, or else images by class, below a folder.

    A parquet file belongs to the split that begins its name or names its folder, as on the hub:
    `train-00000-of-00002.parquet`, `train/0000.parquet`; without such a name to training. Images
    lie in SPLIT/CLASS/, or in CLASS/ where all are for training. Raises UserError where there is
    neither, naming what is missing or in the wrong place.
    """
    files = _list_files(path)
    if tables := [file for file in files if file.suffix == ".parquet"]:
        splits = _group((_parquet_split(file, path), file) for file in tables)
        for split, shards in splits.items():
            _check_shards(split, shards)
        return Folder(path, "parquet", splits)
    images = [file for file in files if file.suffix.lower() in IMAGES]
    if not images:
        raise UserError(
            f"{path} holds neither parquet files nor images ({', '.join(IMAGES[:4])}, …): give a "
            "folder with train-….parquet and test-….parquet, or with train/CLASS/IMAGE"
        )
    return Folder(path, "imagefolder", _image_splits(path, images))


def files_of(folder: Folder, split: str) -> tuple[Path, ...]:
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
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        digest.update(f"{file.relative_to(folder.path).as_posix()}\0".encode() + content)
    if folder.kind == "imagefolder":
        digest.update("\0".join(folder.classes).encode())
    return digest.hexdigest()


def _list_files(path: Path) -> list[Path]:
    """Return the files at most two folders deep that are not hidden, sorted; links are followed."""
    wanted = (*IMAGES, ".parquet")
    found = (file for depth in ("*", "*/*", "*/*/*") for file in path.glob(depth))
    return sorted(
        file
        for file in found
        if file.suffix.lower() in wanted
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    )


def _group(pairs: Iterable[tuple[str, Path]]) -> dict[str, tuple[Path, ...]]:
    groups: dict[str, list[Path]] = {}
    for split, file in pairs:
        groups.setdefault(split, []).append(file)
    return {split: tuple(files) for split, files in groups.items()}


def _parquet_split(file: Path, folder: Path) -> str:
    begins = re.split(r"[-_.]", file.name)[0]
    names = (begins, *reversed(file.relative_to(folder).parts[:-1]))
    return next((SPLITS[name] for name in names if name in SPLITS), "train")


def _check_shards(split: str, files: tuple[Path, ...]) -> None:
    """Refuse a split of which a part is missing, or which is there twice."""
    if folders := {file.parent for file in files} - {files[0].parent}:
        raise UserError(f"{files[0].parent} and {folders.pop()} both hold {split} files: give one")
    shards = [match for file in files if (match := _SHARD.search(file.name))]
    for match in shards:
        if len(shards) != int(match[2]):
            raise UserError(
                f"{files[0].parent} holds {len(shards)} of {int(match[2])} {split} files "
                f"(…{match[0]}.parquet): download it again"
            )


def _image_splits(path: Path, images: list[Path]) -> dict[str, tuple[Path, ...]]:
    parts = {image: image.relative_to(path).parts for image in images}
    # A class may be called "train" as well: only a folder that holds folders is a split.
    split_names = {first for first, *rest in parts.values() if first in SPLITS and len(rest) > 1}
    depth = 3 if split_names else 2
    pairs = []
    for image, names in parts.items():
        if split_names and names[0] not in split_names:
            continue  # beside train/ and test/ there may be pictures that belong to no split
        if len(names) != depth:
            layout = "SPLIT/CLASS/IMAGE" if split_names else "CLASS/IMAGE"
            raise UserError(f"{image} is not where an image belongs: in {path}/{layout}")
        pairs.append((SPLITS[names[0]] if split_names else "train", image))
    return _group(pairs)
