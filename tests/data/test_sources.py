"""Loading, against `datasets` itself, scikit-learn and the published facts about CIFAR-10."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from sklearn.datasets import load_digits

from gaternet.data.image_set import channel_statistics
from gaternet.data.settings import CIFAR10, DIGITS, DataConfig
from gaternet.data.sources import load_in_memory as load
from gaternet.errors import UserError

RANDOM = np.random.default_rng(0)
PETS = DataConfig("pets", None, 2, 6, 3, (0.5,) * 3, (0.25,) * 3)


def picture(height: int = 6, width: int = 6) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(
    file: Path, images: Sequence[bytes | None], labels: Sequence[int], names: Sequence[str]
) -> None:
    columns: dict[str, Any] = {
        "id": [f"{number}" for number in range(len(images))],
        "coarse": [0] * len(images),
        "img": [image and {"bytes": image, "path": None} for image in images],
        "fine_label": labels,
    }
    features = datasets.Features(
        id=datasets.Value("string"),
        coarse=datasets.ClassLabel(names=["thing"]),
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=list(names)),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    for part in range(2):
        name = f"train-0000{part}-of-00002.parquet"
        write_parquet(folder / name, [png() for _ in range(3)], [0, 1, 1], ["cat", "dog"])
    write_parquet(folder / "test-00000-of-00001.parquet", [png(), png()], [1, 0], ["cat", "dog"])
    return folder


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    for split, name in (("train", "cat"), ("train", "dog"), ("test", "dog")):
        (folder / split / name).mkdir(parents=True)
        for number in range(3):
            picture().save(folder / split / name / f"{number}.png")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "overview.png").write_bytes(b"")
    return folder


def stack(images: Sequence[Any]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


@pytest.mark.parametrize("split", ["train", "test"])
def test_parquet_equals_datasets(parquet: Path, tmp_path: Path, split: str) -> None:
    expected = datasets.load_dataset(str(parquet), split=split, cache_dir=str(tmp_path / "hf"))
    found = load(parquet, PETS, split)
    assert torch.equal(found.images, stack(expected["img"]))
    assert found.labels.tolist() == list(expected["fine_label"])
    assert (found.classes, found.name) == (("cat", "dog"), "pets")
    assert load(parquet, PETS, split).fingerprint == found.fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_folders_by_class_equal_datasets(by_class: Path, tmp_path: Path, split: str) -> None:
    (by_class / "overview.png").unlink()
    expected = datasets.load_dataset(
        "imagefolder", data_dir=str(by_class), split=split, cache_dir=str(tmp_path / "hf")
    )
    found = load(by_class, PETS, split)
    assert torch.equal(found.images, stack(expected["image"]))
    assert found.labels.tolist() == list(expected["label"])
    assert found.classes == tuple(expected.features["label"].names)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            picture().save(tmp_path / split / name / "test.png")
    for split in ("train", "validation", "val"):
        assert load(tmp_path, PETS, split).classes == ("test", "train")
        assert len(load(tmp_path, PETS, split)) == 2
    # Without splits: train/ holds images itself, so it is a class.
    assert load(tmp_path / "train", None, "train").classes == ("test", "train")


def test_a_folder_may_have_any_name(by_class: Path) -> None:
    odd = by_class.rename(by_class.with_name("we[i]rd *é"))
    assert load(odd, PETS, "train").name == "we[i]rd *é"


def test_the_label_column_is_the_one_with_as_many_classes(parquet: Path) -> None:
    assert load(parquet, PETS, "test").labels.tolist() == [1, 0]
    coarse = load(parquet, replace(PETS, classes=1), "test")
    assert (coarse.labels.tolist(), coarse.classes) == ([0, 0], ("thing",))
    assert load(parquet, None, "test").classes == ("cat", "dog")


def test_grey_and_colour(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture().convert("L").save(tmp_path / "a" / "0.png")
    assert load(tmp_path, None, "train").images.shape == (1, 1, 6, 6)
    picture().save(tmp_path / "a" / "1.png")
    mixed = load(tmp_path, None, "train").images
    assert mixed.shape == (2, 3, 6, 6)
    assert torch.equal(mixed[0, 0], mixed[0, 2])
    grey = DataConfig("a", None, 1, 6, 1, (0.5,), (0.25,))
    assert load(tmp_path, grey, "train").images.shape == (2, 1, 6, 6)


def test_images_of_many_sizes_are_scaled_when_asked(by_class: Path) -> None:
    picture(20, 9).save(by_class / "train" / "cat" / "large.png")
    with pytest.raises(UserError, match=r"large\.png has 20×9 pixels, .* have 6×6"):
        load(by_class, PETS, "train")
    scaled = load(by_class, PETS, "train", image_size=6)
    assert scaled.images.shape == (7, 3, 6, 6)
    assert load(by_class, None, "train", image_size=4).images.shape == (7, 3, 4, 4)


def test_every_format_that_is_decoded_is_found(by_class: Path) -> None:
    picture().save(by_class / "train" / "cat" / "new.avif", quality=100)
    picture().save(by_class / "train" / "cat" / "other.WEBP")
    assert len(load(by_class, PETS, "train")) == 8


def test_a_change_of_the_files_is_noticed(by_class: Path) -> None:
    before = load(by_class, PETS, "train")
    moved = load(shutil.copytree(by_class, by_class.with_name("copy")), PETS, "train")
    assert moved.fingerprint == before.fingerprint
    picture().save(by_class / "train" / "cat" / "0.png")
    assert load(by_class, PETS, "train").fingerprint != before.fingerprint
    (by_class / "train" / "cat").rename(by_class / "train" / "cow")
    assert load(by_class, PETS, "train").classes == ("cow", "dog")


def test_nothing_is_printed(parquet: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(parquet, PETS, "train")
    (parquet / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError):
        load(parquet, PETS, "test")
    assert capfd.readouterr() == ("", "")


def error_of(where: Path | str, split: str = "train", config: DataConfig = PETS) -> str:
    with pytest.raises(UserError) as caught:
        load(where, config, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_foreign_folders(tmp_path: Path, by_class: Path) -> None:
    assert "does not exist: give --data a folder" in error_of(tmp_path / "no")
    assert "is a file: give the folder" in error_of(by_class / "overview.png")
    (tmp_path / "empty").mkdir()
    assert "holds neither parquet files nor images" in error_of(tmp_path / "empty")
    assert "has no split 'validation': it has test, train" in error_of(by_class, "validation")
    assert "has 2 classes, cifar10 has 10" in error_of(by_class, config=CIFAR10)
    assert "3×6×6, pets is 3×8×8" in error_of(by_class, config=replace(PETS, image_size=8))
    (deep := by_class / "train" / "owl" / "2024").mkdir(parents=True)
    picture().save(deep / "lost.png")
    assert "2024/lost.png is not where an image belongs" in error_of(by_class)
    shutil.rmtree(deep.parent)
    picture().save(by_class / "train" / "lost.png")
    assert "lost.png is not where an image belongs" in error_of(by_class)


def test_broken_images_are_named(by_class: Path, tmp_path: Path) -> None:
    (by_class / "train" / "dog" / "1.png").write_bytes(png()[:60])
    message = error_of(by_class)
    assert str(by_class / "train" / "dog" / "1.png") in message
    assert "corrupt" in message
    file = tmp_path / "table" / "train.parquet"
    reasons = {b"no image": "is not an image", None: "holds no image", b"": "is empty"}
    for bad, reason in reasons.items():
        write_parquet(file, [png(), png(), bad], [0, 1, 1], ["cat", "dog"])
        assert error_of(file.parent).startswith(f"{file}, row 2, {reason}")


def test_broken_parquet_is_named(parquet: Path) -> None:
    file = parquet / "train-00001-of-00002.parquet"
    whole = file.read_bytes()
    middle = bytearray(whole)
    middle[4:200] = bytes(196)
    for content in (whole[: len(whole) // 2], b"", bytes(middle)):
        file.write_bytes(content)
        message = error_of(parquet)
        assert str(file) in message
        assert "download it again" in message
    write_parquet(file, [png()], [0], ["cat", "cow"])
    assert f"{file} and " in error_of(parquet)
    file.unlink()
    assert "holds 1 of 2 train files" in error_of(parquet)


def test_unfit_tables_are_named(tmp_path: Path, parquet: Path) -> None:
    file = tmp_path / "a" / "train.parquet"
    write_parquet(file, [png()], [-1], ["cat", "dog"])
    assert f"{file}, row 0, has label -1" in error_of(file.parent)
    write_parquet(file, [], [], ["cat", "dog"])
    assert "holds no images" in error_of(file.parent)
    datasets.Dataset.from_dict({"x": [1], "y": [2]}).to_parquet(file)
    assert "has no column of images: its columns are x, y" in error_of(file.parent)
    shutil.copytree(parquet, parquet / "again")
    assert "both hold t" in error_of(parquet)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_scaling_by_what_is_not_finite_is_refused(value: float) -> None:
    for mean, std in (((value,), (0.25,)), ((0.5,), (value,))):
        with pytest.raises(ValueError, match=r"a: .* (finite numbers|above zero)"):
            DataConfig("a", None, 1, 6, 1, mean, std)


def test_digits_equal_scikit_learn() -> None:
    train, test = (load("digits", DIGITS, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1297, 500)
    assert train.images.shape == (1297, 1, 8, 8)
    bundle = load_digits()

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
        flat = images.reshape(len(images), -1).astype(int).tolist()
        return sorted((*pixels, label) for pixels, label in zip(flat, labels.tolist(), strict=True))

    both = np.concatenate([train.images.numpy(), test.images.numpy()])
    labels = np.concatenate([train.labels.numpy(), test.labels.numpy()])
    assert rows(both, labels) == rows(np.rint(bundle.images / 16 * 255), bundle.target)
    share = test.labels.bincount() / torch.from_numpy(np.bincount(bundle.target))
    assert float((share - 500 / 1797).abs().max()) < 0.005
    assert test.labels.tolist() != sorted(test.labels.tolist())
    mean, std = channel_statistics(train)
    assert mean == pytest.approx(DIGITS.mean, abs=1e-4)
    assert std == pytest.approx(DIGITS.std, abs=1e-4)
    assert "has no split 'validation'" in error_of("digits", "validation", DIGITS)


def test_a_hub_name_is_loaded_at_its_commit_and_once(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = datasets.load_dataset(str(parquet), cache_dir=str(tmp_path / "hf"))
    calls: list[tuple[str, str | None]] = []

    class Info:
        sha: str | None = "c0ffee"

    def load_dataset(name: str, revision: str | None) -> datasets.DatasetDict:
        calls.append((name, revision))
        return datasets.DatasetDict(train=local["train"], valid=local["test"])

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: Info())
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for _ in range(2):
        found = load("somebody/pets", PETS, "train")
    assert calls == [("somebody/pets", "c0ffee")]
    assert found.fingerprint == load(parquet, PETS, "train").fingerprint
    assert found.name == "pets"
    assert load("somebody/pets", PETS, "validation").labels.tolist() == [1, 0]
    assert "no split 'test': it has train, validation" in error_of("somebody/pets", "test")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    message = error_of("somebody/pets")
    assert "there is no folder somebody/pets, and the hub" in message
    assert "cannot be reached (Name or service not known)" in message


@pytest.mark.slow
def test_cifar10_is_the_published_training_set(cifar10_dir: Path) -> None:
    train = load(cifar10_dir, CIFAR10, "train")
    assert train.images.shape == (50_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5000] * 10
    mean, std = channel_statistics(train)
    assert mean == pytest.approx(CIFAR10.mean, abs=1e-4)
    assert std == pytest.approx(CIFAR10.std, abs=1e-4)


def test_cifar10_test_images(cifar10_dir: Path) -> None:
    test = load(cifar10_dir, CIFAR10, "test")
    assert test.images.shape == (10_000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.classes[:4] == ("airplane", "automobile", "bird", "cat")
    with pq.ParquetFile(cifar10_dir / "test-00000-of-00001.parquet") as table:
        rows = table.read().slice(9_900).to_pylist()
    images = [Image.open(io.BytesIO(row["img"]["bytes"])) for row in rows]
    assert torch.equal(test.images[9_900:], stack(images))
    assert test.labels[9_900:].tolist() == [row["label"] for row in rows]
