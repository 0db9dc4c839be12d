"""The authors' checkpoints against their released evaluation code, written out step by step."""

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import gaternet
from gaternet import authors, cli
from gaternet.data.folders import find_files
from gaternet.data.readers import read_folder
from gaternet.data.settings import CIFAR10
from gaternet.errors import UserError
from gaternet.training.run import open_run
from small_runs import tree

State = dict[str, Tensor]
Content = dict[str, Any]

WIDTHS = (16, 32, 64)


class Drawn:
    """A state dict that grows key by key, with random values."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = OrderedDict()

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self.generator)

    def conv(self, name: str, outputs: int, inputs: int, kernel: int) -> None:
        scale = (2 / (inputs * kernel**2)) ** 0.5
        self.state[f"{name}.weight"] = self.normal(outputs, inputs, kernel, kernel, scale=scale)

    def norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = 1 + self.normal(width, scale=0.2)
        self.state[f"{name}.bias"] = self.normal(width, scale=0.2)
        self.state[f"{name}.running_mean"] = self.normal(width, scale=0.2)
        self.state[f"{name}.running_var"] = 1 + self.normal(width, scale=0.2).abs()

    def linear(self, name: str, outputs: int, inputs: int, scale: float = 0.3) -> None:
        self.state[f"{name}.weight"] = self.normal(outputs, inputs, scale=scale)
        self.state[f"{name}.bias"] = self.normal(outputs, scale=0.1)

    def resnet(self, prefix: str, blocks: int) -> None:
        self.conv(f"{prefix}conv", 16, 3, 3)
        self.norm(f"{prefix}bn", 16)
        before = 16
        for stage, width in enumerate(WIDTHS, 1):
            for block in range(1, blocks + 1):
                name = f"{prefix}stage{stage}.block{block}"
                self.conv(f"{name}.conv1", width, before, 3)
                self.conv(f"{name}.conv2", width, width, 3)
                self.norm(f"{name}.bn1", width)
                self.norm(f"{name}.bn2", width)
                if stage > 1 and block == 1:
                    self.conv(f"{name}.shortcut.conv", width, before, 1)
                    self.norm(f"{name}.shortcut.bn", width)
                before = width


def released(
    depth: int = 20, gater_depth: int = 20, bottleneck: int = 8, classes: int = 10
) -> Content:
    """What one of the authors' files holds: PyTorch 0.4 has no num_batches_tracked."""
    backbone, gater = Drawn(depth), Drawn(1)
    backbone.resnet("", (depth - 2) // 6)
    backbone.linear("fc", classes, 64)
    gater.resnet("resnet.", (gater_depth - 2) // 6)
    gater.linear("resnet.newfc", bottleneck, 64)
    gater.linear("fnn.fc.0", (depth - 2) // 6 * sum(WIDTHS), bottleneck)
    centre(gater.state)
    return {"backbone_state_dict": backbone.state, "gater_state_dict": gater.state}


def centre(gater: State) -> None:
    """Shift the biases so that gates differ between images, which random ones hardly do."""
    features = run_resnet(gater, "resnet.", pictures(), None)
    for name in ("resnet.newfc", "fnn.fc.0"):
        features = F.linear(features, gater[f"{name}.weight"], gater[f"{name}.bias"])
        gater[f"{name}.bias"] -= features.mean(dim=0)
        features = F.relu(features - features.mean(dim=0))


def pictures() -> Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def in_float64(content: Content) -> Content:
    """So exact that no rounding decides about a gate."""
    return {
        part: {name: tensor.double() for name, tensor in state.items()}
        for part, state in content.items()
    }


def reference(content: Content, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (logits, gates) as the released evaluation code computes them."""
    backbone, gater = content["backbone_state_dict"], content["gater_state_dict"]
    features = run_resnet(gater, "resnet.", images, None)
    bottleneck = F.linear(features, gater["resnet.newfc.weight"], gater["resnet.newfc.bias"])
    scores = F.linear(F.relu(bottleneck), gater["fnn.fc.0.weight"], gater["fnn.fc.0.bias"])
    soft = torch.clamp(1.2 * torch.sigmoid(scores) - 0.1, min=0, max=1)
    gates = (soft > 0.49999).float()
    features = run_resnet(backbone, "", images, gates)
    return F.linear(features, backbone["fc.weight"], backbone["fc.bias"]), gates


def run_resnet(state: State, prefix: str, images: Tensor, gates: Tensor | None) -> Tensor:
    """Return pooled features (N, 64); `gates` are taken 16, 32 or 64 at a time, block by block."""
    x = F.relu(norm(state, f"{prefix}bn", conv(state, f"{prefix}conv", images, 1)))
    start = 0
    for stage, width in enumerate(WIDTHS, 1):
        block = 1
        while f"{prefix}stage{stage}.block{block}.conv1.weight" in state:
            name = f"{prefix}stage{stage}.block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            y = F.relu(norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride)))
            y = norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y, 1))
            if gates is not None:
                y = y * gates[:, start : start + width, None, None]
                start += width
            if f"{name}.shortcut.conv.weight" in state:
                x = conv(state, f"{name}.shortcut.conv", x, stride)
                x = norm(state, f"{name}.shortcut.bn", x)
            x = F.relu(y + x)
            block += 1
    return F.adaptive_avg_pool2d(x, output_size=1).flatten(1)


def conv(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def behind_module(content: Content) -> Content:
    return {
        part: OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
        for part, state in content.items()
    }


PythonPickler: Any = vars(pickle)["_Pickler"]


class Python2Pickler(PythonPickler):
    """Writes strings and ordered dicts as Python 2.7 did, under which the files were made."""

    dispatch = PythonPickler.dispatch.copy()

    def save_str(self, text: str) -> None:
        encoded = text.encode("ascii")
        self.write(pickle.SHORT_BINSTRING + bytes([len(encoded)]) + encoded)
        self.memoize(text)

    dispatch[str] = save_str

    def reducer_override(self, value: object) -> Any:
        if type(value) is OrderedDict:
            attributes = vars(value)
            items = [[key, value[key]] for key in value]
            return (OrderedDict, (items,), attributes) if attributes else (OrderedDict, (items,))
        return NotImplemented


def write_as_in_2019(content: Content, file: Path) -> None:
    """Write what PyTorch 0.4 under Python 2.7 writes for networks that lie on a GPU."""

    def dump(value: object, stream: io.BufferedWriter, protocol: int) -> None:
        Python2Pickler(stream, protocol).dump(value)

    for state in content.values():
        state._metadata = OrderedDict([("", {"version": 1})])
    python2 = SimpleNamespace(__name__="pickle", Pickler=Python2Pickler, dump=dump)
    torch.save(content, file, python2, 2, _use_new_zipfile_serialization=False)
    written = file.read_bytes()
    for ours, theirs in (
        (b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n"),
        (b"U\x03cpu", b"U\x06cuda:0"),
    ):
        assert ours in written
        written = written.replace(ours, theirs)
    file.write_bytes(written)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(released(), tmp_path)


def saved(content: object, folder: Path) -> Path:
    file = folder / "released.pth"
    torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("settings", "gates"),
    [
        ({"depth": 20}, 336),
        ({"depth": 56}, 1008),
        ({"depth": 14, "gater_depth": 8, "bottleneck": 5}, 224),
    ],
)
def test_outputs_are_those_of_the_released_code(
    settings: Mapping[str, int], gates: int, tmp_path: Path
) -> None:
    content = released(**settings)
    authors.import_run(saved(content, tmp_path), tmp_path / "run")
    images = pictures().double()
    with torch.no_grad():
        found = gaternet.load(tmp_path / "run").double()(images)
        logits, expected = reference(in_float64(content), images)
    assert found.gates.shape == (16, gates)
    assert (expected.amin(0) != expected.amax(0)).sum() > gates / 2
    assert torch.equal(found.gates, expected.double())
    assert (found.logits - logits).abs().max() <= 1e-12 * logits.abs().max()
    assert logits.std(dim=0).min() > 1e-3 * logits.abs().max()


def test_gate_opens_where_the_authors_gate_opens(tmp_path: Path) -> None:
    content = released()
    gater = content["gater_state_dict"]
    gater["fnn.fc.0.weight"].zero_()
    gater["fnn.fc.0.bias"] = torch.linspace(-1e-4, 1e-4, 336)  # 1.2·σ − 0.1 is 0.49999 at −3.3e−5
    model = authors.load_checkpoint(saved(content, tmp_path)).double()
    with torch.no_grad():
        gates = model(pictures()[:1].double()).gates
    _, expected = reference(in_float64(content), pictures()[:1].double())
    assert torch.equal(gates, expected.double())
    assert (expected.sum(), authors.THRESHOLD) == (224, pytest.approx(-1 / 30000))


def load_all(content: Content, folder: Path) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return authors.load_checkpoint(saved(content, folder))(pictures())


def test_names_behind_module_and_counters_of_batches_change_nothing(tmp_path: Path) -> None:
    plain = load_all(released(), tmp_path)
    behind = behind_module(released())
    for state in behind.values():
        for name in [name for name in state if name.endswith("running_var")]:
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = torch.tensor(64000)
    for one, other in zip(plain, load_all(behind, tmp_path), strict=True):
        assert torch.equal(one, other)


def test_file_as_python_2_wrote_it(tmp_path: Path) -> None:
    write_as_in_2019(behind_module(released()), tmp_path / "old.pth")
    assert b"PK" not in (tmp_path / "old.pth").read_bytes()[:2]
    with torch.no_grad():
        found = authors.load_checkpoint(tmp_path / "old.pth")(pictures())
    for one, other in zip(load_all(released(), tmp_path), found, strict=True):
        assert torch.equal(one, other)


def test_run_claims_nothing_that_was_not_measured(file: Path, tmp_path: Path) -> None:
    run = authors.import_run(file, tmp_path / "run")
    recipe = open_run(run.path).config.recipe
    assert (recipe.name, recipe.backbone) == ("cifar10/resnet20-gated-authors", "resnet20")
    assert recipe.gating is not None
    assert (recipe.gating.bottleneck, recipe.gating.batch_norm) == (8, False)
    assert (recipe.data.mean, recipe.data.std) == (CIFAR10.mean, CIFAR10.std)
    assert run.config.weights["gater"] == run.config.weights["backbone"]
    result = run.result
    assert result is not None
    for name in ("test_error_percent", "test_top5_error_percent", "gates", "epochs", "seed"):
        assert result[name] is None
    # Paper, Table 1: 0.55 M parameters.
    assert round(result["parameters"] / 1e6, 2) == 0.55
    assert result["imported_from"]["file"] == "released.pth"


def test_every_command_takes_the_run(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = str(tmp_path / "run"), tmp_path / "data"
    for label, name in enumerate(authors.CIFAR10_CLASSES):
        for split in ("train", "test"):
            (data / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (25 * label, 100, 50)).save(data / split / name / "1.png")
    picture = str(data / "test" / "cat" / "1.png")

    assert cli.main(["import-authors", str(file), "--out", run]) == 0
    assert "0.55 M parameters, not measured yet" in capsys.readouterr().out
    assert cli.main(["evaluate", run, "--data", str(data), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["evaluation"]["images"], measured["evaluation"]["gates"]["total"]) == (10, 336)
    assert cli.main(["evaluate", run, "--data", "/no/such/data", "--split", "validation"]) == 2
    assert "which images it held out is not known" in capsys.readouterr().err
    assert cli.main(["predict", run, picture, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert sorted(found["classes"]) == list(authors.CIFAR10_CLASSES)
    assert sum(layer["total"] for layer in found["layers"]) == 336

    joint = ["train", "cifar10/resnet20-gated", "--data", str(data), "--schedule.batch-size", "5"]
    for flags, words in (
        (["--out", run, "--resume", "--from-scratch"], "has ended already"),
        (["--out", str(tmp_path / "new"), "--backbone", run, "--gater", run], "holds a gated"),
        (["--out", str(tmp_path / "new"), "--gater", run], "--gater"),
    ):
        assert cli.main([*joint, *flags]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_class_names_come_from_the_data(tmp_path: Path) -> None:
    for name in ("red", "green", "blue"):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / "test" / name / "1.png")
    file = saved(released(classes=3), tmp_path)
    with pytest.raises(UserError, match=r"released\.pth tells 3 classes apart.*--data"):
        authors.import_run(file, tmp_path / "run")
    run = authors.import_run(file, tmp_path / "run", str(tmp_path / "data"))
    assert run.config.classes == ("blue", "green", "red")
    data = run.config.recipe.data
    assert (data.name, data.classes, data.mean, data.hub) == ("data", 3, CIFAR10.mean, None)
    file = saved(released(classes=4), tmp_path)
    with pytest.raises(UserError, match=r"has 3 classes, released\.pth has 4"):
        authors.import_run(file, tmp_path / "other", str(tmp_path / "data"))
    assert not (tmp_path / "other").exists()


def test_class_names_are_those_of_the_data_set(cifar10_dir: Path) -> None:
    assert read_folder(find_files(cifar10_dir), "test", 10).classes == authors.CIFAR10_CLASSES


def without(part: str, *names: str) -> Content:
    content = released()
    for name in names:
        del content[part][name]
    return content


def altered(part: str, **tensors: object) -> Content:
    content = released()
    content[part].update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    return content


BACKBONE, GATER = "backbone_state_dict", "gater_state_dict"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, r"not one of the authors' checkpoints, a dict of backbone_state_dict"),
        ([1, 2], r"not one of the authors' checkpoints"),
        ({**released(), GATER: 3}, r"not one of the authors' checkpoints"),
        (altered(GATER, epoch=3), r"gater_state_dict\.epoch is not a tensor but a int"),
        (without(BACKBONE, "bn.bias"), r"architecture: backbone_state_dict\.bn\.bias is missing$"),
        (without(GATER, "fnn.fc.0.bias"), r"gater_state_dict\.fnn\.fc\.0\.bias is missing$"),
        (without(BACKBONE, "fc.weight"), r"backbone_state_dict\.fc\.weight is missing, not \(outp"),
        (without(GATER, "resnet.newfc.weight"), r"resnet\.newfc\.weight is missing, not \(outputs"),
        (
            altered(GATER, resnet__newfc__weight=torch.zeros(0, 64)),
            r"newfc\.weight is \(0, 64\), not \(outputs, inputs\)",
        ),
        (altered(BACKBONE, extra=torch.zeros(1)), r"backbone_state_dict\.extra is unknown$"),
        (
            altered(BACKBONE, bn__bias=torch.zeros(1, 16)),
            r"backbone_state_dict\.bn\.bias is \(1, 16\), not \(16,\)$",
        ),
        (
            {**released(), BACKBONE: released(14)[BACKBONE]},
            r"fnn\.fc\.0\.weight is \(336, 8\), not \(224, 8\)",
        ),
        (
            without(BACKBONE, "bn.bias", "bn.weight", "fc.bias", "conv.weight", "bn.running_mean"),
            r"conv\.weight is missing; \S+ is missing; \S+ is missing; and 2 more$",
        ),
        (
            altered(BACKBONE, module__bn__bias=torch.zeros(16)),
            r"bn\.bias is there twice, with and without `module\.`",
        ),
        ({BACKBONE: {}, GATER: {}}, r"has no backbone_state_dict\.stage1\.block1"),
    ],
)
def test_file_of_another_content_is_refused_by_name(
    content: object, message: str, tmp_path: Path
) -> None:
    file = saved(content, tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        authors.import_run(file, tmp_path / "run")
    assert str(refused.value).startswith(str(file))
    assert list(tmp_path.iterdir()) == [file]


class Exploit:
    """What a pickle may do when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def plain_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


def zip_file(content: object, file: Path) -> None:
    torch.save(content, file)


def legacy_file(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [plain_pickle, zip_file, legacy_file])
def test_pickle_that_runs_code_is_refused_and_never_run(
    write: Callable[[object, Path], None], tmp_path: Path
) -> None:
    write(released() | {"best": Exploit(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"^\S*bad\.pth is .*holds more than tensors"):
        authors.import_run(tmp_path / "bad.pth", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(
    write: Callable[[object, Path], None], share: float, tmp_path: Path
) -> None:
    file = tmp_path / "torn.pth"
    write(released(8, 8), file)
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(UserError, match=r"^\S*torn\.pth is truncated[^\n]*$"):
        authors.load_checkpoint(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        authors.load_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match=r"is not a file"):
        authors.load_checkpoint(tmp_path)


def test_full_disk_leaves_nothing_and_a_run_stays(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gaternet.checkpoint.save_file", refuse)
        with pytest.raises(UserError, match=r"No space left on device"):
            authors.import_run(file, tmp_path / "run")
    assert list(tmp_path.iterdir()) == [file]
    authors.import_run(file, tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"holds a run already"):
        authors.import_run(file, tmp_path / "run")
    assert tree(tmp_path) == before
