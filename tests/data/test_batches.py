import pytest
import torch

from gaternet.data.batches import epoch_batches, evaluation_batches
from gaternet.data.image_set import ImageSet, make_image_set
from gaternet.randomness import permutation


def numbered(count: int) -> ImageSet:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return make_image_set(images.contiguous(), torch.arange(count), ["a"], "numbers")


def test_an_epoch_follows_the_counted_order_and_drops_the_ragged_end() -> None:
    batches = list(epoch_batches(numbered(23), seed=5, epoch=2, batch_size=4, device="cpu"))
    assert [len(batch.indices) for batch in batches] == [4] * 5
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.tolist() == permutation(5, 2, 23)[:20].tolist()
    for index, images, labels in batches:
        assert torch.equal(labels, index)
        assert torch.equal(images[:, 0, 0, 0].long(), index)


def test_orders_differ_between_epochs_and_seeds() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(numbered(200), seed, epoch, 100, "cpu")
        return torch.cat([batch.indices for batch in batches]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order(0, 0)) == list(range(200))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_evaluation_sees_every_image_once_in_order(batch_size: int) -> None:
    batches = list(evaluation_batches(numbered(23), batch_size, "cpu"))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(23))
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(23))
    assert torch.cat([batch.images for batch in batches])[:, 0, 1, 1].tolist() == list(range(23))


@pytest.mark.parametrize("batch_size", [0, 24])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match="does not fit a set of 23 images"):
        next(epoch_batches(numbered(23), 0, 0, batch_size, "cpu"))
