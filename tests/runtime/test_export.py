"""Exported files, run by onnxruntime and torch.export by themselves, against the model."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.errors import UsageError, UserError
from gaternet.gate_points import GatePoint
from gaternet.gater import Gater
from gaternet.local import LocalGaterNet
from gaternet.model import GaterNet
from gaternet.rivals import RandomGates, SoftGates
from gaternet.runtime import export_formats
from gaternet.runtime.export import ExportError, ExportResult, export
from gaternet.runtime.serving import MASKED, PLAIN, Serving
from small_runs import tree

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SERVING = Serving((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 10, classes=tuple("abcdefghij"))
BATCHES = (1, 2, 7)

Network = TypeVar("Network", bound=nn.Module)


def some_images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def small_backbone() -> CifarResNet:
    return CifarResNet(8, widths=(4, 8, 8), image_size=8)


def small_gater(**settings: Any) -> Gater:
    extractor = CifarResNet(8, classes=0, widths=(4, 4, 4), image_size=8)
    return Gater(extractor, bottleneck=4, **settings)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model() -> GaterNet:
    torch.manual_seed(0)  # before those of a single test
    return trained(GaterNet(small_backbone(), small_gater(input_size=5)))


@pytest.fixture(scope="module")
def exported(model: GaterNet, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export(model, path, SERVING, images=some_images(9))


@pytest.fixture
def onnx_file(exported: ExportResult) -> Path:
    return Path(exported.path)


def trained(module: Network) -> Network:
    """Give every norm statistics and weights of ordinary size; leave it in training mode."""
    torch.manual_seed(0)
    module.train()
    with torch.no_grad():
        module(torch.randn(64, 3, 8, 8))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.2)
    return module


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path)
    return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]


@torch.no_grad()
def expected(model: nn.Module, images: Tensor) -> Any:
    return copy.deepcopy(model).eval()(images)


@pytest.mark.parametrize("batch", BATCHES)
def test_onnx_file_computes_the_model_at_any_batch(
    model: GaterNet, onnx_file: Path, batch: int
) -> None:
    logits, gates = run_onnx(onnx_file, some_images(batch))
    reference = expected(model, some_images(batch))
    torch.testing.assert_close(logits, reference.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(gates, reference.gates)
    assert 0.1 < gates.mean() < 0.9


def test_onnx_file_is_one_file_with_an_open_batch_size(onnx_file: Path) -> None:
    assert [file.name for file in onnx_file.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(onnx_file)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["batch", 3, 8, 8])
    returned = [(output.name, output.shape) for output in session.get_outputs()]
    assert returned == [("logits", ["batch", 10]), ("gates", ["batch", 20])]


def test_onnx_file_says_what_serving_it_takes(model: GaterNet, onnx_file: Path) -> None:
    found = onnxruntime.InferenceSession(onnx_file).get_modelmeta()
    about = {name: json.loads(value) for name, value in found.custom_metadata_map.items()}
    assert about["mean"] == [0.5, 0.4, 0.3]
    assert about["std"] == [0.2, 0.3, 0.4]
    assert (about["input_size"], about["shorter_side"]) == ([3, 8, 8], 10)
    assert about["classes"] == list("abcdefghij")
    assert about["threshold"] == 0.0
    names = [(point["name"], point["gates"]) for point in about["gate_points"]]
    assert names == [(point.name, point.gates) for point in model.points]
    assert about["speed"] == found.description == MASKED


def test_onnx_file_tells_no_paths_of_the_machine(onnx_file: Path) -> None:
    assert b".py" not in onnx_file.read_bytes()


def test_pt2_file_runs_without_this_package(model: GaterNet, tmp_path: Path) -> None:
    path, wanted = tmp_path / "model.pt2", tmp_path / "wanted.pt"
    result = export(model, path, SERVING)
    assert result.format == "torch.export"
    assert b".py" not in path.read_bytes()
    torch.save([(some_images(n), *expected(model, some_images(n))) for n in BATCHES], wanted)
    code = f"""
