"""Crops against torchvision's: the same distribution, the same pixels."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from gaternet.data.augmentation import augment, box_draws, draws_of
from gaternet.data.cropping import BOX_DRAWS, Box, cut, random_box, scale
from gaternet.data.decoding import decode, decode_crop, resize
from gaternet.data.settings import Augmentation
from gaternet.randomness import Purpose, sample_keys


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return smooth colours, as photographs have."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95)
    return buffer.getvalue()


def boxes(count: int, height: int, width: int, smallest_area: float) -> np.ndarray:
    keys = sample_keys(3, Purpose.AUGMENTATION, 1, torch.arange(count))
    draws = box_draws(draws_of(keys)).tolist()
    return np.array([random_box(row, height, width, smallest_area) for row in draws])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 4000
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    make = v2.RandomResizedCrop(224, scale=(0.08, 1)).make_params
    drawn = [make([image]) for _ in range(count)]
    expected = np.array([[p[key] for key in ("top", "left", "height", "width")] for p in drawn])
    found = boxes(count, height, width, 0.08)
    for column in range(4):
        assert stats.ks_2samp(found[:, column], expected[:, column]).pvalue > 1e-3
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]):
        assert stats.ks_2samp(measure(found), measure(expected)).pvalue > 1e-3
    assert (found[:, :2] >= 0).all()
    assert (found[:, 0] + found[:, 2] <= height).all()
    assert (found[:, 1] + found[:, 3] <= width).all()


def test_where_no_try_fits_it_is_the_centre() -> None:
    assert random_box([0.3] * BOX_DRAWS, 10, 100, 1.0) == Box(0, 43, 10, 13)
    assert random_box([0.3] * BOX_DRAWS, 100, 10, 1.0) == Box(43, 0, 13, 10)
    assert random_box([0.5] * BOX_DRAWS, 100, 100, 1.0) == Box(0, 0, 100, 100)


def test_a_cut_equals_torchvisions_resized_crop() -> None:
    image = torch.from_numpy(np.array(picture(90, 120))).permute(2, 0, 1)
    for box in (Box(3, 5, 60, 70), Box(10, 20, 20, 16), Box(0, 0, 32, 32)):
        expected = tv.resized_crop(image, *box, [32, 32], antialias=True)
        assert (cut(image, box, 32).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(90, 120), (131, 77), (64, 64), (30, 41)])
def test_the_evaluation_crop_equals_torchvisions(shape: tuple[int, int]) -> None:
    image = torch.from_numpy(np.array(picture(*shape))).permute(2, 0, 1)
    expected = v2.CenterCrop(56)(v2.Resize(64, antialias=True)(image))
    found = resize(image, 56, shorter_side=64)
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().max() <= 1


def chosen(height: int, width: int, box: Box, seen: list[tuple[int, int]]) -> Box:
    seen.append((height, width))
    return box


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 0), ("jpeg", 6)])
def test_part_of_a_large_image_is_the_same_at_reduced_size(kind: str, tolerance: int) -> None:
    content = encoded(picture(400, 600), kind)
    seen: list[tuple[int, int]] = []
    for box in (Box(40, 80, 296, 320), Box(8, 16, 64, 64), Box(0, 0, 400, 600)):
        choose: Callable[[int, int], Box] = partial(chosen, box=box, seen=seen)
        found = decode_crop(content, choose, 32)
        assert found.shape == (3, 32, 32)
        assert (found.int() - cut(decode(content), box, 32).int()).abs().max() <= tolerance
    assert seen == [(400, 600)] * 3


def test_a_jpeg_is_reduced_only_as_far_as_its_part_allows() -> None:
    fine = np.tile(np.array([[0, 255], [255, 0]], dtype=np.uint8), (64, 64))
    content = encoded(Image.fromarray(fine), "jpeg")
    whole = cut(decode(content), Box(0, 0, 32, 32), 32)
    assert torch.equal(decode_crop(content, lambda *_: Box(0, 0, 32, 32), 32), whole)
    halved = decode_crop(content, lambda *_: Box(0, 0, 64, 64), 32)
    assert halved.float().std() < 2 < whole.float().std()


def test_parts_lie_in_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(40, 60).save(buffer, "png", exif=exif)
    seen: list[tuple[int, int]] = []
    box = Box(10, 5, 16, 16)
    found = decode_crop(buffer.getvalue(), partial(chosen, box=box, seen=seen), 16)
    assert seen == [(60, 40)]
    upright = torch.from_numpy(np.rot90(np.array(picture(40, 60)), k=-1).copy()).permute(2, 0, 1)
    assert torch.equal(found, upright[:, 10:26, 5:21])


def test_images_in_memory_are_cropped_alike() -> None:
    images = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)
    keys = sample_keys(0, Purpose.AUGMENTATION, 0, torch.arange(5))
    how = Augmentation(crop_padding=0, mirror=False, smallest_area=0.3)
    expected = [
        cut(image, random_box(row, 24, 24, 0.3), 24)
        for image, row in zip(images, box_draws(draws_of(keys)).tolist(), strict=True)
    ]
    found = augment(images, keys, how)
    assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found, images)


def test_gpus_scale_no_integers() -> None:
    """The meta device stands for one."""
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="meta")
    found = scale(images, 4)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (2, 3, 4, 4))
