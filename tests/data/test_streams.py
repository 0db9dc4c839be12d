"""Streams, with local shards in place of a hub."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import HfApi
from pictures import encoded, write_tables

from gaternet.data.batches import Batch, Loading, Order, evaluation_batches, training_batches
from gaternet.data.decoding import decode, fit_to
from gaternet.data.image_set import split_validation
from gaternet.data.settings import Augmentation, DataConfig
from gaternet.data.sources import OnBadImage, load
from gaternet.data.streams import HubStream
from gaternet.errors import UserError

CPU = torch.device("cpu")
COUNT = 43
NAMES = [f"class {number}" for number in range(COUNT)]
PETS = DataConfig(
    name="pets",
    hub="somebody/pets",
    classes=COUNT,
    image_size=24,
    channels=3,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    held="disk",
    shorter_side=28,
    test_split="validation",
)
CROPS = Augmentation(crop_padding=0, smallest_area=0.2)

Hub = Callable[[int], None]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Give a function that puts every image, each of its own class, into a number of shards."""

    class Info:
        sha = "c0ffee"

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: Info())
    contents: list[bytes | None] = [encoded(number) for number in range(COUNT)]
    contents[11] = b"no image" if "bad" in tmp_path.name else contents[11]

    def fill(shards: int) -> None:
        files = {
            split: write_tables(
                tmp_path / split, split, contents, range(COUNT), classes=NAMES, shards=shards
            )
            for split in ("train", "validation")
        }
        original = datasets.load_dataset

        def load_dataset(name: str, revision: str, streaming: bool) -> datasets.IterableDatasetDict:
            assert (name, revision, streaming) == ("somebody/pets", "c0ffee", True)
            found = original(
                "parquet",
                data_files={k: list(map(str, v)) for k, v in files.items()},
                streaming=True,
            )
            for split, part in found.items():
                size = datasets.SplitInfo(split, num_examples=COUNT)
                part.info.splits = datasets.SplitDict({split: size})
            return found

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return fill


def opened(split: str = "train", on_bad_image: OnBadImage = "stop") -> HubStream:
    images = load("somebody/pets", PETS, split, on_bad_image=on_bad_image)
    assert isinstance(images, HubStream)
    return images


def epoch(number: int, loading: Loading, size: int = 6, seed: int = 0) -> list[Batch]:
    how = Order(seed, number, size, CROPS, PETS)
    return list(training_batches(opened(), how, loading))


def labels_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.labels for batch in batches]).tolist()


def test_a_stream_says_what_it_holds(hub: Hub) -> None:
    hub(3)
    images = opened()
    assert (len(images), images.shards, images.name, images.split) == (COUNT, 3, "pets", "train")
    assert images.classes == tuple(NAMES)
    assert opened("test").split == "validation"
    assert opened("test").fingerprint != images.fingerprint == opened().fingerprint
    with pytest.raises(UserError, match="has 43 classes, pets has 3"):
        load("somebody/pets", replace(PETS, classes=3), "train")
    with pytest.raises(UserError, match="has no split 'extra': it has train, validation"):
        load("somebody/pets", PETS, "extra")