import json, sys
sys.modules["gaternet"] = None
import torch
about = {{"metadata.json": ""}}
run = torch.export.load({str(path)!r}, extra_files=about).module()
for images, logits, gates in torch.load({str(wanted)!r}):
    found = run(images)
    assert torch.equal(found[0], logits) and torch.equal(found[1], gates)
print(json.loads(about["metadata.json"])["classes"][3])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "d\n"), done.stderr


def test_the_model_stays_as_it_is(model: GaterNet, tmp_path: Path) -> None:
    state = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "model.pt2")
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model._holder.gates is None


def test_the_file_is_checked_on_one_and_seven_images_of_each_kind(exported: ExportResult) -> None:
    shown = [(check.images, check.batch, check.found.gates) for check in exported.checks]
    gates = [("random", 1, 20), ("random", 7, 140), ("given", 1, 20), ("given", 7, 140)]
    assert shown == gates
    assert exported.verified_with == f"onnxruntime {onnxruntime.__version__}"
    assert all(check.found.agrees(1e-5) for check in exported.checks)
    assert exported.bytes == Path(exported.path).stat().st_size


class TwoOutputs(nn.Module):
    """Any module that returns (logits, gates)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = images.mean(dim=(2, 3))
        return self.fc(means), (means > 0).float()


class Pyramid(nn.Module):
    """A network used for its feature maps."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images * 2, images.mean(dim=1)]


def local(**settings: Any) -> LocalGaterNet:
    return trained(LocalGaterNet(small_backbone(), bottleneck=4, **settings))


def soft() -> GaterNet:
    return trained(GaterNet(small_backbone(), small_gater(), binarizer=SoftGates()))


