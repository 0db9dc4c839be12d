"""Which networks export to ONNX: this package's families, timm's, real runs on real images."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from gaternet import backbones
from gaternet.backbones import BackboneConfig
from gaternet.data.batches import normalised_batches
from gaternet.data.settings import CIFAR10, IMAGENET
from gaternet.data.sources import load
from gaternet.gater import Gater
from gaternet.model import GatedModel, GaterNet
from gaternet.runtime.export import ExportResult, export
from gaternet.runtime.serving import Serving, describe_serving
from gaternet.verification import verify

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OWN = (
    "resnet20-identity",
    "resnet20-se",
    "resnet20-wider",
    "resnet29-preact",
    "densenet-bc-40-12",
    "shake-shake-26-2x32d",
)
TIMM = (
    "resnet50",
    "inception_v4",
    "mobilenetv3_small_050",
    "convnext_atto",
    "efficientnet_b0",
    "regnety_002",
    "densenet121",
    "vgg11_bn",
    "res2net50_14w_8s",
    "seresnet18",
)
TOLERANCE = 1e-5


def gated(backbone: nn.Module) -> GaterNet:
    """A gated network of ordinary norms, whose gater looks at a small copy of the image."""
    torch.manual_seed(0)
    extractor = backbones.create(BackboneConfig("resnet8", 0))
    size = describe_serving(backbone).input_size
    model = GaterNet(backbone, Gater(extractor, 8, input_size=24)).train()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
                part.momentum = 1.0
        model(torch.randn(4, *size))
    return model.eval()


def check(result: ExportResult) -> None:
    assert all(check.found.agrees(TOLERANCE) for check in result.checks)
    # At some place an error: two networks that give zeros would agree without a word.
    assert any(check.found.logit_error > 0 for check in result.checks)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_own_families_export(name: str, tmp_path: Path) -> None:
    check(export(gated(backbones.create(BackboneConfig(name, 10))), tmp_path / "model.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_families_export(name: str, tmp_path: Path) -> None:
    result = export(gated(timm.create_model(name, num_classes=20)), tmp_path / "model.onnx")
    check(result)
    assert result.about["mean"] is not None


@pytest.mark.slow
def test_exported_file_on_real_cifar_images(cifar10_dir: Path, tmp_path: Path) -> None:
    model = gated(backbones.create(BackboneConfig("resnet20", 10)))
    images = next(normalised_batches(load(str(cifar10_dir), CIFAR10, "test", 32), CIFAR10, "cpu"))
    result = export(model, tmp_path / "model.onnx", images=images)
    check(result)
    assert [check.batch for check in result.checks if check.images == "given"] == [1, 7]
    compare_with_onnxruntime(model, tmp_path / "model.onnx", images[:333])


@pytest.mark.slow
def test_exported_file_on_real_photographs(imagenet_sample: Path, tmp_path: Path) -> None:
    model = gated(timm.create_model("resnet18"))
    found = load(str(imagenet_sample), IMAGENET, "train", 224)
    images = next(normalised_batches(found, IMAGENET, "cpu", 20))
    check(export(model, tmp_path / "model.onnx", images=images))
    compare_with_onnxruntime(model, tmp_path / "model.onnx", images)


def compare_with_onnxruntime(model: GatedModel, path: Path, images: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(path)
    outputs = [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]
    assert verify(model, lambda _: outputs, images).agrees(TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("image", "glance"), [(224, 56), (224, 64), (224, 100), (32, 33), (30, 7)])
def test_a_glance_at_the_scaled_image_exports(image: int, glance: int, tmp_path: Path) -> None:
    """ONNX's Resize weighs pixels as PyTorch does.

    Both place pixels in float32: where the ratio of sizes is odd, each is some 1e-5 from the truth.
    """

    class Glance(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return Gater(nn.Identity(), 1, input_size=glance).glance(images)

    result = export(Glance(), tmp_path / "model.onnx", Serving((3, image, image)))
    tolerance = 2e-5 if image % glance else 1e-6
    assert all(check.found.agrees(tolerance) for check in result.checks)
