"""Which images are classified rightly, as text and back."""

import base64

import numpy as np
import pytest

from gaternet.right_images import Judged, pack, unpack


@pytest.mark.parametrize("images", [1, 7, 8, 9, 10_000])
def test_every_image_comes_back(images: int) -> None:
    right = np.random.default_rng(images).random(images) < 0.9
    np.testing.assert_array_equal(unpack(pack(right), images), right)


def test_first_image_is_the_highest_bit() -> None:
    right = np.array([1, 0, 0, 0, 0, 0, 1, 1, 0, 1], dtype=bool)
    assert base64.b64decode(pack(right)) == bytes([0b10000011, 0b01000000])


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("a*==", 1, "no base64"),
        ("ä", 8, "no base64"),
        (pack(np.ones(9, dtype=bool)), 8, "not of 8 images"),
        (pack(np.ones(9, dtype=bool)), 17, "not of 17 images"),
        (pack(np.ones(8, dtype=bool)), 7, "not of 7 images"),
    ],
)
def test_text_of_other_images_is_refused(text: str, images: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(text, images)


def test_judged_images_are_counted_and_told_from_others() -> None:
    judged = Judged(8, "abc", pack(np.arange(8) > 0))
    assert judged.error_percent == 12.5
    assert judged.is_of_same_images(Judged(8, "abc", pack(np.arange(8) > 3)))
    assert not judged.is_of_same_images(Judged(8, "abd", judged.right))
    assert not judged.is_of_same_images(Judged(7, "abc", pack(np.arange(7) > 3)))
    with pytest.raises(ValueError, match="at least one"):
        Judged(0, "abc", "")
    with pytest.raises(ValueError, match="not of 9 images"):
        Judged(9, "abc", judged.right)