def blocks() -> GaterNet:
    points = [GatePoint("stage1.block1.bn2", 4, 2), GatePoint("stage2.block1.bn2", 8, 8)]
    model = trained(GaterNet(small_backbone(), small_gater(input_size=13), points))
    model.binarizer.threshold = 0.3
    return model


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (local, ["logits", "gates"]),
        pytest.param(
            lambda: local(granularity="branches"), ["logits", "gates"], marks=pytest.mark.slow
        ),
        pytest.param(soft, ["logits", "gates"], marks=pytest.mark.slow),
        (blocks, ["logits", "gates"]),
        (TwoOutputs, ["logits", "gates"]),
        (Pyramid, ["features_0", "features_1"]),
    ],
)
def test_other_models_export(
    make: Callable[[], nn.Module], names: list[str], tmp_path: Path
) -> None:
    model, path = make(), tmp_path / "model.onnx"
    result = export(model, path, Serving((3, 8, 8)))
    assert list(result.outputs) == names
    reference = expected(model, some_images(3))
    reference = [reference] if isinstance(reference, Tensor) else list(reference)
    for found, wanted in zip(run_onnx(path, some_images(3)), reference, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16_and_channels_last_become_float32(tmp_path: Path) -> None:
    model = trained(small_backbone()).to(torch.bfloat16).to(memory_format=torch.channels_last)
    result = export(model, tmp_path / "model.onnx")
    assert result.about["speed"] == PLAIN
    (logits,) = run_onnx(tmp_path / "model.onnx", some_images(2))
    torch.testing.assert_close(logits, expected(copy.deepcopy(model).float(), some_images(2)))
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("broken", ["logits", "nan", "gates"])
def test_a_file_that_computes_something_else_is_not_kept(
    model: GaterNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    opened = export_formats.TorchExport.open

    def breaking(self: export_formats.TorchExport, path: Path) -> export_formats.Runner:
        run = opened(self, path)

        def run_badly(images: Tensor) -> tuple[Tensor, ...]:
            logits, gates = run(images)
            if broken == "gates":
                far = expected_gate_logits(model, images).abs()[0].argmax()
                gates[0, far] = 1 - gates[0, far]
                logits = copy.deepcopy(model).eval()(images, gates=gates).logits
            else:
                logits[0, 0] += math.nan if broken == "nan" else 2e-4 * logits.abs().max()
            return logits, gates

        return run_badly

    monkeypatch.setattr(export_formats.TorchExport, "open", breaking)
    with pytest.raises(ExportError, match="was not written"):
        export(model, tmp_path / "model.pt2")
    assert tree(tmp_path) == {}


@torch.no_grad()
def expected_gate_logits(model: GaterNet, images: Tensor) -> Tensor:
    return copy.deepcopy(model).eval().gate_logits(images)


def test_what_cannot_be_written_is_said_in_one_line(model: GaterNet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in none of \.onnx, \.pt2"):
        export(model, tmp_path / "model.tflite")
    with pytest.raises(UserError, match="is not a folder"):
        export(model, tmp_path / "missing" / "model.onnx")
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(model, tmp_path / "there.onnx")
    for name in ("n" * 246, "n" * 300):
        with pytest.raises(UserError, match="File name too long"):
            export(model, tmp_path / f"{name}.pt2")
    with pytest.raises(UserError, match="3 names of classes for 10 logits"):
        export(model, tmp_path / "m.onnx", Serving((3, 8, 8), classes=("a", "b", "c")))
    with pytest.raises(UserError, match=r"takes no images \(1, 8, 8\)"):
        export(model, tmp_path / "m.onnx", Serving((1, 8, 8)))
    with pytest.raises(ValueError, match="images have 3 channels"):
        Serving((3, 8, 8), mean=(0.5,))
    assert tree(tmp_path) == {"there.onnx": b"mine"}


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_full_disk_is_said_in_one_line(tmp_path: Path, ending: str) -> None:
    code = f"""
import resource, signal
from torch import nn
from gaternet import Serving, UserError, export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 100))
try:
    export(model, {str(tmp_path / f"model.{ending}")!r}, Serving((3, 32, 32)))
except UserError as error:
    print(error)
"""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cannot write {tmp_path}/model.{ending}: File too large\n"
    assert tree(tmp_path) == {}


def test_random_gates_are_refused(tmp_path: Path) -> None:
    model = GaterNet(small_backbone(), small_gater(), binarizer=RandomGates(0.5))
    with pytest.raises(UserError, match="random gates"):
        export(model, tmp_path / "model.onnx")


class DependsOnValues(nn.Module):
    """Control flow that no exporter can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))


def test_a_model_that_cannot_be_exported_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DependsOnValues cannot be exported: \w") as raised:
        export(DependsOnValues(), tmp_path / "model.onnx", Serving((3, 8, 8)))
    assert "\n" not in str(raised.value)


def test_a_model_without_an_onnx_form_is_refused_in_one_line(tmp_path: Path) -> None:
    @torch.library.custom_op("gaternet_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Custom(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return twice(images.mean(dim=(2, 3)))

    with pytest.raises(UserError, match=r"no ONNX form: .*twice.*export to \.pt2") as raised:
        export(Custom(), tmp_path / "model.onnx", Serving((3, 8, 8)))
    assert "\n" not in str(raised.value)
    assert export(Custom(), tmp_path / "model.pt2", Serving((3, 8, 8))).checks[0].found.agrees(0)


def test_without_onnx_it_says_what_to_install(
    model: GaterNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"need onnx: pip install 'gaternet\[export\]'"):
        export(model, tmp_path / "model.onnx")


def test_without_onnxruntime_the_file_is_not_verified_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = export(TwoOutputs(), tmp_path / "model.onnx", Serving((3, 8, 8)))
    assert (result.verified_with, result.checks) == (None, ())
    assert (tmp_path / "model.onnx").is_file()


def test_the_exporters_say_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for ending in ("onnx", "pt2"):
        export(TwoOutputs(), tmp_path / f"model.{ending}", Serving((3, 8, 8)))
    assert capfd.readouterr() == ("", "")
