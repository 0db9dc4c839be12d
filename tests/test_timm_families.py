"""timm's CNN families under gates: counts worked out by hand, plain outputs as the oracle."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from gaternet import Gater, GaterNet, find_gate_points, gated_cross_entropy, trace
from small_networks import conv
from timm_families import FAMILIES, Family

PAGE = Path(__file__).parents[1] / "docs" / "any-cnn.md"
ONE_OF_EACH_KIND = {
    *("ResNet-D", "SKNet", "ResNeSt", "RegNetZ", "NF-ResNet", "DPN", "Inception-ResNet-v2"),
    *("Xception", "VGG-BN", "MobileNetV2", "MixNet", "LCNet", "ReXNet", "GhostNet", "RepVGG"),
    *("ConvNeXt-V2", "HRNet", "DLA", "CSPNet (CSPDarkNet)", "VoVNet", "HGNetV2", "SelecSLS"),
}

slow_but_one_of_each_kind = pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=[] if f.name in ONE_OF_EACH_KIND else pytest.mark.slow, id=f.name)
        for f in FAMILIES
    ],
)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@slow_but_one_of_each_kind
def test_gates_are_where_the_published_tables_have_them(family: Family) -> None:
    points = find_gate_points(trace(family.create_on_meta()))
    assert sum(point.gates for point in points) == family.gates
    assert family.row(len(points)) in PAGE.read_text().splitlines()


def test_the_page_lists_the_families_and_no_others() -> None:
    listed = re.findall(r"^\| ([^|]*) \| `", PAGE.read_text(), re.MULTILINE)
    assert listed == [family.name for family in FAMILIES]


# --- the forward, exactly -----------------------------------------------------------------------


def gated(backbone: nn.Module, size: int) -> GaterNet:
    extractor = nn.Sequential(conv(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return GaterNet(backbone, Gater(extractor, bottleneck=4), input_size=(3, size, size))


def randomise_scales(backbone: nn.Module) -> None:
    """Norms, layer scales and gains, of which some start at 0: then closing changes nothing."""
    for parameter in backbone.parameters():
        if parameter.numel() == max(parameter.shape, default=1):
            nn.init.uniform_(parameter, 0.2, 0.8)


def half_closed(model: GaterNet, images: Tensor) -> Tensor:
    return (torch.rand(len(images), model.gate_count) < 0.5).float()


def watch(model: GaterNet) -> dict[str, Tensor]:
    """What flows on from each gate point; the gate's own hook comes first."""
    seen: dict[str, Tensor] = {}
    for point in model.points:
        model.backbone.get_submodule(point.name).register_forward_hook(
            lambda module, args, output, name=point.name: seen.update({name: output.clone()})
        )
    return seen


@pytest.mark.slow
@each_family
@torch.no_grad()
def test_open_gates_change_nothing_and_closed_ones_give_zero(family: Family) -> None:
    torch.manual_seed(0)
    backbone = family.create(num_classes=10).eval()
    randomise_scales(backbone)
    images = torch.randn(2, 3, family.size, family.size)
    plain = backbone(images)
    model = gated(backbone, family.size).eval()
    assert torch.equal(model(images, gates=torch.ones(model.gate_count)).logits, plain)
    flowing = watch(model)
    gates = half_closed(model, images)
    logits = model(images, gates=gates).logits
    assert logits.isfinite().all()
    assert all(not torch.equal(mine, theirs) for mine, theirs in zip(logits, plain, strict=True))
    for name, columns in model.slices.items():
        closed = gates[:, columns] == 0
        assert (flowing[name][closed] == 0).all(), name
    assert torch.equal(model.backbone(images), plain)


@pytest.mark.slow
@each_family
def test_a_training_step_has_finite_gradients_and_the_state_goes_round(family: Family) -> None:
    torch.manual_seed(0)
    model = gated(family.create(num_classes=10), family.size)
    images = torch.randn(2, 3, family.size, family.size)
    logits, gates = model(images)
    gated_cross_entropy(logits, gates, torch.tensor([3, 7]), sparsity=0.1).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for part in ("backbone", "gater"):
        assert any(g.any() for name, g in gradients.items() if name.startswith(part)), part

    again = gated(family.create(num_classes=10), family.size)
    again.load_state_dict(model.state_dict())
    assert again.points == model.points
    with torch.no_grad():
        ours, theirs = model.eval()(images), again.eval()(images)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.gates, theirs.gates)


@pytest.mark.slow
@each_family
@torch.no_grad()
def test_a_feature_backbone_keeps_its_list_of_maps(family: Family) -> None:
    torch.manual_seed(0)
    backbone = family.create(features_only=True).eval()
    randomise_scales(backbone)
    images = torch.randn(2, 3, family.size, family.size)
    plain = backbone(images)
    model = gated(backbone, family.size).eval()
    maps = model(images, gates=torch.ones(model.gate_count)).logits
    assert len(maps) > 1
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(maps, plain, strict=True))
    assert all(fine.shape[-1] >= coarse.shape[-1] for fine, coarse in pairwise(maps))
    closed = model(images, gates=half_closed(model, images)).logits
    assert not torch.equal(closed[-1], plain[-1])


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "vit_tiny_patch16_224": r"tokens \(2, 197, 192\)",
    "swin_tiny_patch4_window7_224": r"tokens \(2, 3136, 96\)",
    "mixer_s32_224": r"tokens \(2, 49, 512\)",
    "mobilevit_xxs": r"tokens \(8, 256, 64\)",
    "pvt_v2_b0": r"tokens",
    "levit_128s": r"tokens",
    "edgenext_xx_small": r"tokens",
    "maxvit_tiny_tf_224": r"`view` in .* a reshape hides which dimension",
    "gcvit_xxtiny": r"`view` in .* a reshape hides which dimension",
    "nextvit_small": r"`reshape` in .* no submodule's output",
    "mambaout_femto": r"`stages\.0\.blocks\.0\.fc2`: its output is \(N, H, W, C\)",
}
QUICKLY_REFUSED = ("mixer_s32_224", "mobilevit_xxs", "mambaout_femto")


@pytest.mark.parametrize(
    "model",
    [pytest.param(n, marks=[] if n in QUICKLY_REFUSED else pytest.mark.slow) for n in REFUSED],
)
def test_half_a_rule_is_refused_with_the_reason_and_the_way_out(model: str) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model)
    way_out = r".*Name the gate points yourself.*points=\['"
    with pytest.raises(ValueError, match=REFUSED[model] + way_out):
        find_gate_points(trace(backbone))


def test_what_is_refused_can_be_gated_by_names() -> None:
    with torch.device("meta"):
        backbone = timm.create_model("mobilevit_xxs")
        extractor = nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = GaterNet(
            backbone,
            Gater(extractor, bottleneck=4),
            points=lambda name: name.endswith("conv3_1x1.bn") and name < "stages.2",
        )
    assert model.gate_count == 16 + 3 * 24
