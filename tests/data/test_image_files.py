"""Images that stay on disk: order, crops, worker processes, ranks, bad images."""

import errno
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import encoded, write_folder, write_tables
from PIL import Image, ImageFile
from torch import Tensor

from gaternet.data.augmentation import augment, box_draws, draws_of, normalise
from gaternet.data.batches import (
    Batch,
    Loading,
    Order,
    evaluation_batches,
    normalised_batches,
    training_batches,
)
from gaternet.data.cropping import random_box
from gaternet.data.decoding import decode, decode_crop, decode_image, fit_to
from gaternet.data.image_files import ImageFiles
from gaternet.data.image_set import ImageSet, split_validation
from gaternet.data.readers import Row
from gaternet.data.settings import IMAGENET, Augmentation, DataConfig
from gaternet.data.sources import OnBadImage, load, load_in_memory
from gaternet.errors import UserError
from gaternet.randomness import Purpose, permutation, sample_keys

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow")
COUNT = 26
PETS = DataConfig(
    "pets",
    None,
    3,
    24,
    3,
    (0.5,) * 3,
    (0.25,) * 3,
    held="disk",
    shorter_side=28,
    test_split="validation",
)
CROPS = Augmentation(crop_padding=0, cutout=5, smallest_area=0.2)


def order(epoch: int = 1, augmentation: Augmentation = CROPS, batch_size: int = 8) -> Order:
    return Order(7, epoch, batch_size, augmentation, PETS)


def opened(folder: Path, split: str = "train", on_bad_image: OnBadImage = "stop") -> ImageFiles:
    images = load(folder, PETS, split, on_bad_image=on_bad_image)
    assert isinstance(images, ImageFiles)
    return images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", COUNT), ("val", 11)):
        write_folder(tmp_path / "pets", split, count, CLASSES)
    return tmp_path / "pets"


def files_of(folder: Path, split: str = "train") -> list[Path]:
    return sorted((folder / split).glob("*/*"))


@pytest.fixture
def tables(folder: Path, tmp_path: Path) -> Path:
    for split, found in (("train", "train"), ("val", "validation")):
        files = files_of(folder, split)
        labels = [CLASSES.index(file.parent.name) for file in files]
        write_tables(
            tmp_path / "tables",
            found,
            [file.read_bytes() for file in files],
            labels,
            classes=CLASSES,
            shards=3,
        )
    return tmp_path / "tables"


def expected(files: Sequence[Path], how: Order) -> list[Batch]:
    """Return an epoch's batches by a slow loop over single images."""
    places = permutation(how.seed, how.epoch, len(files))
    batches = []
    for start in range(0, len(files) - how.batch_size + 1, how.batch_size):
        index = places[start : start + how.batch_size]
        images = []
        for place in index:
            keys = sample_keys(how.seed, Purpose.AUGMENTATION, how.epoch, place[None])
            content = files[place].read_bytes()
            row = box_draws(draws_of(keys))[0].tolist()
            area = how.augmentation.smallest_area
            if area:
                image = decode_crop(content, lambda h, w: random_box(row, h, w, area), 24)  # noqa: B023
            else:
                image = fit_to(decode_image(files[place]), 24, 3, 28)
            rest = replace(how.augmentation, smallest_area=0.0)
            images.append(augment(image.expand(1, 3, -1, -1), keys, rest, PETS.mean)[0])
        labels = [CLASSES.index(files[place].parent.name) for place in index]
        batches.append(Batch(index, torch.stack(images), torch.tensor(labels)))
    return batches


def assert_same(found: Sequence[Batch], wanted: Sequence[Batch]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("how", [CROPS, Augmentation(), Augmentation(crop_padding=0)])
def test_training_batches_equal_a_slow_loop(folder: Path, how: Augmentation, epoch: int) -> None:
    found = list(training_batches(opened(folder), order(epoch, how), Loading(CPU)))
    assert_same(found, expected(files_of(folder), order(epoch, how)))


@pytest.mark.parametrize("kind", ["folder", "tables"])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder: Path, tables: Path, kind: str, workers: int) -> None:
    images = opened({"folder": folder, "tables": tables}[kind])
    state = torch.get_rng_state()
    found = list(training_batches(images, order(), Loading(CPU, workers=workers)))
    assert_same(found, expected(files_of(folder), order()))
    assert torch.equal(torch.get_rng_state(), state)
    some = list(evaluation_batches(images, PETS, 4, Loading(CPU, workers=workers)))
    assert_same(some, list(evaluation_batches(images, PETS, 4, Loading(CPU))))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_parts_of_the_same_batches(folder: Path, ranks: int) -> None:
    images = opened(folder)
    parts = [
        list(training_batches(images, order(), Loading(CPU, rank, ranks))) for rank in range(ranks)
    ]
    joined = [
        Batch(*(torch.cat(column) for column in zip(*shares, strict=True)))
        for shares in zip(*parts, strict=True)
    ]
    assert_same(joined, list(training_batches(images, order(), Loading(CPU))))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_image_once(folder: Path, ranks: int) -> None:
    files = files_of(folder, "val")
    images = opened(folder, "test")
    loadings = [Loading(CPU, rank, ranks) for rank in range(ranks)]
    batches = [b for one in loadings for b in evaluation_batches(images, PETS, 4, one)]
    index, pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert index.tolist() == list(range(11))
    assert labels.tolist() == [CLASSES.index(file.parent.name) for file in files]
    assert torch.equal(pixels, torch.stack([fit_to(decode_image(f), 24, 3, 28) for f in files]))
    [normalised] = normalised_batches(images, PETS, CPU)
    assert torch.equal(normalised, normalise(pixels, PETS.mean, PETS.std))


