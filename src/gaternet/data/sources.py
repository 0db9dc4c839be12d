"""Images from a hub, from parquet files, from folders by class, or from scikit-learn."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

from gaternet.data.batches import Images
from gaternet.data.cache import cached
from gaternet.data.digits import load_digits
from gaternet.data.folders import SPLITS, Folder, content_key, find_files
from gaternet.data.hub import find_revision, read_hub
from gaternet.data.image_files import open_folder
from gaternet.data.image_set import ImageSet, make_image_set, split_validation
from gaternet.data.readers import Reader, read_folder
from gaternet.data.settings import DIGITS, DataConfig
from gaternet.data.stacking import OnBadImage, Wanted, stack
from gaternet.data.streams import open_hub
from gaternet.errors import UserError
from gaternet.given_files import describe_pickle_file, reaching

__all__ = ["ImageSet", "Images", "OnBadImage", "load", "load_in_memory", "split_validation"]

_FORMAT = 2  # of what is cached: raise it when decoding gives other images than before
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load(
    where: str | Path,
    config: DataConfig,
    split: str,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "stop",
) -> Images:
    """Load a split ("train", "test", "validation") in the way that `config.held` says.

    memory: as `load_in_memory` does. disk: images of any size, decoded and cropped anew whenever
    they are needed, from a folder of parquet files, a folder of images by class, or streamed from
    the Hugging Face hub. "test" is the split that the data set's errors are reported on, so
    `config.test_split`. Bad images (corrupt, or without a label) can be left out of training only.
    Raises UserError, naming the file at fault, for all that is missing, corrupt or unfit.
    """
    if config.held == "memory":
        return load_in_memory(where, config, split, image_size, on_bad_image)
    if image_size not in (None, config.image_size):
        raise UserError(
            f"{config.name} has images of {config.image_size} pixels, not of {image_size}"
        )
    wanted = _wanted(config, split, image_size, on_bad_image)
    path = _existing(where)
    images: Images
    if path:
        folder = find_files(path)
        part = _split(wanted, config, folder)
        images = open_folder(folder, part, wanted.classes, wanted.on_bad_image)
    else:
        part = _split(wanted, config)
        revision = _revision(str(where))
        images = open_hub(str(where), revision, part, wanted.classes, wanted.on_bad_image)
    _check_classes(images, config, where)
    return images


def load_in_memory(
    where: str | Path,
    config: DataConfig | None,
    split: str,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "stop",
) -> ImageSet:
    """Load a split ("train", "test", "validation") as one uint8 tensor, decoded once and cached.

    `where` is a folder of parquet files or of images by class (SPLIT/CLASS/IMAGE), a data set's
    name on the Hugging Face hub, or "digits", which comes with scikit-learn (./digits is a
    folder). Size and classes come from the data; `config` says what they must be, and so which
    column of labels is meant where there are several. With `image_size`, in pixels, each image's
    shorter side is scaled (to `config.shorter_side`) and its centre cut while decoding.
    Raises UserError, naming the file at fault, for all that is missing, corrupt or unfit.
    """
    wanted = _wanted(config, split, image_size, on_bad_image)
    if str(where) == DIGITS.hub:
        image_set = load_digits(wanted.split)
    elif path := _existing(where):
        folder = find_files(path)
        image_set = _load_folder(folder, replace(wanted, split=_split(wanted, config, folder)))
    else:
        image_set = _load_hub(str(where), replace(wanted, split=_split(wanted, config)))
    if config:
        _check_classes(image_set, config, where)
        _check_size(image_set, config, where)
    return image_set


def _wanted(
    config: DataConfig | None, split: str, image_size: int | None, on_bad_image: OnBadImage
) -> Wanted:
    split = SPLITS.get(split, split)
    return Wanted(
        split=split,
        classes=config.classes if config else None,
        channels=config.channels if config else None,
        image_size=image_size,
        shorter_side=config.shorter_side if config and image_size else None,
        on_bad_image=on_bad_image if split == "train" else "stop",
    )


def _existing(where: str | Path) -> Path | None:
    """Return the folder that is meant, None where there is nothing of that name."""
    path = Path(where).expanduser()
    with reaching(path):
        there, is_folder = path.exists(), path.is_dir()
    if there and not is_folder:
        if pickled := describe_pickle_file(path):
            raise UserError(f"{where} {pickled}; give a folder of parquet files or of images")
        raise UserError(f"{where} is a file: give the folder that holds it")
    return path if is_folder else None


def _split(wanted: Wanted, config: DataConfig | None, folder: Folder | None = None) -> str:
    """Return which split is meant: for "test" that which errors are reported on, if it is there."""
    if config and wanted.split == "test" and (not folder or config.test_split in folder.files):
        return config.test_split
    return wanted.split


def _load_folder(folder: Folder, wanted: Wanted) -> ImageSet:
    identity = content_key(folder, wanted.split)
    name = folder.path.resolve().name
    return _cached(
        identity, name, wanted, lambda: read_folder(folder, wanted.split, wanted.classes)
    )


def _revision(name: str) -> str | None:
    if not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"{name} does not exist: give --data a folder of images, or a name on the hub"
        )
    return find_revision(name)


def _load_hub(name: str, wanted: Wanted) -> ImageSet:
    revision = _revision(name)
    short = name.rsplit("/", 1)[-1]

    def read() -> Reader:
        return read_hub(name, revision, wanted.split, wanted.classes)

    if revision is None:
        images, labels, classes, skipped = stack(read(), wanted)
        image_set = make_image_set(images, labels, classes, short)
        return replace(image_set, skipped=frozenset(skipped))
    return _cached(f"{name}@{revision}", short, wanted, read)


def _cached(identity: str, name: str, wanted: Wanted, read: Callable[[], Reader]) -> ImageSet:
    key = hashlib.sha256(json.dumps([_FORMAT, identity, *astuple(wanted)]).encode()).hexdigest()
    return cached(key, name, lambda: stack(read(), wanted))


def _check_classes(images: Images, config: DataConfig, where: str | Path) -> None:
    if len(images.classes) != config.classes:
        raise UserError(
            f"{where} has {len(images.classes)} classes, {config.name} has {config.classes}: "
            "give other data, or a recipe for as many classes"
        )


def _check_size(image_set: ImageSet, config: DataConfig, where: str | Path) -> None:
    channels, height, width = image_set.images.shape[1:]
    if (channels, height, width) != (config.channels, config.image_size, config.image_size):
        raise UserError(
            f"{where} holds images of {channels}×{height}×{width}, {config.name} is "
            f"{config.channels}×{config.image_size}×{config.image_size}: give other data, or a "
            "recipe for such images"
        )
