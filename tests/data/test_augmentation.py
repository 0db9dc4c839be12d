"""Batched augmentation against slow loops over torchvision's functions."""

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from gaternet.data.augmentation import augment, crop, cut_out, normalise
from gaternet.data.settings import CIFAR10, Augmentation
from gaternet.randomness import Purpose, sample_keys


def random_images(count: int, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def keys_of(count: int, epoch: int = 0) -> Tensor:
    return sample_keys(3, Purpose.AUGMENTATION, epoch, torch.arange(count))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_equals_torchvision(padding: int) -> None:
    images = random_images(40)
    offsets = torch.randint(0, 2 * padding + 1, (40, 2))
    mirrored = torch.rand(40) < 0.5
    expected = []
    for image, (top, left), flip in zip(images, offsets.tolist(), mirrored.tolist(), strict=True):
        one = TF.crop(TF.pad(image, [padding] * 4, fill=0), top, left, 9, 7)
        expected.append(TF.hflip(one) if flip else one)
    assert torch.equal(crop(images, offsets, mirrored, padding), torch.stack(expected))


@pytest.mark.parametrize("size", [1, 4, 5, 30])
def test_cutout_equals_a_loop_and_normalises_to_about_zero(size: int) -> None:
    images = random_images(30)
    centres = torch.stack((torch.randint(0, 9, (30,)), torch.randint(0, 7, (30,))), dim=1)
    expected = images.clone()
    levels = torch.tensor([round(255 * value) for value in CIFAR10.mean], dtype=torch.uint8)
    for image, (row, column) in zip(expected, centres.tolist(), strict=True):
        top, left = row - size // 2, column - size // 2
        rows = slice(max(0, top), max(0, top + size))
        image[:, rows, max(0, left) : max(0, left + size)] = levels[:, None, None]
    found = cut_out(images, centres, size, CIFAR10.mean)
    assert torch.equal(found, expected)
    blank = torch.zeros_like(images[:1]) + levels[:, None, None]
    assert normalise(blank, CIFAR10.mean, CIFAR10.std).abs().max() < 0.5 / 255 / min(CIFAR10.std)


def test_normalise_equals_torchvision() -> None:
    images = random_images(5)
    expected = TF.normalize(images / 255, list(CIFAR10.mean), list(CIFAR10.std))
    found = normalise(images, CIFAR10.mean, CIFAR10.std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    images, keys = random_images(50), keys_of(50)
    settings = Augmentation(crop_padding=2, cutout=3)
    together = augment(images, keys, settings, CIFAR10.mean)
    order = torch.randperm(50)
    assert torch.equal(augment(images[order], keys[order], settings, CIFAR10.mean), together[order])
    alone = [augment(images[i : i + 1], keys[i : i + 1], settings, CIFAR10.mean) for i in range(50)]
    assert torch.equal(torch.cat(alone), together)
    assert not torch.equal(augment(images, keys_of(50, epoch=1), settings, CIFAR10.mean), together)


def test_crops_and_flips_are_uniform_and_independent() -> None:
    count, padding = 40_000, 2
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(count, 1, 5, 5)
    centre = augment(image, keys_of(count), Augmentation(crop_padding=padding))[:, 0, 2, 1:4]
    # The pixel at the centre tells the crop (one of 25), its neighbours the flip.
    left, middle, right = centre.long().unbind(1)
    mirrored = (left == middle + 1) | (right == middle - 1)
    outcome = (middle - 1) * 2 + mirrored
    counts = outcome.bincount(minlength=50)
    assert len(counts) == 50
    chi_squared = float(((counts - count / 50) ** 2 / (count / 50)).sum())
    assert chi_squared < 85.4  # 99.9 % point for 49 degrees of freedom


def test_switching_one_change_off_leaves_the_others() -> None:
    images, keys = random_images(30), keys_of(30)
    both = augment(images, keys, Augmentation(crop_padding=2))
    unflipped = augment(images, keys, Augmentation(crop_padding=2, mirror=False))
    flipped = (both != unflipped).flatten(1).any(dim=1)
    assert 5 < int(flipped.sum()) < 25
    assert torch.equal(both[flipped], unflipped[flipped].flip(3))
    assert torch.equal(augment(images, keys, Augmentation(0, False, 0)), images)


def test_cutout_needs_a_mean() -> None:
    with pytest.raises(ValueError, match="give augment a mean"):
        augment(random_images(2), keys_of(2), Augmentation(cutout=2))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="crop_padding is -1"):
        Augmentation(crop_padding=-1)
