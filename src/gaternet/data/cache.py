"""Decoded images on disk, so that a data set is decoded once.

An entry is KEY.safetensors (images and labels) and KEY.json (class names, names of the images that
were left out, and the SHA-256 of images, labels and class names). The key says what the images were
made from, so an entry is never out of date; one that does not match its SHA-256 is made again. Both
files are a function of the key and each is put in place by a rename, so processes that write the
same entry at once do no harm.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaternet.data.image_set import ImageSet, content_digest, make_image_set


class Decoded(NamedTuple):
    """What is decoded once, and kept."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    """Names of the images that were left out."""


def cache_directory() -> Path:
    """Return $GATERNET_CACHE, or gaternet in the user's cache: decoded images, built kernels."""
    if chosen := os.environ.get("GATERNET_CACHE"):
        return Path(chosen).expanduser()
    user = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "gaternet"


def cached(key: str, name: str, build: Callable[[], Decoded]) -> ImageSet:
    """Return the entry of `key` as a set called `name`; without one that is whole, build it.

    A folder that cannot be written to costs another `build` next time, and nothing else.
    """
    path = cache_directory() / f"{key}.safetensors"
    found = _read(path, name)
    if found is not None:
        return found
    images, labels, classes, skipped = build()
    digest = content_digest(images, labels, classes)
    record = json.dumps({"sha256": digest, "skipped": skipped, "classes": classes})
    # SafetensorError is what a full disk comes out as.
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            save_file({"images": images, "labels": labels}, temporary)
        with _replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(record)
    image_set = make_image_set(images, labels, classes, name, digest)
    return replace(image_set, skipped=frozenset(skipped))


def _read(path: Path, name: str) -> ImageSet | None:
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        tensors = load_file(path)
        images, labels, classes = tensors["images"], tensors["labels"], tuple(record["classes"])
        if content_digest(images, labels, classes) != record["sha256"]:
            return None
        image_set = make_image_set(images, labels, classes, name, record["sha256"])
        return replace(image_set, skipped=frozenset(record["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` to write to, and put it in its place when all went well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
