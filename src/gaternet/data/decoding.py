"""From an image file to a uint8 tensor: one way for training and for prediction."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from gaternet.data.cropping import Box, cut
from gaternet.errors import UserError

# Formats that Pillow reads by itself: EPS, for one, would be handed to another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION = 0x0112  # EXIF: from 5 on, height and width are exchanged
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 1/65536, the weights of Pillow's convert("L")


def decode_image(path: str | Path) -> Tensor:
    """Return an image file as (3, H, W) uint8 in RGB, upright as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits become 8, what is transparent becomes white; of an
    animation it is the first frame. Raises UserError, naming the file, where it is missing, no
    image, corrupt, or larger than Pillow's limit of 89 million pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
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
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        height, width = reversed(image.size) if not turned else image.size
        box = choose(height, width)
        _reduce(image, min(box.height, box.width) // size)
        pixels = _tensor(image)
    return cut(pixels, _scaled(box, pixels.shape[1] / height, pixels.shape[2] / width), size)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image for decoding in the body, of which every failure becomes a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata: pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = source.read_bytes() if isinstance(source, Path) else source
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"has more than {limit} million pixels: make it smaller") from None
    except Image.UnidentifiedImageError:
        if not content:
            raise ValueError("is empty (0 bytes): replace or remove it") from None
        raise ValueError(f"is no image in a known format ({', '.join(_FORMATS)})") from None
    except Exception as error:  # decoders raise all kinds of errors on broken data
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        raise ValueError(
            f"is a corrupt image ({first_line(error)}): replace or remove it"
        ) from None


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(_pixels(ImageOps.exif_transpose(image))).permute(2, 0, 1)


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
    """Return (H, W, 1 or 3) uint8."""
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return ((values + 128) // 257).astype(np.uint8)[:, :, None]
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 bits a channel")
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
    CenterCrop; an image that has this size already comes back as it is.
    """
    height, width = image.shape[1:]
    shorter, wanted = min(height, width), shorter_side or size
    if shorter != wanted:
        scaled = [side * wanted // shorter for side in (height, width)]
        image = F.interpolate(image[None], scaled, mode="bilinear", antialias=True)[0]
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def fit_to(image: Tensor, size: int, channels: int, shorter_side: int | None = None) -> Tensor:
    """Return an image (1 or 3, H, W) uint8 as a network takes it: (channels, size, size) uint8."""
    return to_channels(resize(image, size, shorter_side), channels)
