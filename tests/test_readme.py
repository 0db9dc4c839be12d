"""The README's code runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

README = Path(__file__).parents[1] / "README.md"


def test_gating_a_timm_model_in_ones_own_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = timm.create_model
    # Without the network: fresh weights in place of the pre-trained ones.
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **given | OFFLINE))
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    setup, loop = code.split("for images, labels", 1)
    scope: dict[str, Any] = {"loader": [(torch.randn(2, 3, 64, 64), torch.tensor([3, 7]))]}
    exec(setup, scope)
    model = scope["model"]
    scope["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in model.named_parameters()}
    exec("for images, labels" + loop, scope)
    assert scope["gates"].shape == (2, 3776)
    assert scope["logits"].shape == (2, 1000)
    assert "3,776" in capsys.readouterr().out
    moved = [name for name, value in model.named_parameters() if not value.equal(before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert any(name.startswith("gater") for name in moved)


OFFLINE = {"pretrained": False}
