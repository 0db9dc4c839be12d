"""Which test images a network classifies rightly: networks are compared on the same ones."""

import base64
import binascii
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ROUNDED = 0.001
"""Percentage points that an error may be off: three digits are written down."""


@dataclass(frozen=True)
class Judged:
    """Test images, and those of them that a network classifies rightly.

    images: how many
    fingerprint: of the images, which tells them from others
    right: those that are classified rightly, as `pack` writes them

    Raises ValueError for no images, and where `right` is not of so many.
    """

    images: int
    fingerprint: str
    right: str

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError("images: there is at least one")
        unpack(self.right, self.images)

    @cached_property
    def bits(self) -> NDArray[np.bool_]:
        """Which images are classified rightly, (images,) bool, in their order."""
        return unpack(self.right, self.images)

    @property
    def error_percent(self) -> float:
        """Share of the images that are not."""
        return 100 * (1 - float(self.bits.mean()))

    def check(self, error_percent: float) -> None:
        """Raise ValueError where that is not the error on these images."""
        if abs(self.error_percent - error_percent) > ROUNDED:
            raise ValueError(
                f"judged: of {self.error_percent:.3f} % error, not {error_percent:.3f} %"
            )

    def is_of_same_images(self, other: "Judged") -> bool:
        """Whether both networks saw the same images."""
        return (self.images, self.fingerprint) == (other.images, other.fingerprint)


def pack(right: NDArray[np.bool_]) -> str:
    """Return right (N,) bool as base64: a bit an image, the first image's the highest of a byte."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, images: int) -> NDArray[np.bool_]:
    """Return (images,) bool; raise ValueError where the text is not of so many images."""
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"right: no base64 ({error})") from None
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    if len(packed) != -(-images // 8) or bits[images:].any():
        raise ValueError(f"right: not of {images:,} images")
    return bits[:images].astype(bool)
