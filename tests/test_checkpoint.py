"""Saving and loading: round trips, and every way in which a checkpoint can be wrong."""

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import gaternet
from gaternet import checkpoint
from gaternet.backbones import BackboneConfig, create
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UserError
from gaternet.gater import Gater
from gaternet.local import Granularity, LocalGaterNet
from gaternet.model import GaterNet
from gaternet.rivals import GumbelSigmoid, RandomGates, SoftGates, make_binarizer
from gaternet.runtime.serving import describe_serving
from small_runs import sign_again, tree

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(8, shortcut="identity").eval()


def gated() -> GaterNet:
    torch.manual_seed(0)
    backbone = CifarResNet(8, classes=7)
    gater = Gater(CifarResNet(8, classes=0), bottleneck=4, batch_norm=False, input_size=16)
    model = GaterNet(backbone, gater, points=["stage2.block1.bn2", "stage3.block1.bn2"])
    model.binarizer.threshold = -0.25
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    gaternet.save(plain(), tmp_path / "model")
    return tmp_path / "model"


def test_plain_network_round_trip(saved: Path) -> None:
    model = plain()
    loaded = gaternet.load(saved)
    assert isinstance(loaded, CifarResNet)
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def test_gated_network_round_trip_keeps_points_threshold_and_gater(tmp_path: Path) -> None:
    model = gated()
    gaternet.save(model, tmp_path / "deep" / "model")
    loaded = gaternet.load(str(tmp_path / "deep" / "model"))
    assert isinstance(loaded, GaterNet)
    assert loaded.points == model.points
    assert loaded.binarizer.threshold == -0.25
    assert loaded.gater.input_size == 16
    assert not loaded.gater.batch_norm
    for ours, theirs in zip(loaded(IMAGES), model(IMAGES), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", ["filters", "branches"])
def test_local_gates_round_trip(granularity: Granularity, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LocalGaterNet(
        CifarResNet(8, classes=7),
        ["stage2.block1.bn2", "stage3.block1.bn2"],
        granularity,
        bottleneck=4,
        batch_norm=False,
        opening_bias=0.5,
        binarizer=GumbelSigmoid(threshold=-0.25, temperature=0.5),
    ).eval()
    gaternet.save(model, tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model")
    assert isinstance(loaded, LocalGaterNet)
    assert loaded.points == model.points
    assert isinstance(loaded.binarizer, GumbelSigmoid)
    assert (loaded.binarizer.threshold, loaded.binarizer.temperature) == (-0.25, 0.5)
    for ours, theirs in zip(loaded(IMAGES), model(IMAGES), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["straight-through", "hard-concrete", "soft", "random"])
def test_binarizer_is_saved_by_name(name: str, tmp_path: Path) -> None:
    model = gated()
    model.binarizer = make_binarizer(name, 0.3 if name == "random" else None).eval()
    gaternet.save(model, tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model")
    assert isinstance(loaded, GaterNet)
    assert type(loaded.binarizer) is type(model.binarizer)
    if isinstance(loaded.binarizer, RandomGates):
        assert loaded.binarizer.rate == 0.3
    keys = torch.arange(3)
    for ours, theirs in zip(loaded(IMAGES, keys=keys), model(IMAGES, keys=keys), strict=True):
        assert torch.equal(ours, theirs)


def test_binarizer_without_a_name_is_refused(tmp_path: Path) -> None:
    class Own(SoftGates):
        pass

    model = gated()
    model.binarizer = Own()
    with pytest.raises(UserError, match="binarizer Own has no name here"):
        gaternet.save(model, tmp_path / "model")


def test_model_saved_before_there_were_rivals_loads(tmp_path: Path) -> None:
    model = gated()
    gaternet.save(model, tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    del values["local"], values["binarizer"]
    file.write_text(json.dumps(values))
    sign_again(tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model")
    assert isinstance(loaded, GaterNet)
    assert torch.equal(loaded(IMAGES).logits, model(IMAGES).logits)


def test_timm_network_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t", num_classes=5)
    gater = Gater(timm.create_model("resnet10t", num_classes=0), bottleneck=4, input_size=32)
    model = GaterNet(backbone, gater, input_size=(3, 64, 64)).eval()
    gaternet.save(model, tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model")
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(loaded(images), model(images), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_are_plain_safetensors_with_the_state_dict_s_keys(saved: Path) -> None:
    found = load_file(saved / "model.safetensors")
    expected = plain().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shared_and_strided_tensors_are_saved_as_they_read(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    tensors = {"model": {"a": one, "b": one, "c": one.t(), "d": one[:, 1]}}
    checkpoint.write(tmp_path / "x", tensors, {})
    found = checkpoint.read_tensors(tmp_path / "x", "model")
    assert all(torch.equal(found[name], tensors["model"][name]) for name in "abcd")


def test_existing_directory_is_refused_and_stays(saved: Path) -> None:
    before = tree(saved)
    with pytest.raises(UserError, match=r"model exists already; choose another"):
        gaternet.save(plain(), saved)
    assert tree(saved) == before


def unlike_its_name() -> list[nn.Module]:
    return [
        CifarResNet(8, widths=(4, 8, 8)),
        timm.create_model("resnet10t", features_only=True),
        timm.create_model("resnet10t", output_stride=8),
        nn.Sequential(nn.Conv2d(3, 4, 3)),
    ]


@pytest.mark.parametrize("index", range(4))
def test_network_that_its_name_does_not_build_is_refused(index: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"built (again )?by name.*state_dict"):
        gaternet.save(unlike_its_name()[index], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_drop_path_of_training_is_no_hindrance(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", drop_path_rate=0.1)
    gaternet.save(model, tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model").state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in model.state_dict().items())


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(directory: Path) -> None:
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def remove(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def escape(directory: Path) -> None:
    (directory.parent / "x").write_text("")
    (directory / "manifest.json").write_text(json.dumps({"../x": {"sha256": "0"}}))


def list_nothing(directory: Path) -> None:
    flip_a_bit(directory)
    (directory / "manifest.json").write_text("{}")


def garble_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"model.safetensors": 3}')


def remove_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def edit_values(directory: Path) -> None:
    values = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps(values | {"blocks": 3}))
    sign_again(directory)


def edit_backbone(directory: Path) -> None:
    values = json.loads((directory / "model.json").read_text())
    values["backbone"]["name"] = "resnet14"
    (directory / "model.json").write_text(json.dumps(values))
    sign_again(directory)


def edit_classes(directory: Path) -> None:
    values = json.loads((directory / "model.json").read_text())
    values["backbone"]["classes"] = 11
    (directory / "model.json").write_text(json.dumps(values))
    sign_again(directory)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, r"model\.safetensors was truncated or altered"),
        (flip_a_bit, r"model\.safetensors was truncated or altered"),
        (remove, r"model\.safetensors is missing"),
        (escape, r"manifest\.json names '\.\./x': a checkpoint's files lie beside it"),
        (list_nothing, r"model\.json is not in manifest\.json"),
        (garble_manifest, r"manifest\.json is damaged"),
        (remove_manifest, r"model holds no model: it has no manifest\.json"),
        (edit_values, r"model\.json: not a model of this version"),
        (edit_backbone, r"model: weights of another model: .* is missing there"),
        (edit_classes, r"weights of another model: fc\.bias is \(10,\) there and \(11,\) here"),
    ],
)
def test_damaged_model_is_refused_by_name(
    harm: Callable[[Path], None], message: str, saved: Path
) -> None:
    harm(saved)
    with pytest.raises(UserError, match=message):
        gaternet.load(saved)


def test_model_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    gaternet.save(gated(), tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    file.write_text(file.read_text().replace("stage3.block1.bn2", "stage3.block9.bn2"))
    sign_again(tmp_path / "model")
    with pytest.raises(UserError, match=r"model\.json: .*no submodule `stage3.block9.bn2`"):
        gaternet.load(tmp_path / "model")


def test_foreign_and_missing_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    for name in ("letters", "nowhere"):
        with pytest.raises(UserError, match=f"{name} holds no model"):
            gaternet.load(tmp_path / name)


class Exploit:
    """What a pickle may do when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("through_torch", [False, True])
def test_pickle_in_disguise_is_refused_and_never_run(
    through_torch: bool, saved: Path, tmp_path: Path
) -> None:
    weights = saved / "model.safetensors"
    exploit = Exploit(tmp_path / "ran")
    if through_torch:
        torch.save(exploit, weights)
    else:
        weights.write_bytes(pickle.dumps(exploit))
    sign_again(saved)
    with pytest.raises(UserError, match=r"model\.safetensors is a .*Python pickle.* not read"):
        gaternet.load(saved)
    assert not (tmp_path / "ran").exists()


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensors: object, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(UserError, match=r"cannot write .*model: .*No space left on device"):
        gaternet.save(plain(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_newest_checkpoint_is_the_one_loaded(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        gaternet.load(tmp_path)
    gaternet.save(CifarResNet(14), checkpoints / "epoch-0009")
    gaternet.save(plain(), checkpoints / "epoch-0010")
    (checkpoints / ".epoch-0011.99.partial").mkdir()
    loaded = gaternet.load(tmp_path)
    assert isinstance(loaded, CifarResNet)
    assert loaded.depth == 8


@pytest.mark.parametrize(
    "options",
    [
        {"act_layer": "silu"},
        {"global_pool": "max"},
        {"norm_layer": partial(nn.BatchNorm2d, eps=0.1)},
    ],
)
def test_a_network_that_its_name_does_not_build_is_not_saved(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"timm/resnet10t built by name differs from this model"):
        gaternet.save(timm.create_model("resnet10t", num_classes=5, **options), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_does_not_matter_in_evaluation_does_not_keep_a_network_from_being_saved(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"drop_rate": 0.1, "drop_path_rate": 0.1}
    model = timm.create_model("resnet10t", num_classes=5, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    gaternet.save(model, tmp_path / "model")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(gaternet.load(tmp_path / "model")(images), model(images))


def test_synchronised_batch_norm_is_saved(tmp_path: Path) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(plain())
    gaternet.save(model, tmp_path / "model")
    assert torch.equal(gaternet.load(tmp_path / "model")(IMAGES), plain()(IMAGES))


def test_timms_normalisation_is_of_three_channels() -> None:
    grey = create(BackboneConfig("timm/resnet10t", 10, 1, 64))
    gater = Gater(CifarResNet(8, classes=0, channels=1, image_size=64), 4)
    served = describe_serving(GaterNet(grey, gater, input_size=(1, 64, 64)))
    assert (served.input_size, served.mean) == ((1, 64, 64), None)
    assert describe_serving(create(BackboneConfig("timm/resnet10t", 10))).mean is not None


def test_size_that_a_network_was_traced_with_is_kept(tmp_path: Path) -> None:
    backbone = timm.create_model("resnet10t", num_classes=5)  # declares 224 × 224
    extractor = CifarResNet(8, classes=0)
    model = GaterNet(backbone, Gater(extractor, bottleneck=4), input_size=(3, 64, 48))
    gaternet.save(model, tmp_path / "model")
    loaded = gaternet.load(tmp_path / "model")
    assert isinstance(loaded, GaterNet)
    assert loaded.input_size == (3, 64, 48)
    assert describe_serving(loaded).input_size == (3, 64, 48)
