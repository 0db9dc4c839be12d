"""Small files that claim to be large images: refused by name, measured in a child process."""

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png, write_tables
from PIL import Image

from bounded import Outcome, assert_refused, open_each
from gaternet.data.sources import load_in_memory
from gaternet.errors import UserError

SIDE = 50_000


def zeros(rows: int, row: bytes) -> bytes:
    """Return that many rows of zeros as zlib has them, without ever holding them all."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(row) for _ in range(rows)]
    return b"".join(parts) + packer.flush()


def chunk(name: bytes, value: bytes) -> bytes:
    return (
        struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
    )


CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Of PNG's colour types."""


def large_png(side: int, bits: int, colour: int, orientation: int = 1) -> bytes:
    """Write a black PNG; 50,000 × 50,000 of one bit are 300 kB and 2.5 billion pixels."""
    head = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    pixels = zeros(side, bytes(1 + side * bits * CHANNELS[colour] // 8))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0112, 3, 1, orientation, 0)
    parts = ((b"IHDR", head), (b"eXIf", exif), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def claimed(kind: str) -> bytes:
    """Return the first bytes of an image that says that it is 50,000 pixels wide and high."""
    side = struct.pack("<H", SIDE)
    if kind == "gif":
        frame = b"," + bytes(4) + side + side + b"\0\2\2\x44\1\0;"
        return b"GIF89a" + side + side + b"\x80\0\0" + bytes(6) + frame
    if kind == "bmp":
        head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head
    if kind == "ppm":
        return f"P6 {SIDE} {SIDE} 255\n".encode()
    if kind == "webp":
        size = (16_383).to_bytes(3, "little")
        frame = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size + size
        return b"RIFF" + struct.pack("<I", 4 + len(frame)) + b"WEBP" + frame
    tags = [(256, SIDE), (257, SIDE), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, SIDE)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def largest(kind: str, mode: str, **options: Any) -> bytes:
    """Return a black image as large as they may be."""
    buffer = io.BytesIO()
    Image.new(mode, (9400, 9400)).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(folder: Path) -> bytes:
    """Return a progressive JPEG whose header was made to say 50,000 × 50,000."""
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "small.jpg", progressive=True)
    content = (folder / "small.jpg").read_bytes()
    sides = content.index(b"\xff\xc2") + 5
    return content[:sides] + struct.pack(">HH", SIDE, SIDE) + content[sides + 4 :]


def many_frames(kind: str) -> bytes:
    """Return an animation of 2,000 frames."""
    frames = [Image.new("L", (8, 8), number % 256) for number in range(2000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def text_bomb() -> bytes:
    """Return a PNG with 200 MB of text, compressed to 200 kB."""
    text = b"Comment\0\0" + zeros(200, bytes(10**6))
    return png(np.zeros((4, 4), np.uint8), 0, 8, zTXt=text)


REFUSED = {
    "png": "more than 89 million pixels",
    "gif": "more than 89 million pixels",
    "bmp": "more than 89 million pixels",
    "ppm": "more than 89 million pixels",
    "tiff": "more than 89 million pixels",
    "webp": "corrupt image|more than 89 million pixels",
    "jpeg": "more than 89 million pixels",
    "text": "corrupt image",
    "length": "has more than 256 MiB",
}

TAKEN = {
    "gif of many frames": (200, [3, 8, 8]),
    "tiff of many frames": (200, [3, 8, 8]),
    "largest of three colours": (700, [3, 9400, 9400]),
    "largest that is transparent": (700, [3, 9400, 9400]),
    "largest grey that is transparent": (700, [3, 9400, 9400]),
    "largest that is turned": (700, [3, 9400, 9400]),
    "largest of four inks": (700, [3, 9400, 9400]),
    "largest WebP": (1500, [3, 9400, 9400]),
    "largest of 16 bits": (700, [3, 9400, 9400]),
}
"""What it may cost in MB, and the shape that comes out. Of two channels or more Pillow holds four
bytes a pixel, and the array three."""


def images(folder: Path) -> Iterator[tuple[str, bytes]]:
    yield "png", large_png(SIDE, 1, 0)
    yield "jpeg", jpeg(folder)
    yield "text", text_bomb()
    yield from ((kind, claimed(kind)) for kind in ("gif", "bmp", "ppm", "tiff", "webp"))
    yield "length", b""
    yield from ((f"{kind} of many frames", many_frames(kind)) for kind in ("gif", "tiff"))
    yield "largest of three colours", large_png(9400, 8, 2)
    yield "largest that is transparent", large_png(9400, 8, 6)
    yield "largest grey that is transparent", large_png(9400, 8, 4)
    yield "largest that is turned", large_png(9400, 8, 2, orientation=6)
    yield "largest of four inks", largest("tiff", "CMYK", compression="tiff_adobe_deflate")
    yield "largest WebP", largest("webp", "RGBA", lossless=True, method=0)
    yield "largest of 16 bits", large_png(9400, 16, 0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "sound.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8), 2, 8))
    files = {}
    for name, content in images(folder):
        files[name] = folder / f"{name}.png"
        files[name].write_bytes(content)
        assert len(content) < 10**6
    os.truncate(files["length"], 2**31)
    setup = (
        "from gaternet.data.decoding import decode_image\n"
        "def read(path): return list(decode_image(path).shape)\n"
        f"for name in {[str(folder / 'sound.png')]!r}: read(name)"
    )
    return open_each(setup, files)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_bomb_is_refused_in_little_memory(name: str, outcomes: dict[str, Outcome]) -> None:
    assert_refused(outcomes[name], rf"{name}\.png .*({REFUSED[name]})")


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_costs_what_its_pixels_do(name: str, outcomes: dict[str, Outcome]) -> None:
    megabytes, shape = TAKEN[name]
    assert outcomes[name].kind == "none", outcomes[name]
    assert outcomes[name].message == str(shape)
    assert outcomes[name].memory < megabytes * 10**6


def write_table(folder: Path, image: pa.Array, label: pa.Array, **options: Any) -> None:
    """Write a table that calls its columns images and class labels, whatever is in them."""
    folder.mkdir(exist_ok=True)
    said = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant"]}}
    about = {"huggingface": json.dumps({"info": {"features": said}})}
    table = pa.table({"image": image, "label": label}).replace_schema_metadata(about)
    pq.write_table(table, folder / "train.parquet", **options)


def test_bomb_in_a_data_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "ants"
    folder.mkdir(parents=True)
    (folder / "a.gif").write_bytes(claimed("gif"))
    with pytest.raises(UserError, match=r"ants/a\.gif has more than 89 million pixels"):
        load_in_memory(tmp_path, None, "train")


def test_bomb_in_a_table_is_named(tmp_path: Path) -> None:
    contents = [png(np.zeros((4, 4), np.uint8), 0, 8), claimed("gif")]
    write_tables(tmp_path, "train", contents, [0, 0], classes=["ant"], shards=1)
    with pytest.raises(UserError, match=r"parquet, row 1, has more than 89 million pixels"):
        load_in_memory(tmp_path, None, "train")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What becomes of tables of 200 MiB in some kilobytes, in both ways to read them."""
    folder = tmp_path_factory.mktemp("tables")
    image = png(np.zeros((4, 4), np.uint8), 0, 8)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for name, size, times, options in (
        ("sound", 0, 2, {}),
        ("one value", 2**20, 200, {}),
        ("pages of zeros", 2**20, 200, {"use_dictionary": False}),
        ("two values", 30 * 2**20, 2, {}),
    ):
        one = pa.array([{"bytes": image + bytes(size), "path": None}], kind)
        rows = pa.concat_arrays([one] * times)
        write_table(folder / name, rows, pa.array([0] * times), compression="zstd", **options)
        assert (folder / name / "train.parquet").stat().st_size < 10**5
    names = ("one value", "pages of zeros", "two values")
    files = {f"{way} {name}": folder / name / way for way in ("memory", "disk") for name in names}
    setup = (
        "from gaternet.data.sources import load_in_memory\n"
        "from gaternet.data.folders import find_files\n"
        "from gaternet.data.image_files import open_folder\n"
        "def read(path):\n"
        "    if path.name == 'memory': return len(load_in_memory(path.parent, None, 'train'))\n"
        "    return len(open_folder(find_files(path.parent), 'train', None, 'stop'))\n"
        f"for way in ('memory', 'disk'): read(Path({str(folder / 'sound')!r}, way))"
    )
    return open_each(setup, files)


@pytest.mark.parametrize("way", ["memory", "disk"])
@pytest.mark.parametrize("name", ["one value", "pages of zeros"])
def test_table_that_unpacks_to_far_more_is_refused(
    name: str, way: str, tables: dict[str, Outcome]
) -> None:
    assert_refused(tables[f"{way} {name}"], rf"{name}/train\.parquet has .* bytes and unpacks to")


@pytest.mark.parametrize("way", ["memory", "disk"])
def test_table_of_large_images_is_read(way: str, tables: dict[str, Outcome]) -> None:
    found = tables[f"{way} two values"]
    assert (found.kind, found.message) == ("none", "2")


def test_a_path_in_a_table_is_never_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(np.zeros((4, 4), np.uint8), 0, 8))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_table(
        tmp_path / "data",
        pa.array([{"bytes": None, "path": str(secret)}], kind),
        pa.array([0]),
    )
    with pytest.raises(UserError, match="row 0, holds no image: remove it"):
        load_in_memory(tmp_path / "data", None, "train")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        (pa.array([b"x"]), pa.array([0])),
        (pa.array([1]), pa.array([0])),
        (pa.array([{"bytes": "x", "path": None}]), pa.array([0])),
        (pa.array([{"bytes": b"x", "path": None}]), pa.array(["0"])),
    ],
)
def test_columns_that_are_not_what_they_say_are_refused(
    image: pa.Array, label: pa.Array, tmp_path: Path
) -> None:
    write_table(tmp_path, image, label)
    with pytest.raises(UserError, match=r"train\.parquet (holds|does not say|has no column)"):
        load_in_memory(tmp_path, None, "train")
