"""Data sets on the Hugging Face hub, downloaded and kept by the `datasets` library."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gaternet.data.decoding import first_line
from gaternet.data.folders import SPLITS
from gaternet.data.readers import ROWS_AT_ONCE, Columns, Reader, Row, choose_columns, make_row
from gaternet.errors import UserError

if TYPE_CHECKING:
    import datasets


def find_revision(name: str) -> str | None:
    """Ask the hub for the commit of a data set; None where HF_HUB_OFFLINE forbids to ask.

    This fails at once where `datasets` would go on trying for half a minute, and the commit is
    what a cache entry is known by. Raises UserError where there is no such data set, or no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    with quiet():
        try:
            return HfApi().dataset_info(name, timeout=20).sha
        except OfflineModeIsEnabled:
            return None
        except RepositoryNotFoundError:
            raise UserError(
                f"there is no folder {name}, nor such a data set on the hub: say with --data where "
                "the images are"
            ) from None
        except Exception as error:  # the HTTP client's own kinds of failure
            raise UserError(
                f"there is no folder {name}, and the hub, where it may be a data set, cannot "
                f"be reached ({first_line(error)}): give a folder of the images with --data, check "
                "the network, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
            ) from None


def read_hub(name: str, revision: str | None, split: str, classes: int | None) -> Reader:
    """Open a split; of several columns of labels the one with `classes` classes.

    Raises UserError where the data set cannot be loaded, or has no such split or columns.
    """
    import datasets

    with quiet():
        part = _split(name, split, lambda: datasets.load_dataset(name, revision=revision))
        columns = choose_columns(part.features, name, classes)
        part = part.select_columns([columns.image, columns.label])
        part = part.cast_column(columns.image, datasets.Image(decode=False))
    return Reader(name, columns.classes, _rows(part, columns, name))


def open_stream(
    name: str, revision: str | None, split: str
) -> "tuple[datasets.IterableDataset, int]":
    """Open a split for streaming; return it and its number of images.

    Raises UserError where the data set cannot be reached, has no such split, or does not say how
    large it is.
    """
    import datasets

    def load() -> "datasets.IterableDatasetDict":
        return datasets.load_dataset(name, revision=revision, streaming=True)

    with quiet():
        part = _split(name, split, load)
    described = (part.info.splits or {}).get(str(part.split))
    if not described or not described.num_examples:
        raise UserError(
            f"{name} does not say how many images its split {split!r} has, so it cannot be "
            "streamed: download it, and give the folder"
        )
    return part, described.num_examples


def _split(name: str, split: str, load: Callable[[], Mapping[str, Any]]) -> Any:
    try:
        found = load()
    except Exception as error:  # what fails in a download is beyond listing
        raise UserError(
            f"{name} cannot be loaded from the hub ({first_line(error)}): check the name and "
            "the network, or give a folder of the images with --data"
        ) from None
    parts = {SPLITS.get(key, key): part for key, part in found.items()}
    if split not in parts:
        raise UserError(f"{name} has no split {split!r}: it has {', '.join(sorted(parts))}")
    return parts[split]


def _rows(part: "datasets.Dataset", columns: Columns, name: str) -> Iterator[Row]:
    number = 0
    for batch in part.iter(batch_size=ROWS_AT_ONCE):
        for image, label in zip(batch[columns.image], batch[columns.label], strict=True):
            yield make_row(image, label, name, number)
            number += 1


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and log lines off the terminal."""
    import datasets
    from huggingface_hub import utils

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    shown = not datasets.are_progress_bars_disabled(), not utils.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown[0]:
            datasets.enable_progress_bars()
        if shown[1]:
            utils.enable_progress_bars()
