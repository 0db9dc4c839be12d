"""Which images a network classifies rightly, as text: to compare two networks on the same ones."""

import base64
import binascii

import numpy as np
from numpy.typing import NDArray


def pack(right: NDArray[np.bool_]) -> str:
    """Return right (N,) bool as base64: a bit an image, the first image's the highest of a byte."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, images: int) -> NDArray[np.bool_]:
    """Return (images,) bool; raise ValueError where the text is not of so many images."""
    try:
        packed = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is no base64 ({error})") from None
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    if len(packed) != -(-images // 8) or bits[images:].any():
        raise ValueError(f"it is not of {images:,} images")
    return bits[:images].astype(bool)
