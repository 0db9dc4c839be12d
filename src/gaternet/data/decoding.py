"""From an image file to a uint8 tensor: one way for training and for prediction."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from gaternet.errors import UserError

# Formats that Pillow reads by itself: EPS, for one, would be handed to another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
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
    if not (source.stat().st_size if isinstance(source, Path) else len(source)):
        raise ValueError("is empty (0 bytes): replace or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata: pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = source if isinstance(source, Path) else io.BytesIO(source)
            with Image.open(opened, formats=_FORMATS) as image:
                pixels = _pixels(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"has more than {limit} million pixels: make it smaller") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"is no image in a known format ({', '.join(_FORMATS)})") from None
    except Exception as error:  # decoders raise all kinds of errors on broken data
        raise ValueError(
            f"is a corrupt image ({first_line(error)}): replace or remove it"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


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


def resize(image: Tensor, size: int) -> Tensor:
    """Return (C, size, size) uint8: the shorter side is scaled to `size`, then the centre is cut.

    An image that has this size already comes back as it is.
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    if shorter != size:
        scaled = [max(size, round(side * size / shorter)) for side in (height, width)]
        image = F.interpolate(image[None], scaled, mode="bilinear", antialias=True)[0]
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def fit_to(image: Tensor, size: int, channels: int) -> Tensor:
    """Return an image (1 or 3, H, W) uint8 as a network takes it: (channels, size, size) uint8."""
    return to_channels(resize(image, size), channels)
