"""Images from a hub, from parquet files, from folders by class, or from scikit-learn."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from gaternet.data.cache import cached
from gaternet.data.digits import load_digits
from gaternet.data.folders import SPLITS, content_key, find_files
from gaternet.data.hub import find_revision, read_hub
from gaternet.data.image_set import ImageSet, make_image_set, split_validation
from gaternet.data.readers import Reader, read_folder
from gaternet.data.settings import DIGITS, DataConfig
from gaternet.data.stacking import stack
from gaternet.errors import UserError

__all__ = ["ImageSet", "load", "split_validation"]

_FORMAT = 1  # of what is cached: raise it when decoding gives other images than before
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class _Wanted:
    """Which images, and in what form; None: as the data has it."""

    split: str
    classes: int | None
    channels: int | None
    image_size: int | None


def load(
    where: str | Path, config: DataConfig | None, split: str, image_size: int | None = None
) -> ImageSet:
    """Load a split ("train", "test", "validation") as one uint8 tensor, decoded once and cached.

    `where` is a folder of parquet files or of images by class (SPLIT/CLASS/IMAGE), a data set's
    name on the Hugging Face hub, or "digits", which comes with scikit-learn (./digits is a
    folder). Size and classes come from the data; `config` says what they must be, and so which
    column of labels is meant where there are several. With `image_size`, in pixels, each image's
    shorter side is scaled and its centre cut while decoding.
    Raises UserError, naming the file at fault, for all that is missing, corrupt or unfit.
    """
    classes, channels = (config.classes, config.channels) if config else (None, None)
    wanted = _Wanted(SPLITS.get(split, split), classes, channels, image_size)
    path = Path(where).expanduser()
    if str(where) == DIGITS.hub:
        image_set = load_digits(wanted.split)
    elif path.is_dir():
        image_set = _load_folder(path, wanted)
    elif path.exists():
        raise UserError(f"{where} is a file: give the folder that holds it")
    else:
        image_set = _load_hub(str(where), wanted)
    if config:
        _check(image_set, config, where)
    return image_set


def _load_folder(path: Path, wanted: _Wanted) -> ImageSet:
    folder = find_files(path)
    identity = content_key(folder, wanted.split)
    name = path.resolve().name
    return _cached(
        identity, name, wanted, lambda: read_folder(folder, wanted.split, wanted.classes)
    )


def _load_hub(name: str, wanted: _Wanted) -> ImageSet:
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"{name} does not exist: give a folder of images, or a name on the hub")
    revision = find_revision(name)
    short = name.rsplit("/", 1)[-1]

    def read() -> Reader:
        return read_hub(name, revision, wanted.split, wanted.classes)

    if revision is None:
        return make_image_set(*stack(read(), wanted.channels, wanted.image_size), short)
    return _cached(f"{name}@{revision}", short, wanted, read)


def _cached(identity: str, name: str, wanted: _Wanted, read: Callable[[], Reader]) -> ImageSet:
    key = hashlib.sha256(json.dumps([_FORMAT, identity, *astuple(wanted)]).encode()).hexdigest()
    return cached(key, name, lambda: stack(read(), wanted.channels, wanted.image_size))


def _check(image_set: ImageSet, config: DataConfig, where: str | Path) -> None:
    channels, height, width = image_set.images.shape[1:]
    if len(image_set.classes) != config.classes:
        raise UserError(
            f"{where} has {len(image_set.classes)} classes, {config.name} has {config.classes}: "
            "give other data, or a recipe for as many classes"
        )
    if (channels, height, width) != (config.channels, config.image_size, config.image_size):
        raise UserError(
            f"{where} holds images of {channels}×{height}×{width}, {config.name} is "
            f"{config.channels}×{config.image_size}×{config.image_size}: give other data, or "
            f"scale them (`image_size={config.image_size}` of `gaternet.data.sources.load`)"
        )
