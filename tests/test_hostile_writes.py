"""Nothing is written that would be refused when it is read."""

from pathlib import Path

import pytest
import torch

import gaternet
from gaternet import checkpoint, fitting
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.compression import CompressionPlan, read_plan, write_plan
from gaternet.compression.plan import PointPlan
from gaternet.errors import UserError
from small_runs import few_digits

WEIGHTS = {"model": {"weight": torch.ones(3)}}
GATES = 200_000


def test_many_gates_are_read_as_they_were_written(tmp_path: Path) -> None:
    gate_of, removed = list(range(GATES)), list(range(GATES, GATES + 100_000))
    values = {"points": [{"gate_of": gate_of}], "plan": {"points": [{"removed": removed}]}}
    checkpoint.write(tmp_path / "model", WEIGHTS, {"model": values})
    assert checkpoint.read_json(tmp_path / "model", "model") == values


def test_short_values_have_a_line_each(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "model", WEIGHTS, {"model": {"a": 1, "b": 2}})
    assert (tmp_path / "model" / "model.json").read_text() == '{\n  "a": 1,\n  "b": 2\n}\n'


def test_a_long_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    removed = tuple(range(GATES, 3 * GATES))
    point = PointPlan("conv", 3 * GATES, 1, GATES, removed, (), ())
    plan = CompressionPlan("0" * 64, 1, "train", 0, (point,), {})
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (list(range(10**6)), r"it has 6,888,\d+ bytes"),
        ([[]] * 2**17, "it has more than 131,072 objects"),
        ("a" * (2**16 + 1), "a text in it has 65,537 characters"),
        (float("nan"), "NaN is not allowed in JSON"),
        (float("inf"), "Infinity is not allowed in JSON"),
    ],
)
def test_what_could_not_be_read_is_not_written(value: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.json cannot be written, .*: {reason}"):
        checkpoint.write(tmp_path / "model", WEIGHTS, {"model": value})
    assert not list(tmp_path.iterdir())


def test_model_of_which_too_little_is_left_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    backbone, extractor = (CifarResNet(8, classes=n, channels=1, image_size=8) for n in (10, 0))
    model = gaternet.GaterNet(backbone, gaternet.Gater(extractor, bottleneck=4)).eval()
    images = few_digits(60).images / 255 - 0.3
    with torch.no_grad():
        model.gater.get_parameter("head.fc2.bias").copy_(torch.linspace(-1, 1, 112))
        model.gater.get_parameter("head.fc2.weight").mul_(3)
    record = gaternet.analysis.collect(model, [images])
    small = gaternet.compress(model, record)
    gaternet.save(small, tmp_path / "taken")
    assert gaternet.load(tmp_path / "taken")(images).logits.shape == (60, 10)
    left = sum(tensor.numel() for tensor in small.state_dict().values())
    whole = sum(tensor.numel() for tensor in model.backbone.state_dict().values())
    monkeypatch.setattr(fitting, "_SMALL", 0)
    monkeypatch.setattr(fitting, "_MOST_REMOVED", whole / left * 0.99)
    with pytest.raises(UserError, match=f"{left:,} weights are left of a backbone of {whole:,}"):
        gaternet.save(small, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