def everything(images: ImageFiles | ImageSet) -> Tensor:
    return torch.cat([b.images for b in evaluation_batches(images, PETS, 5, Loading(CPU))])


def test_parquet_files_equal_a_folder(folder: Path, tables: Path) -> None:
    for split in ("train", "test"):
        one, other = opened(folder, split), opened(tables, split)
        assert (len(one), one.classes, one.split) == (len(other), other.classes, other.split)
        assert torch.equal(everything(one), everything(other))
    assert_same(
        list(training_batches(opened(tables), order(), Loading(CPU))),
        expected(files_of(folder), order()),
    )


def test_memory_equals_disk(folder: Path) -> None:
    held = load_in_memory(folder, replace(PETS, held="memory"), "train", image_size=24)
    assert torch.equal(held.images, everything(opened(folder)))
    assert isinstance(load(folder, replace(PETS, held="memory"), "train", 24), ImageSet)


def test_parts_of_a_set(folder: Path) -> None:
    images = opened(folder)
    whole = everything(images)
    kept, held = split_validation(images, 6, seed=0)
    in_memory = load_in_memory(folder, PETS, "train", image_size=24)
    for part, other in zip((kept, held), split_validation(in_memory, 6, seed=0), strict=True):
        assert torch.equal(everything(part), other.images)
    assert len({images.fingerprint, kept.fingerprint, held.fingerprint}) == 3
    assert kept.fingerprint == split_validation(images, 6, seed=0)[0].fingerprint
    index = torch.tensor([4, 2])
    assert torch.equal(everything(images.take(index)), whole[index])


def test_a_set_survives_pickling_and_is_small(folder: Path, tables: Path) -> None:
    for path in (folder, tables):
        images = opened(path)
        copy = pickle.loads(pickle.dumps(images))
        assert torch.equal(everything(copy), everything(images))
    one, ten = (len(pickle.dumps(opened(folder).take(torch.arange(n)))) for n in (1, 26))
    assert ten - one < 26 * 16


def test_the_fingerprint_knows_names_sizes_and_classes(folder: Path, tables: Path) -> None:
    before = opened(folder).fingerprint
    assert opened(folder.rename(folder.with_name("moved"))).fingerprint == before
    moved = folder.with_name("moved")
    files = files_of(moved)
    files[0].rename(files[0].with_name("other.png"))
    renamed = opened(moved).fingerprint
    files[1].write_bytes(files[1].read_bytes() + b"\0")
    longer = opened(moved).fingerprint
    (moved / "train" / "cow").rename(moved / "train" / "yak")
    (moved / "val" / "cow").rename(moved / "val" / "yak")
    assert len({before, renamed, longer, opened(moved).fingerprint}) == 4
    assert opened(tables).fingerprint == opened(tables).fingerprint != before


