"""Decoding against Pillow's own conversions and pixels worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gaternet.data.decoding import decode, decode_image, fit_to, resize, to_channels
from gaternet.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def pixels(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def test_rgb_is_kept_exactly(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "a.ppm"):
        Image.fromarray(COLOURS).save(tmp_path / name)
        assert torch.equal(decode_image(tmp_path / name), pixels(COLOURS))
    Image.fromarray(COLOURS).save(tmp_path / "a.webp", lossless=True)
    assert torch.equal(decode_image(tmp_path / "a.webp"), pixels(COLOURS))


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "CMYK"])
def test_other_modes_become_rgb_as_in_pillow(tmp_path: Path, mode: str) -> None:
    name = tmp_path / ("a.png" if mode in ("1", "L", "P") else "a.tif")
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(name)
    assert torch.equal(decode_image(name), pixels(np.asarray(image.convert("RGB"))))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    found = decode_image(tmp_path / "a.png")
    assert found[:, 0].tolist() == [[0, 0, 1, 1, 128, 255]] * 3


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = decode_image(tmp_path / "a.png")[:, 0].T.tolist()
    assert found == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    palette = Image.fromarray(np.zeros((1, 2), dtype=np.uint8), mode=None).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert decode_image(tmp_path / "p.png").unique().tolist() == [255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(COLOURS, k=-1)
    assert torch.equal(decode_image(tmp_path / "a.png"), pixels(expected))


def test_grey_stays_one_channel_until_asked(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[..., 0]).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").shape == (1, 6, 5)
    colour = decode_image(tmp_path / "a.png")
    assert colour.shape == (3, 6, 5)
    assert torch.equal(to_channels(colour, 1), decode(tmp_path / "a.png"))


def test_luma_equals_pillow() -> None:
    expected = np.asarray(Image.fromarray(COLOURS).convert("L"))
    assert torch.equal(to_channels(pixels(COLOURS), 1)[0], torch.from_numpy(expected.copy()))


def test_resize_equals_pillow_and_cuts_the_centre() -> None:
    array = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    scaled = Image.fromarray(array).resize((24, 16), Image.Resampling.BILINEAR)
    expected = pixels(np.asarray(scaled)[:, 4:20])
    assert (resize(pixels(array), 16).int() - expected.int()).abs().max() <= 1
    square = pixels(array[:, :40])
    assert torch.equal(resize(square, 40), square)
    assert fit_to(pixels(array), 8, 1).shape == (1, 8, 8)
    assert fit_to(pixels(array[:1, :1]), 8, 3).shape == (3, 8, 8)


def broken_files(folder: Path) -> dict[str, Path]:
    Image.fromarray(np.tile(COLOURS, (20, 20, 1))).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    contents = {
        "is empty": b"",
        "is not an image": b"%PDF-1.4 hello",
        "is a corrupt image": content[: len(content) // 2],
        "known format": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    files = {reason: folder / f"{len(reason)}.jpg" for reason in contents}
    for reason, data in contents.items():
        files[reason].write_bytes(data)
    return files


@pytest.mark.parametrize(
    "reason", ["is empty", "is not an image", "is a corrupt image", "known format"]
)
def test_broken_files_are_named(tmp_path: Path, reason: str) -> None:
    file = broken_files(tmp_path)[reason]
    with pytest.raises(UserError) as caught:
        decode_image(file)
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        decode_image(tmp_path / "no.png")
    with pytest.raises(UserError, match="is not a file"):
        decode_image(tmp_path)


@pytest.mark.parametrize("limit", [20, 10])  # where Pillow warns, and where it raises
def test_too_many_pixels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"a\.png has more than .* pixels"):
        decode_image(tmp_path / "a.png")
