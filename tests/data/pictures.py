"""Small images on disk: folders by class and parquet files."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

SIZES = ((40, 52), (61, 33), (32, 32), (90, 120), (25, 70))


def picture(number: int) -> Image.Image:
    """Return an image of its own size, colours and mode."""
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert("L") if number % 7 == 3 else image


def encoded(number: int) -> bytes:
    """Return that image as a JPEG or a PNG file."""
    buffer = io.BytesIO()
    picture(number).save(buffer, "jpeg" if number % 2 else "png")
    return buffer.getvalue()


def write_folder(folder: Path, split: str, count: int, classes: Sequence[str]) -> list[Path]:
    """Write `count` images in SPLIT/CLASS/, every class in turn; return them sorted."""
    files = []
    for number in range(count):
        directory = folder / split / classes[number % len(classes)]
        directory.mkdir(parents=True, exist_ok=True)
        files.append(directory / f"{number:03}.{'jpg' if number % 2 else 'png'}")
        files[-1].write_bytes(encoded(number))
    return sorted(files)


def write_tables(
    folder: Path,
    split: str,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    classes: Sequence[str],
    shards: int,
) -> list[Path]:
    """Write parquet files as they are on the hub; return them sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(classes))
    )
    files = []
    for shard in range(shards):
        part = slice(shard * len(images) // shards, (shard + 1) * len(images) // shards)
        columns: dict[str, Any] = {
            "image": [image and {"bytes": image, "path": None} for image in images[part]],
            "label": list(labels[part]),
        }
        files.append(folder / f"{split}-{shard:05}-of-{shards:05}.parquet")
        datasets.Dataset.from_dict(columns, features=features).to_parquet(files[-1])
    return files


def png(pixels: np.ndarray, colour: int, bits: int, **chunks: bytes) -> bytes:
    """Write a PNG by hand: rows big-endian without a filter; `chunks` come before the pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *((name.encode(), value) for name, value in chunks.items())]
    parts += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
        for name, value in parts
    )
