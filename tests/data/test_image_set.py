import pytest
import torch

from gaternet.data.image_set import (
    ImageSet,
    channel_statistics,
    describe,
    make_image_set,
    split_validation,
)


def random_set(count: int = 100, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return make_image_set(images, labels, ("cat", "dog"), "pets")


def test_fingerprint_follows_every_part() -> None:
    base = random_set()
    assert base.fingerprint == random_set().fingerprint
    assert len(base.fingerprint) == 16
    flipped = base.images.clone()
    flipped[50, 1, 2, 3] ^= 1
    others = [
        make_image_set(flipped, base.labels, base.classes, "pets"),
        make_image_set(base.images, 1 - base.labels, base.classes, "pets"),
        make_image_set(base.images, base.labels, ("cat", "cow"), "pets"),
        make_image_set(base.images.reshape(100, 3, 2, 8), base.labels, base.classes, "pets"),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5
    renamed = make_image_set(base.images, base.labels, base.classes, "animals")
    assert renamed.fingerprint == base.fingerprint


def test_validation_is_held_out_at_random_by_seed_and_size_alone() -> None:
    data = make_image_set(
        torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.arange(100), ("a",), "x"
    )
    train, validation = split_validation(data, 20, seed=1)
    assert sorted([*train.labels.tolist(), *validation.labels.tolist()]) == list(range(100))
    assert len(validation) == 20
    again = split_validation(random_set(100), 20, seed=1)[1]
    assert torch.equal(again.images, random_set(100).images[validation.labels])
    assert split_validation(data, 20, seed=2)[1].fingerprint != validation.fingerprint
    larger = split_validation(data, 30, seed=1)[1]
    assert set(validation.labels.tolist()) < set(larger.labels.tolist())
    assert validation.labels.tolist() != list(range(20))
    for part in (train, validation):
        assert part.labels.tolist() == sorted(part.labels.tolist())


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_validation_part_that_leaves_nothing_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="of 100 images"):
        split_validation(random_set(), size, 0)


def test_statistics_equal_torch() -> None:
    data = random_set(2000)
    mean, std = channel_statistics(data)
    values = data.images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), values.mean(dim=(0, 2, 3)))
    expected = values.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected)


def test_a_set_describes_itself() -> None:
    config = describe(random_set())
    assert (config.name, config.classes, config.image_size, config.channels) == ("pets", 2, 4, 3)
    assert config.mean == channel_statistics(random_set())[0]


def test_wrong_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be .* uint8"):
        ImageSet(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), ("a",), "x", "0")
    with pytest.raises(ValueError, match=r"labels must be .* int64"):
        ImageSet(
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), ("a",), "x", "0"
        )
