"""The how-to for a user's own classes runs as it stands there, offline, on generated images."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import gaternet

PAGE = Path(__file__).parents[1] / "docs" / "own-classes.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
FEWER_EPOCHS = ("epochs = 10", "epochs = 2")
CLASSES = {"grass": (40, 160, 60), "sand": (220, 190, 130), "sea": (30, 90, 170)}


def make_photos(folder: Path, per_class: int) -> None:
    pixels = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            noise = pixels.integers(-25, 25, (48, 64, 3))
            picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{i}.png")


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = timm.create_model
    asked: list[tuple[str, bool]] = []

    def create_offline(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        # Without the network: fresh weights in place of pre-trained ones, and small images.
        asked.append((name, pretrained))
        return create(name, pretrained_cfg_overlay={"input_size": (3, 32, 32)}, **options)

    monkeypatch.setattr(timm, "create_model", create_offline)
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos" / "train", 11)
    make_photos(tmp_path / "photos" / "val", 2)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block.replace(*FEWER_EPOCHS), scope)
    assert asked[:2] == [("resnet34", True), ("resnet18", True)]
    model, loaded = scope["model"], scope["loaded"]
    assert model.backbone.get_classifier().out_features == len(CLASSES)
    assert model.gate_count == 3776
    assert 0 <= scope["accuracy"] <= 1
    trained, again = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(trained[name].cpu(), again[name].cpu()) for name in trained)
    assert scope["record"].gates().shape == (6, 3776)
    printed = capsys.readouterr().out
    assert "3,776 gates" in printed
    assert all(f"\n{name}: " in printed for name in CLASSES)


def test_the_training_loop_is_short_and_moves_every_part() -> None:
    (training,) = [block for block in BLOCKS if "optimizer.step()" in block]
    assert len(training.splitlines()) <= 40
    backbone: Any = timm.create_model("test_resnet", num_classes=3)
    extractor = timm.create_model("test_resnet", num_classes=0)
    gater = gaternet.Gater(extractor, bottleneck=4)
    model = gaternet.GaterNet(backbone, gater, input_size=(3, 32, 32))
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = (torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    scope: dict[str, Any] = {
        "torch": torch,
        "gaternet": gaternet,
        "model": model,
        "gater": gater,
        "backbone": backbone,
        "batches": {"train": [batch] * 2},
    }
    exec(training.replace(*FEWER_EPOCHS), scope)
    still = [name for name, value in model.named_parameters() if value.cpu().equal(before[name])]
    assert not still
    slow, fast = (group["params"] for group in scope["optimizer"].param_groups)
    assert len(slow) + len(fast) == len(before)
    assert {p.shape for p in fast} >= {backbone.get_classifier().weight.shape}