@pytest.mark.parametrize(
    ("shards", "ranks", "workers"),
    [(1, 1, 0), (7, 1, 0), (1, 3, 0), (3, 3, 0), (7, 2, 0), (1, 2, 2), (3, 2, 2), (7, 1, 2)],
)
def test_evaluation_sees_every_image_once(hub: Hub, shards: int, ranks: int, workers: int) -> None:
    hub(shards)
    images = opened("test")
    loadings = [Loading(CPU, rank, ranks, workers) for rank in range(ranks)]
    batches = [b for one in loadings for b in evaluation_batches(images, PETS, 4, one)]
    index, pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert sorted(labels.tolist()) == list(range(COUNT))
    assert len(set(index.tolist())) == COUNT
    for image, label in zip(pixels, labels.tolist(), strict=True):
        assert torch.equal(image, fit_to(decode(encoded(label)), 24, 3, 28))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_of_one_process_is_a_new_permutation(hub: Hub, workers: int) -> None:
    hub(4)
    loading = Loading(CPU, workers=workers)
    first = epoch(0, loading)
    assert [len(batch.labels) for batch in first] == [6] * 7
    assert len(set(labels_of(first))) == 42
    assert labels_of(first) != sorted(labels_of(first))
    for one, other in zip(first, epoch(0, loading), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    orders = [labels_of(epoch(number, loading, seed=seed)) for number in (0, 1) for seed in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("shards", [2, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_have_images_of_their_own(hub: Hub, shards: int, workers: int) -> None:
    hub(shards)
    parts = [epoch(0, Loading(CPU, rank, 2, workers), size=4) for rank in range(2)]
    assert [[len(batch.labels) for batch in part] for part in parts] == [[2] * 10] * 2
    mine, others = (set(labels_of(part)) for part in parts)
    assert not mine & others
    indices = [i for part in parts for batch in part for i in batch.indices.tolist()]
    assert len(set(indices)) == len(indices)


def test_fewer_shards_than_ranks(hub: Hub) -> None:
    hub(1)
    parts = [labels_of(epoch(0, Loading(CPU, rank, 3), size=6)) for rank in range(3)]
    assert len({label for part in parts for label in part}) == 42


def test_where_shards_are_unequal_a_rank_begins_again(hub: Hub) -> None:
    hub(3)  # one rank has two of them
    parts = [labels_of(epoch(0, Loading(CPU, rank, 2), size=4)) for rank in range(2)]
    assert [len(part) for part in parts] == [20, 20]
    assert sorted(len(set(part)) for part in parts)[0] in (14, 15)


def test_crops_follow_from_the_place(hub: Hub) -> None:
    hub(2)
    plain = Order(0, 0, 6, Augmentation(crop_padding=0, mirror=False), PETS)
    for batch in training_batches(opened(), plain, Loading(CPU)):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            assert torch.equal(image, fit_to(decode(encoded(label)), 24, 3, 28))


def test_bad_images_of_a_stream(hub: Hub, tmp_path: Path) -> None:
    hub(2)  # this test's folder has "bad" in its name, so image 11 is none
    name = "pets (shard 0), row 11,"
    how = Order(0, 0, 43, CROPS, PETS)
    for workers in (0, 2):
        loading = Loading(CPU, workers=workers)
        with pytest.raises(UserError, match=r"row 11, is not an image .* \(split validation\)"):
            list(evaluation_batches(opened("test", "skip"), PETS, 4, loading))
        with pytest.raises(UserError, match=r"row 11, is not an image .*skip \(split train\)"):
            list(training_batches(opened(), how, loading))
    images = opened(on_bad_image="skip")
    [batch] = training_batches(images, how, Loading(CPU))
    assert len(batch.labels) == 42
    assert images.skipped == {name}


def test_some_images_of_a_stream_in_memory(hub: Hub) -> None:
    hub(3)
    sample = opened().sample(20, PETS)
    assert sample.labels.tolist() == list(range(20))
    expected = [fit_to(decode(encoded(number)), 24, 3, 28) for number in range(20)]
    assert torch.equal(sample.images, torch.stack(expected))
    with pytest.raises(UserError, match=r"is streamed, so .* cannot be held out"):
        split_validation(opened(), 5, 0)


def test_a_stream_that_breaks_off_is_named(hub: Hub, tmp_path: Path) -> None:
    hub(2)
    images = opened("test")
    file = sorted((tmp_path / "validation").iterdir())[1]
    file.write_bytes(file.read_bytes()[:500])
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"pets \(shard 1\) cannot be read") as caught:
            list(evaluation_batches(images, PETS, 4, Loading(CPU, workers=workers)))
        assert "\n" not in str(caught.value)
