"""Any bytes whatever, in place of an image: (3, H, W) uint8 or a UserError, nothing else."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples import damages, few, unless_refused
from gaternet.data.decoding import decode_image, fit_to

FORMATS = ("PNG", "JPEG", "progressive", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")


def whole(kind: str) -> bytes:
    """Return a small image of a format, with an orientation where the format has metadata."""
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(colours)
    if kind == "progressive":
        image.save(buffer, "JPEG", progressive=True, exif=exif)
    elif kind in ("BMP", "GIF", "PPM"):
        image.save(buffer, kind)
    else:
        image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def assert_decoded_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    image = unless_refused(lambda: decode_image(file), f"{file} ")
    if image is None:
        return
    assert image.dtype == torch.uint8
    assert image.ndim == 3
    assert len(image) == 3
    assert fit_to(image, 8, 3).shape == (3, 8, 8)


@few
@given(content=st.binary(max_size=512))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    assert_decoded_or_refused(tmp_path / "x.png", content)


@few
@given(data=st.data())
@pytest.mark.parametrize("kind", FORMATS)
def test_any_damage_of_any_format(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    content = whole(kind)
    for _ in range(data.draw(st.integers(1, 3))):
        content = data.draw(damages(content)) or b"\0"
    assert_decoded_or_refused(tmp_path / "x.png", content)


@few
@given(
    data=st.data(),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_any_size_and_mode(
    data: st.DataObject, mode: str, height: int, width: int, tmp_path: Path
) -> None:
    image = Image.new(mode, (width, height))
    file = tmp_path / "x.png"
    image.save(file)
    assert decode_image(file).shape == (3, height, width)