def error_of(images: ImageFiles, workers: int = 0, evaluate: bool = False) -> str:
    loading = Loading(CPU, workers=workers)
    batches = training_batches(images, order(), loading)
    if evaluate:
        batches = evaluation_batches(images, PETS, 8, loading)
    with pytest.raises(UserError) as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-400] if file.stat().st_size > 900 else b"no image")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(folder: Path, workers: int) -> None:
    bad = folder / "train" / "bee" / "001.jpg"
    damage(bad)
    images = opened(folder)
    # In every epoch but in those whose ragged end it falls into.
    assert permutation(7, 1, COUNT)[:24].eq(files_of(folder).index(bad)).any()
    message = error_of(images, workers)
    assert message.startswith(f"{bad} is ")
    assert "--on-bad-image skip (split train)" in message
    evaluated = error_of(images, workers, evaluate=True)
    assert evaluated.startswith(f"{bad} is ")
    assert "--on-bad-image" not in evaluated
    bad.unlink()
    assert f"{bad} cannot be read: No such file" in error_of(images, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_counted(folder: Path, workers: int) -> None:
    files = files_of(folder)
    places = permutation(7, 1, COUNT).tolist()
    bad = sorted([places[1], places[5], places[17]])
    for place in bad:
        damage(files[place])
    images = opened(folder, on_bad_image="skip")
    loading = Loading(CPU, workers=workers)
    batches = list(training_batches(images, order(), loading))
    assert [len(batch.indices) for batch in batches] == [6, 8, 7]
    seen = torch.cat([batch.indices for batch in batches]).tolist()
    assert seen == [place for place in places[:24] if place not in bad]
    assert images.skipped == {str(files[place]) for place in bad}
    list(training_batches(images, order(2), loading))
    assert images.skipped == {str(files[place]) for place in bad}
    kept, _ = split_validation(images, 3, 0)
    assert kept.skipped is images.skipped


def test_a_batch_of_bad_images_only_is_an_error(folder: Path) -> None:
    images = opened(folder, on_bad_image="skip")
    for file in files_of(folder):
        damage(file)
    assert "fewer than two images of a batch can be read" in error_of(images)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_what_is_the_machine_s_fault_is_never_left_out(
    number: int, workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, reason = folder / "train" / "bee" / "001.jpg", os.strerror(number)
    opened_by = Path.open

    def fail(self: Path, *words: Any, **options: Any) -> Any:
        if self == bad:
            raise OSError(number, reason, str(self))
        return opened_by(self, *words, **options)

    monkeypatch.setattr(Path, "open", fail)
    said = error_of(opened(folder, on_bad_image="skip"), workers)
    assert said == f"{bad} cannot be read: {reason}"


def test_too_little_memory_is_no_corrupt_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError):
        decode(files_of(folder)[0])


def test_in_memory_bad_images_are_left_out_of_training_only(folder: Path) -> None:
    bad = files_of(folder)[3]
    damage(bad)
    held = replace(PETS, held="memory")
    for _ in range(2):  # decoded, and from the cache
        images = load_in_memory(folder, held, "train", 24, "skip")
        assert (len(images), images.skipped) == (COUNT - 1, {str(bad)})
    with pytest.raises(UserError, match=r"split train"):
        load_in_memory(folder, held, "train", 24)
    damage(files_of(folder, "val")[0])
    with pytest.raises(UserError, match=r"split validation"):
        load_in_memory(folder, held, "test", 24, "skip")


def test_labels_that_are_missing_or_wrong(tmp_path: Path) -> None:
    for label in (None, -1):
        labels = [0, 1, 2, label, 1, 0]
        path = tmp_path / f"{label}"
        [file] = write_tables(
            path, "train", [encoded(n) for n in range(6)], labels, classes=CLASSES, shards=1
        )
        with pytest.raises(UserError, match=r"row 3, has label .*\(split train\)"):
            opened(path)
        images = opened(path, on_bad_image="skip")
        assert (len(images), images.skipped) == (5, {f"{file}, row 3,"})


def test_rows_of_parquet_files_are_named(tmp_path: Path) -> None:
    content = [encoded(number) for number in range(9)]
    files = write_tables(
        tmp_path, "train", [*content[:7], None, b"x"], [0] * 9, classes=CLASSES, shards=2
    )
    images = opened(tmp_path)
    for place, reason in ((7, "row 3, holds no image"), (8, "row 4, is not an image")):
        assert f"{files[1]}, {reason}" in error_of(images.take(torch.tensor([place] * 8)))


def test_broken_parquet_files_are_named(tables: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = sorted(tables.glob("train*"))[1]
    whole = file.read_bytes()
    middle = bytearray(whole)
    middle[4:2000] = bytes(1996)
    for content in (whole[: len(whole) // 2], b"", bytes(middle)):
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            opened(tables)
        assert str(file) in str(caught.value)
        assert "download it again" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_splits_and_classes_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(UserError, match="has 3 classes, imagenet has 1000"):
        load(folder, IMAGENET, "train")
    with pytest.raises(UserError, match="pets has images of 24 pixels, not of 32"):
        load(folder, PETS, "train", image_size=32)
    with pytest.raises(UserError, match="has no split 'test': it has train, validation"):
        load(folder, replace(PETS, test_split="test"), "test")


def test_imagenets_errors_are_those_of_its_validation_split(folder: Path) -> None:
    assert IMAGENET.test_split == "validation"
    assert opened(folder, "test").split == "validation"
    (folder / "val").rename(folder / "test")
    assert opened(folder, "test").split == "test"
    with pytest.raises(UserError, match="has no split 'test': it has train"):
        opened(folder / "train", "test")


class Dying:
    """Rows of which one ends the process that reads it."""

    def __getitem__(self, number: int) -> Row:
        if number == 5:
            os._exit(3)
        return Row(encoded(number), 0, f"{number}", None)


def test_a_worker_that_dies_is_an_error() -> None:
    images = ImageFiles(Dying(), torch.arange(8), CLASSES, "pets", "train", "0" * 16)
    message = error_of(images, workers=1)
    assert "a process that decodes images has died (DataLoader worker" in message
    assert "--compute.workers" in message


def test_imagenet_photographs(imagenet_sample: Path) -> None:
    images = load(imagenet_sample, IMAGENET, "train")
    assert isinstance(images, ImageFiles)
    assert (len(images), len(images.classes)) == (1000, 1000)
    how = Order(0, 0, 8, Augmentation(crop_padding=0, smallest_area=0.08), IMAGENET)
    batch = next(training_batches(images, how, Loading(CPU)))
    assert batch.images.shape == (8, 3, 224, 224)
    assert batch.labels.tolist() == permutation(0, 0, 1000)[:8].tolist()
    mean = torch.cat(
        list(normalised_batches(images.take(torch.arange(0, 1000, 50)), IMAGENET, CPU))
    ).mean()
    assert abs(float(mean)) < 0.3
