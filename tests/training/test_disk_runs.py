"""Whole runs on images that stay on disk: a small folder, two worker processes, bad images."""

import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gaternet.data.image_files import ImageFiles
from gaternet.data.image_set import split_validation
from gaternet.data.loading import Decoder, Part
from gaternet.data.readers import Row
from gaternet.data.settings import Augmentation
from gaternet.data.sources import load
from gaternet.errors import Interrupted, UserError
from gaternet.training.config import Compute, Recipe, Sources
from gaternet.training.interruption import Interruption
from gaternet.training.phases import VALIDATION_SEED, train
from small_runs import PICTURES, PLAIN, on_cpu, quiet, shown, tree, with_batches


def recipe(**settings: Any) -> Recipe:
    compute = Compute(precision="float32", compile="off", channels_last=False, workers=0)
    augmentation = Augmentation(crop_padding=0, smallest_area=0.25)
    base = replace(PLAIN, data=PICTURES, epochs=1, compute=compute, augmentation=augmentation)
    return replace(with_batches(base, 8), **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 5)):
        for number, name in enumerate(("bright", "dark")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                values = generator.integers(128 * number, 128 * number + 128, (24, 30 + i, 3))
                picture = Image.fromarray(values.astype(np.uint8))
                picture.save(tmp_path / "pictures" / split / name / f"{i}.png")
    return tmp_path / "pictures"


def test_run_from_disk_does_not_depend_on_its_workers(folder: Path, tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        wanted = recipe(compute=replace(recipe().compute, workers=workers))
        run = train(wanted, Sources(str(folder)), tmp_path / f"run-{workers}", on_cpu())
        runs.append((run.path / "checkpoints/epoch-0001/model.safetensors").read_bytes())
        assert run.result is not None
        assert "skipped_images" not in run.metrics()[0]
    assert runs[0] == runs[1]


def test_run_whose_worker_was_killed_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(epochs=3, compute=replace(recipe().compute, workers=2))
    whole = train(wanted, Sources(str(folder)), tmp_path / "whole", on_cpu())
    decode = Decoder.decode

    def decode_or_die(self: Decoder, places: list[int], rows: Iterable[Row]) -> Part:
        if self.order and self.order.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, places, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", decode_or_die)
        with pytest.raises(UserError, match=r"decodes images has died .*goes on with --resume"):
            train(wanted, Sources(str(folder)), tmp_path / "broken", on_cpu())
    resumed = train(wanted, Sources(str(folder)), tmp_path / "broken", on_cpu(), resume=True)
    assert tree(resumed.checkpoints / "epoch-0003") == tree(whole.checkpoints / "epoch-0003")


@pytest.mark.parametrize("evaluating", [False, True])
def test_run_whose_every_process_is_told_to_end_saves(
    evaluating: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm and systemd do; here the worker tells its run and itself."""
    wanted = recipe(epochs=2, compute=replace(recipe().compute, workers=1))
    decode = Decoder.decode

    def tell_both_and_decode(self: Decoder, places: list[int], rows: Iterable[Row]) -> Part:
        if (self.order is None) == evaluating and not (tmp_path / "told").exists():
            (tmp_path / "told").touch()
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGTERM)
        return decode(self, places, rows)

    monkeypatch.setattr(Decoder, "decode", tell_both_and_decode)
    with Interruption().listening() as told:
        options = replace(on_cpu(), interruption=told)
        with pytest.raises(Interrupted) as stopped:
            train(wanted, Sources(str(folder)), tmp_path / "run", options)
    assert stopped.value.exit_code == 143
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == ("epoch-0001" if evaluating else "epoch-0000-step-000001")


def test_bad_training_image_stops_the_run_or_is_left_out(folder: Path, tmp_path: Path) -> None:
    bad = folder / "train" / "dark" / "3.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError, match=r"dark/3\.png.*--on-bad-image skip \(split train\)"):
        train(recipe(), Sources(str(folder)), tmp_path / "stopped", on_cpu())
    console = quiet()
    sources = Sources(str(folder), on_bad_image="skip")
    run = train(recipe(), sources, tmp_path / "skipped", on_cpu(console))
    assert run.metrics()[0]["skipped_images"] == 1
    assert "bad images skipped: 1" in shown(console)
    assert "dark/3.png" in shown(console)


def test_bad_image_in_evaluation_is_always_an_error(folder: Path, tmp_path: Path) -> None:
    (folder / "val" / "bright" / "2.png").write_bytes(b"no image")
    sources = Sources(str(folder), on_bad_image="skip")
    with pytest.raises(UserError, match=r"bright/2\.png is not an image .*\(split validation\)"):
        train(recipe(), sources, tmp_path / "run", on_cpu())


def test_held_out_image_that_is_bad_is_an_error(folder: Path, tmp_path: Path) -> None:
    images = load(str(folder), PICTURES, "train")
    assert isinstance(images, ImageFiles)
    _, held = split_validation(images, 8, VALIDATION_SEED)
    bad = Path(held.row(3).origin)
    bad.write_bytes(b"no image")
    sources = Sources(str(folder), on_bad_image="skip")
    with pytest.raises(UserError, match=f"{bad.parent.name}/{bad.name} is not an image"):
        train(recipe(validation=8), sources, tmp_path / "run", on_cpu())


def test_weights_of_another_normalisation_are_reported(folder: Path, tmp_path: Path) -> None:
    first = train(recipe(), Sources(str(folder)), tmp_path / "first", on_cpu())
    other = replace(PICTURES, mean=(0.4, 0.4, 0.4))
    for data, notes in ((PICTURES, 0), (other, 1)):
        console = quiet()
        sources = Sources(str(folder), backbone=first.path)
        train(recipe(data=data), sources, tmp_path / f"run-{notes}", on_cpu(console))
        assert shown(console).count("note: the backbone's first weights were trained") == notes
