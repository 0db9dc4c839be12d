import pytest
import torch

from gaternet.data.augmentation import augment
from gaternet.data.batches import Loading, Order, evaluation_batches, training_batches
from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.data.settings import Augmentation, DataConfig
from gaternet.randomness import Purpose, permutation, sample_keys

CPU = torch.device("cpu")
NUMBERS = DataConfig("numbers", None, 1, 2, 1, (0.5,), (0.25,))
UNCHANGED = Augmentation(crop_padding=0, mirror=False)


def numbered(count: int) -> ImageSet:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return make_image_set(images.contiguous(), torch.arange(count), ["a"], "numbers")


def order(
    seed: int = 0, epoch: int = 0, batch_size: int = 4, augmentation: Augmentation = UNCHANGED
) -> Order:
    return Order(seed, epoch, batch_size, augmentation, NUMBERS)


def test_an_epoch_follows_the_counted_order_and_drops_the_ragged_end() -> None:
    batches = list(training_batches(numbered(23), order(5, 2), Loading(CPU)))
    assert [len(batch.indices) for batch in batches] == [4] * 5
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.tolist() == permutation(5, 2, 23)[:20].tolist()
    for index, images, labels in batches:
        assert torch.equal(labels, index)
        assert torch.equal(images[:, 0, 0, 0].long(), index)


@pytest.mark.parametrize("count", [20, 23])
def test_an_epoch_goes_on_from_any_batch(count: int) -> None:
    whole = list(training_batches(numbered(count), order(5, 2), Loading(CPU)))
    for first in range(6):
        rest = list(training_batches(numbered(count), order(5, 2), Loading(CPU), first))
        assert [b.indices.tolist() for b in rest] == [b.indices.tolist() for b in whole[first:]]


def test_orders_differ_between_epochs_and_seeds() -> None:
    def places(seed: int, epoch: int) -> list[int]:
        batches = training_batches(numbered(200), order(seed, epoch, 100), Loading(CPU))
        return torch.cat([batch.indices for batch in batches]).tolist()

    assert places(0, 0) == places(0, 0)
    assert len({tuple(places(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(places(0, 0)) == list(range(200))


def test_images_are_augmented_by_their_place_alone() -> None:
    images = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8)
    image_set = make_image_set(images, torch.zeros(23, dtype=torch.int64), ["a"], "random")
    how = Augmentation(crop_padding=2, cutout=3)
    data = DataConfig("random", None, 1, 8, 3, (0.5,) * 3, (0.25,) * 3)
    for batch in training_batches(image_set, Order(1, 4, 6, how, data), Loading(CPU)):
        for place, found in zip(batch.indices, batch.images, strict=True):
            keys = sample_keys(1, Purpose.AUGMENTATION, 4, place[None])
            assert torch.equal(found, augment(images[place][None], keys, how, data.mean)[0])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_have_parts_of_the_same_batches(ranks: int) -> None:
    whole = list(training_batches(numbered(23), order(5, 2), Loading(CPU)))
    parts = [
        list(training_batches(numbered(23), order(5, 2), Loading(CPU, rank, ranks)))
        for rank in range(ranks)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share.indices) for share in shares] == [4 // ranks] * ranks
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_evaluation_sees_every_image_once_in_order(batch_size: int, ranks: int) -> None:
    batches = [
        batch
        for rank in range(ranks)
        for batch in evaluation_batches(
            numbered(23), NUMBERS, batch_size, Loading(CPU, rank, ranks)
        )
    ]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(23))
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(23))
    assert torch.cat([batch.images for batch in batches])[:, 0, 1, 1].tolist() == list(range(23))


@pytest.mark.parametrize("held_on", ["cpu", "meta"])
def test_batches_come_to_the_device(held_on: str) -> None:
    image_set, meta = numbered(23).to(held_on), Loading(torch.device("meta"))
    batches = [
        next(training_batches(image_set, order(), meta)),
        next(evaluation_batches(image_set, NUMBERS, 4, meta)),
    ]
    assert {tensor.device.type for batch in batches for tensor in batch} == {"meta"}


@pytest.mark.parametrize("batch_size", [0, 24])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match="does not fit a set of 23 images"):
        next(training_batches(numbered(23), order(batch_size=batch_size), Loading(CPU)))


def test_ranks_that_do_not_divide_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="batch size 4 cannot be divided by 3 ranks"):
        next(training_batches(numbered(23), order(), Loading(CPU, 0, 3)))
    with pytest.raises(ValueError, match="rank 3 is not one of 3"):
        Loading(CPU, 3, 3)
