"""From an image file to a uint8 tensor: one way for training and for prediction."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gaternet.data.cropping import Box, cut
from gaternet.errors import UserError
from gaternet.given_files import describe_pickle, size_of

# Formats that Pillow reads by itself: EPS, for one, would be handed to another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MAX_BYTES = 2**28  # of a file; 89 million pixels of three bytes each are as many
_HEAD = 4096
_MAX_ASPECT = 16  # of what is scaled: beyond, a network's crop sees the middle alone
_ROWS_AT_ONCE = 256
_ORIENTATION = 0x0112  # EXIF: from 5 on, height and width are exchanged
_FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}  # dimensions of (C, H, W)
_UNTAKEN = {"F": "floating-point numbers", "LAB": "colours in L*a*b*", "HSV": "colours in HSV"}
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 1/65536, the weights of Pillow's convert("L")


def decode_image(path: str | Path) -> Tensor:
    """Return an image file as (3, H, W) uint8 in RGB, upright as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits become 8, what is transparent becomes white; of an
    animation it is the first frame. Raises UserError, naming the file, where it is missing, no
    image, corrupt, or larger than 256 MiB or Pillow's limit of 89 million pixels.
    """
    path = Path(path)
    size_of(path)
    try:
        return to_channels(decode(path), 3)
    except ValueError as error:
        raise UserError(f"{path} {error}") from None


def decode(source: Path | bytes) -> Tensor:
    """Return an image, from a file or its bytes, as (C, H, W) uint8: C is 1 where it is grey, or 3.

    Raises ValueError, with the reason in words that follow the image's name.
    """
    with _opened(source) as image:
        return _tensor(image)


def decode_crop(source: Path | bytes, choose: Callable[[int, int], Box], size: int) -> Tensor:
    """Return a part of an image, scaled to (C, size, size) uint8: C is 1 where it is grey, or 3.

    `choose` says which, from the image's height and width. A JPEG is decoded at 1/2, 1/4 or 1/8 of
    its size where the part still has as many pixels as are asked for, and its edges are rounded to
    those: quicker where photographs are large. Raises ValueError as `decode` does.
    """
    with _opened(source) as image:
        height, width = reversed(image.size) if _orientation(image) < 5 else image.size
        box = choose(height, width)
        _reduce(image, min(box.height, box.width) // size)
        pixels = _tensor(image)
    return cut(pixels, _scaled(box, pixels.shape[1] / height, pixels.shape[2] / width), size)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image for decoding in the body, in which every fault of it becomes a ValueError.

    Faults of the machine do not, since whoever skips bad images would skip good ones: there is a
    UserError for what the system says of a file, and a MemoryError stays one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata: pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _stream(source) as stream:
                head = stream.read(_HEAD)
                stream.seek(0)
                with Image.open(stream, formats=_FORMATS) as image:
                    yield image
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"has more than {limit} million pixels: make it smaller") from None
    except Image.UnidentifiedImageError:
        if not head:
            raise ValueError("is empty (0 bytes): replace or remove it") from None
        known = f"is not an image in a known format ({', '.join(_FORMATS)})"
        raise ValueError(describe_pickle(head) or known) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of errors on broken data
        if isinstance(error, OSError) and error.strerror and isinstance(source, Path):
            raise UserError(f"{source} cannot be read: {error.strerror}") from None
        raise ValueError(
            f"is a corrupt image ({first_line(error)}): replace or remove it"
        ) from None


class _RefusedError(Exception):
    """Why an image that is whole is not taken, in words that follow its name."""


def _stream(source: Path | bytes) -> BinaryIO:
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > _MAX_BYTES:
        raise _RefusedError(f"has more than {_MAX_BYTES >> 20} MiB: make it smaller")
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def _tensor(image: Image.Image) -> Tensor:
    orientation = _orientation(image)
    pixels = torch.from_numpy(_pixels(image)).permute(2, 0, 1)
    image.close()  # lets go of what Pillow holds, before the pixels are there twice
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(_FLIPPED[orientation]) if orientation in _FLIPPED else pixels


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is left to be applied, 1 to 8."""
    if image.format == "TIFF":
        image.load()  # Pillow turns these itself
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of all kinds, where the metadata is broken: pixels are what counts
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _reduce(image: Image.Image, times: int) -> None:
    """Have a JPEG decoded at the smallest size that is at least 1/times of its own."""
    factor = next((factor for factor in (8, 4, 2) if factor <= times), 1)
    if factor > 1 and image.format == "JPEG":
        image.draft(image.mode, (image.width // factor, image.height // factor))


def _scaled(box: Box, rows: float, columns: float) -> Box:
    top, left, height, width = box
    return Box(
        round(top * rows), round(left * columns), round(height * rows), round(width * columns)
    )


def first_line(error: Exception) -> str:
    """Return what another library's error says, short enough for a message of one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _pixels(image: Image.Image) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8; a few rows at a time, so that what lies between is small."""
    if image.mode in _SIXTEEN_BITS:
        return _eight_bits(np.asarray(image), image.info.get("transparency"))
    if image.mode in _UNTAKEN:
        raise _RefusedError(f"has {_UNTAKEN[image.mode]}: save it with 8 bits a channel in RGB")
    image.load()
    width, height = image.size
    if height <= _ROWS_AT_ONCE:
        return _composed(image)
    ends = [*range(_ROWS_AT_ONCE, height, _ROWS_AT_ONCE), height]
    bands = (_composed(image.crop((0, start, width, end))) for start, end in pairwise([0, *ends]))
    first = next(bands)
    pixels = np.empty((height, *first.shape[1:]), dtype=np.uint8)
    for start, band in zip((0, *ends), chain((first,), bands), strict=False):
        pixels[start : start + len(band)] = band
    return pixels


def _composed(image: Image.Image) -> np.ndarray:
    """Return (H, W, 1 or 3) uint8, laid over white where it is transparent."""
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if grey else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    values = np.array(image)
    return values if values.ndim == 3 else values[:, :, None]


def _eight_bits(values: np.ndarray, transparent: object) -> np.ndarray:
    """Return (H, W) of 0 to 65,535 as (H, W, 1) uint8, rounded; one level may be transparent."""
    levels = np.empty((*values.shape, 1), dtype=np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):  # four times as large while it is computed
        part = values[start : start + _ROWS_AT_ONCE].astype(np.int32)
        if part.min() < 0 or part.max() > 65535:
            raise _RefusedError("has numbers of 32 bits: save it with 8 or 16 bits a channel")
        scaled = (part + 128) // 257
        if isinstance(transparent, int):
            scaled[part == transparent] = 255
        levels[start : start + _ROWS_AT_ONCE, :, 0] = scaled
    return levels


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Return an image (1 or 3, H, W) uint8 with as many channels: grey repeated, or RGB's luma."""
    if len(image) == channels:
        return image
    if len(image) == 1:
        return image.expand(channels, -1, -1)
    if channels != 1:
        raise ValueError(f"cannot make {channels} channels of {len(image)}")
    weights = torch.tensor(_LUMA)[:, None, None]
    luma = (image.to(torch.int64) * weights).sum(dim=0, keepdim=True) + 0x8000
    return (luma >> 16).to(torch.uint8)


def resize(image: Tensor, size: int, shorter_side: int | None = None) -> Tensor:
    """Return (C, size, size) uint8: the shorter side is scaled, then the centre is cut.

    It is scaled to `shorter_side` pixels, or to `size` without one, as by torchvision's Resize and
    CenterCrop; an image that has this size already comes back as it is. Of one that is more than 16
    times as long as it is wide, only the middle is scaled.
    """
    image = _centre(image, _MAX_ASPECT * min(image.shape[1:]))
    height, width = image.shape[1:]
    shorter, wanted = min(height, width), shorter_side or size
    if shorter != wanted:
        scaled = [side * wanted // shorter for side in (height, width)]
        image = F.interpolate(image[None], scaled, mode="bilinear", antialias=True)[0]
    return _centre(image, size)


def _centre(image: Tensor, size: int) -> Tensor:
    """Return at most `size` rows and columns around the centre of an image (C, H, W)."""
    top, left = (max(0, round((side - size) / 2)) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def fit_to(image: Tensor, size: int, channels: int, shorter_side: int | None = None) -> Tensor:
    """Return an image (1 or 3, H, W) uint8 as a network takes it: (channels, size, size) uint8."""
    return to_channels(resize(image, size, shorter_side), channels)
