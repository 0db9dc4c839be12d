"""Images of every kind, decoded as their pixels say or refused by name, in little memory."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import png
from PIL import Image, ImageCms
from torch import Tensor

from gaternet.data.cropping import Box
from gaternet.data.decoding import decode, decode_crop, decode_image, fit_to
from gaternet.errors import UserError
from terminal import Terminal

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 5), dtype=np.uint8)
ALPHA[0] = (0, 1, 128, 254, 255)


def found(file: Path) -> np.ndarray:
    """Return what is decoded, (H, W, 3)."""
    return decode_image(file).permute(1, 2, 0).numpy()


def mode_of(file: Path) -> str:
    with Image.open(file) as image:
        return image.mode


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay (H, W, 3) over white, exactly."""
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def assert_near(file: Path, expected: np.ndarray, tolerance: float = 1) -> None:
    pixels = found(file)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(float)).max() <= tolerance


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_alpha_is_laid_over_white(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind}"
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "webp" else {}
    Image.fromarray(np.dstack((COLOURS, ALPHA))).save(file, **options)
    assert_near(file, on_white(COLOURS, ALPHA))


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.dstack((GREY, ALPHA))).save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "LA"
    assert_near(tmp_path / "a.png", on_white(three(GREY), ALPHA))
    assert decode(tmp_path / "a.png").shape[0] == 1


def test_one_bit(tmp_path: Path) -> None:
    bits = GREY > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "1"
    assert_near(tmp_path / "a.png", three(bits * 255), 0)


def test_palette_with_alpha(tmp_path: Path) -> None:
    numbers = np.arange(30, dtype=np.uint8).reshape(6, 5)
    palette = np.random.default_rng(2).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(palette.tobytes())
    opacity = np.random.default_rng(3).integers(0, 256, 256, dtype=np.uint8)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "a.png", transparency=opacity.tobytes())
    assert mode_of(tmp_path / "a.png") == "P"
    assert_near(tmp_path / "plain.png", palette[numbers], 0)
    assert_near(tmp_path / "a.png", on_white(palette[numbers], opacity[numbers]))
    image.save(tmp_path / "a.gif", transparency=7)
    opaque = np.where(numbers == 7, 0, 255).astype(np.uint8)
    assert_near(tmp_path / "a.gif", on_white(palette[numbers], opaque), 0)


def test_sixteen_bits_by_hand(tmp_path: Path) -> None:
    deep = np.random.default_rng(4).integers(0, 65536, (6, 5), dtype=np.uint16)
    deep[0, :4] = (0, 255, 32768, 65535)
    (tmp_path / "grey.png").write_bytes(png(deep, 0, 16))
    assert_near(tmp_path / "grey.png", three(deep / 257), 0.5)
    colours = np.dstack((deep, deep.T.reshape(6, 5), deep[::-1]))
    (tmp_path / "colour.png").write_bytes(png(colours, 2, 16))
    assert_near(tmp_path / "colour.png", colours / 257)
    both = np.dstack((deep, np.full_like(deep, 65535)))
    (tmp_path / "alpha.png").write_bytes(png(both, 4, 16))
    assert_near(tmp_path / "alpha.png", three(deep / 257))
    transparent = struct.pack(">H", int(deep[2, 2]))
    (tmp_path / "clear.png").write_bytes(png(deep, 0, 16, tRNS=transparent))
    opaque = np.where(deep == deep[2, 2], 0, 255).astype(np.uint8)
    assert_near(tmp_path / "clear.png", on_white(three(deep / 257), opaque), 0.5)
    for name in ("a.tif", "a.pgm"):
        Image.fromarray(deep).save(tmp_path / name)
        assert_near(tmp_path / name, three(deep / 257), 0.5)


@pytest.mark.parametrize("kind", ["tiff", "jpeg"])
def test_four_inks(kind: str, tmp_path: Path) -> None:
    inks = np.random.default_rng(5).integers(0, 256, (1, 1, 4), dtype=np.uint8)
    inks = np.tile(inks, (16, 16, 1))
    Image.fromarray(inks, "CMYK").save(tmp_path / f"a.{kind}")
    assert mode_of(tmp_path / f"a.{kind}") == "CMYK"
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert_near(tmp_path / f"a.{kind}", expected, 1 if kind == "tiff" else 4)


