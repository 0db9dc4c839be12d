import os
import threading
from pathlib import Path

import pytest
import torch

from gaternet.data.cache import Decoded, cache_directory, cached


class Builder:
    """Counts how often images have to be decoded."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Decoded:
        self.calls += 1
        images = torch.arange(5 * 12, dtype=torch.uint8).reshape(5, 3, 2, 2)
        return Decoded(images, torch.arange(5), ("cat", "dog", "a", "b", "c"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATERNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_images_are_decoded_once(folder: Path) -> None:
    build = Builder()
    first, second = cached("key", "one", build), cached("key", "two", build)
    assert build.calls == 1
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert (second.classes, second.name) == (first.classes, "two")
    assert first.fingerprint == second.fingerprint
    assert sorted(file.name for file in folder.iterdir()) == ["key.json", "key.safetensors"]
    cached("other", "one", build)
    assert build.calls == 2


def test_what_was_left_out_is_remembered(folder: Path) -> None:
    def build() -> Decoded:
        return Builder()()._replace(skipped=("bad.png",))

    assert [cached("key", "x", build).skipped for _ in range(2)] == [{"bad.png"}] * 2


@pytest.mark.parametrize("name", ["key.safetensors", "key.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_entry_is_made_again(folder: Path, name: str, damage: str) -> None:
    build = Builder()
    whole = cached("key", "x", build)
    content = bytearray((folder / name).read_bytes())
    if damage == "flip":
        content[-20] ^= 1  # within the labels or images, and within the class names
    kept = {"flip": len(content), "truncate": len(content) // 2}.get(damage, 0)
    (folder / name).write_bytes(content[:kept])
    if damage == "delete":
        (folder / name).unlink()
    again = cached("key", "x", build)
    assert build.calls == 2
    assert torch.equal(again.images, whole.images)
    assert again.classes == whole.classes
    cached("key", "x", build)
    assert build.calls == 2


def test_flipped_bits_anywhere_are_noticed(folder: Path) -> None:
    build = Builder()
    whole = cached("key", "x", build)
    for name in ("key.safetensors", "key.json"):
        content = (folder / name).read_bytes()
        for place in range(0, len(content), 5):
            damaged = bytearray(content)
            damaged[place] ^= 4
            (folder / name).write_bytes(damaged)
            found = cached("key", "x", build)
            assert torch.equal(found.images, whole.images)
            assert torch.equal(found.labels, whole.labels)
            assert found.classes == whole.classes


def test_a_folder_that_cannot_be_written_to_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("GATERNET_CACHE", str(tmp_path / "file" / "cache"))
    build = Builder()
    assert len(cached("key", "x", build)) == len(cached("key", "x", build)) == 5
    assert build.calls == 2
    assert capfd.readouterr() == ("", "")


def test_a_write_that_fails_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gaternet.data.cache.save_file", full_disk)
    assert len(cached("key", "x", Builder())) == 5
    assert list(folder.iterdir()) == []


def test_two_writers_at_once_leave_a_whole_entry(folder: Path) -> None:
    barrier = threading.Barrier(4)

    def build_together() -> Decoded:
        barrier.wait(timeout=20)
        return Builder()()

    threads = [threading.Thread(target=cached, args=("key", "x", build_together)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    build = Builder()
    assert len(cached("key", "x", build)) == 5
    assert build.calls == 0
    assert len(list(folder.iterdir())) == 2


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATERNET_CACHE", "/somewhere")
    assert cache_directory() == Path("/somewhere")
    monkeypatch.delenv("GATERNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/user")
    if os.name != "nt":
        assert cache_directory() == Path("/user/gaternet")