def test_four_inks_as_luma_and_chroma(tmp_path: Path) -> None:
    """YCCK, which Adobe's marker tells: cyan, magenta and yellow as Y, Cb and Cr of 255 less them.

    They lie in the file inverted, as Adobe has all inks; so Y of neutral inks is the ink itself.
    """
    ink, black = 40, 200
    stored = np.full((16, 16, 4), (ink, 128, 128, 255 - black), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(255 - stored, "CMYK").save(buffer, "jpeg", quality=100)
    content = buffer.getvalue()
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    (tmp_path / "a.jpg").write_bytes(content[:transform] + b"\2" + content[transform + 1 :])
    value = (255 - ink) * (255 - black) / 255
    assert_near(tmp_path / "a.jpg", np.full((16, 16, 3), value), 2)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_first_frame_of_an_animation(kind: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 5, 3), level, dtype=np.uint8)) for level in (10, 90, 200)]
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    file = tmp_path / f"a.{kind}"
    frames[0].save(file, save_all=True, append_images=frames[1:], **options)
    with Image.open(file) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert_near(file, np.full((6, 5, 3), 10), 0)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""EXIF 2.3, Orientation: which sides of the upright image the stored row 0 and column 0 are."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpeg"])
def test_every_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    large = np.kron(COLOURS, np.ones((16, 16, 1), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{kind}"
    options: dict[str, dict[str, Any]] = {
        "webp": {"lossless": True},
        "jpeg": {"quality": 100, "subsampling": 0},
    }
    Image.fromarray(large).save(file, exif=exif, **options.get(kind, {}))
    expected = UPRIGHT[orientation](large)
    tolerance = 6 if kind == "jpeg" else 0
    assert_near(file, expected, tolerance)
    seen = []

    def choose(height: int, width: int) -> Box:
        seen.append((height, width))
        return Box(16, 32, 48, 48)

    part = decode_crop(file, choose, 48).permute(1, 2, 0).numpy()
    assert seen == [expected.shape[:2]]
    assert np.abs(part - expected[16:64, 32:80].astype(float)).max() <= tolerance


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"rubbish" * 9])
def test_broken_metadata_is_no_broken_image(exif: bytes, tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    assert_near(tmp_path / "a.png", COLOURS, 0)


def test_what_has_no_colours_of_eight_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((6, 5), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((6, 5), 10**6, dtype=np.int32)).save(tmp_path / "int.tif")
    lab = ImageCms.profileToProfile(
        Image.fromarray(COLOURS),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    for name, reason in (
        ("float.tif", "has floating-point numbers"),
        ("int.tif", "has numbers of 32 bits"),
        ("lab.tif", r"has colours in L\*a\*b\*"),
    ):
        with pytest.raises(UserError, match=rf"{name} {reason}: save it with"):
            decode_image(tmp_path / name)


def long_line(folder: Path) -> Path:
    file = folder / "line.png"
    file.write_bytes(png(np.zeros((1, 5_000_000), dtype=np.uint8), 0, 8))
    return file


def test_a_line_is_scaled_in_its_middle_alone(tmp_path: Path) -> None:
    image = decode_image(long_line(tmp_path))
    assert fit_to(image, 32, 3).shape == (3, 32, 32)  # all of it would be 5 GB
    assert fit_to(image.transpose(1, 2), 32, 3).shape == (3, 32, 32)


@pytest.mark.parametrize("sides", [(20, 33), (33, 20), (9, 140), (140, 9)])
def test_other_images_are_scaled_as_a_whole(sides: tuple[int, int]) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (*sides, 3), dtype=np.uint8)
    shorter = min(sides)
    height, width = (side * 16 // shorter for side in sides)
    whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    expected = np.asarray(whole)[top : top + 16, left : left + 16]
    image: Tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert np.abs(fit_to(image, 16, 3).permute(1, 2, 0).numpy() - expected.astype(float)).max() <= 1


def no_file(kind: str, folder: Path) -> Path:
    file = folder / "x.png"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "broken link":
        file.symlink_to(folder / "nowhere.png")
    elif kind == "long name":
        return folder / ("x" * 300 + ".png")
    elif kind == "below a file":
        file.write_bytes(b"")
        return file / "y.png"
    elif kind == "unreadable":
        return Path("/proc/self/mem")
    return file


NO_FILES = {
    "folder": "is not a file but a folder",
    "pipe": "is not a file but a pipe",
    "loop": "cannot be read: Too many levels of symbolic links",
    "broken link": "is a link that leads nowhere",
    "long name": "cannot be read: File name too long",
    "below a file": "cannot be read: Not a directory",
    "unreadable": "cannot be read: Input/output error",
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_named(
    kind: str, plain_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    file = no_file(kind, tmp_path)
    assert f"{file} {NO_FILES[kind]}" in terminal.fail(1, "predict", plain_run, file)


@pytest.mark.parametrize("kind", ["pipe", "loop", "broken link"])
def test_what_is_no_file_is_named_in_a_data_folder(
    kind: str, terminal: Terminal, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "train" / "ants"
    folder.mkdir(parents=True)
    Image.fromarray(GREY).save(folder / "a.png")
    file = no_file(kind, folder)
    words = ("train", "digits/resnet8", "--out", tmp_path / "new", "--data", tmp_path / "data")
    assert f"{file} {NO_FILES[kind]}" in terminal.fail(1, *words)
