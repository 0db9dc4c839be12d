"""timm's CNN families: the smallest member of each, and its gates worked out by hand.

The sums are widths times places, from the architectures' published tables: the output width of
each residual unit, growth rates, or the widths of concatenations.
"""

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn


@dataclass(frozen=True)
class Family:
    """A family by one member: timm's name, gates, where they are; a side that images may have."""

    name: str
    model: str
    gates: int
    where: str = "residual branches"
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)

    def create(self, **options: Any) -> nn.Module:
        return timm.create_model(self.model, **self.options | options)

    def row(self, points: int) -> str:
        """Its line in the table of docs/any-cnn.md."""
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        model = f"`{self.model}`{options}"
        return f"| {self.name} | {model} | {self.gates:,} | {points} points | {self.where} |"

    def create_on_meta(self) -> nn.Module:
        with torch.device("meta"):
            return self.create()


BASIC = 2 * (64 + 128 + 256 + 512)
BOTTLENECK = 2 * (256 + 512 + 1024 + 2048)
BOTTLENECK_50 = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048
REGNET = 24 + 56 + 4 * 152 + 7 * 368
CONVNEXT = 2 * 40 + 2 * 80 + 6 * 160 + 2 * 320
XCEPTION = 128 + 256 + (1 + 8) * 728 + 1024
GHOST = 8 + 2 * 12 + 2 * 20 + 4 * 40 + 2 * 56 + 5 * 80
# the last conv and, of 512 · 7 · 7 inputs, the first fully connected layers (as convs)
VGG = 64 + 128 + 2 * 256 + 4 * 512 + 256 + 4096
HRNET = (
    (128 + 128 + 256 + 512 + 1024)  # units of the stem and of the head
    + 2 * (3 * (16 + 32) + 2 * 64 + 128)  # units of stages 2, 3 and 4, two in each branch
    + ((1 + 2 + 3) * (16 + 32) + (2 + 3) * 64 + 3 * 128)  # what is fused into each branch
    + (256 + 512 + 1024)  # what is fused in the head
)
# the units of each stage, and the conv after them that is joined with the other half
CSPDARKNET = (1 + 1) * 64 + (2 + 1) * 64 + (8 + 1) * 128 + (8 + 1) * 256 + (4 + 1) * 512
VOVNET = (128 + 3 * 64) + (112 + 3 * 80) + (256 + 3 * 96) + (384 + 3 * 112)
CONCATENATIONS = "concatenations"
JOINED = "residual branches, joined convs"
CHAIN = "every conv"
SMALL_VGG = {"mlp_ratio": 1 / 16}

FAMILIES = (
    Family("ResNet", "resnet18", BASIC),
    Family("ResNet-D", "resnet18d", BASIC),
    Family("ResNeXt", "resnext26ts", BOTTLENECK),
    Family("ResNet, pre-activation (BiT)", "resnetv2_50", BOTTLENECK_50),
    Family("ResNet with blur pooling", "resnetblur50", BOTTLENECK_50),
    Family("SE-ResNet", "seresnet18", BASIC),
    Family("ECA-ResNet", "ecaresnet26t", BOTTLENECK),
    Family("GC-ResNeXt", "gcresnext26ts", BOTTLENECK),
    Family("SKNet", "skresnet18", BASIC),
    Family("ResNeSt", "resnest14d", BOTTLENECK // 2),
    Family("Res2Net", "res2net50_14w_8s", BOTTLENECK_50),
    Family("TResNet", "tresnet_m", 3 * 64 + 4 * 128 + 11 * 1024 + 3 * 2048),
    Family("RegNetX", "regnetx_002", REGNET),
    Family("RegNetY", "regnety_002", REGNET),
    Family("RegNetZ", "regnetz_005", 3 * 40 + 8 * 104 + 6 * 256),
    Family("GENet", "gernet_s", 48 + 3 * 48 + 7 * 384 + 2 * 560 + 256),
    Family("NF-ResNet", "nf_resnet26", BOTTLENECK),
    Family("NF-RegNet", "nf_regnet_b0", 40 + 3 * 80 + 6 * 160 + 6 * 328),
    Family("DenseNet", "densenet121", 32 * (5 + 11 + 23 + 15), "new channels"),
    Family("DPN", "dpn48b", 3 * 80 + 4 * 160 + 6 * 288 + 3 * 576, "residual and new channels"),
    Family("Inception-v3", "inception_v3", 10_048, CONCATENATIONS, 128),
    Family("Inception-v4", "inception_v4", 16_608, CONCATENATIONS, 128),
    Family(
        "Inception-ResNet-v2",
        "inception_resnet_v2",
        11 * 320 + 21 * 1088 + 11 * 2080,
        "residual branches, concatenations between",
        128,
    ),
    Family("Xception", "legacy_xception", XCEPTION),
    Family("Aligned Xception", "xception41", XCEPTION),
    Family("VGG", "vgg11", VGG, CHAIN, options=SMALL_VGG),
    Family("VGG-BN", "vgg11_bn", VGG, CHAIN, options=SMALL_VGG),
    Family("MobileNetV1", "mobilenetv1_100", 10_944, CHAIN),
    Family("MobileNetV2", "mobilenetv2_050", 16 + 2 * 16 + 3 * 32 + 2 * 48 + 2 * 80),
    Family("MobileNetV3", "mobilenetv3_small_050", 16 + 2 * 24 + 2 * 24 + 2 * 48),
    Family("MobileNetV4", "mobilenetv4_conv_small", 5 * 96 + 5 * 128),
    Family("MNASNet", "mnasnet_small", 8 + 16 + 6 * 32 + 2 * 88),
    Family("EfficientNet", "efficientnet_b0", 24 + 40 + 2 * 80 + 2 * 112 + 3 * 192),
    Family(
        "EfficientNetV2",
        "efficientnetv2_rw_t",
        2 * 24 + 3 * 40 + 3 * 48 + 5 * 104 + 8 * 128 + 13 * 208,
    ),
    Family("TinyNet", "tinynet_e", 40 + 56 + 96),
    Family("FBNet", "fbnetc_100", 16 + 2 * 24 + 3 * 32 + 3 * 64 + 3 * 112 + 3 * 184),
    Family("SPNASNet", "spnasnet_100", 2 * 24 + 3 * 40 + 3 * 80 + 3 * 96 + 3 * 192),
    Family("HardCoRe-NAS", "hardcorenas_a", 24 + 40 + 80 + 112 + 192),
    Family("MixNet", "mixnet_s", 16 + 24 + 3 * 40 + 2 * 80 + 2 * 120 + 2 * 200),
    Family("LCNet", "lcnet_050", 4_016, CHAIN),
    Family("ReXNet", "rexnet_100", 38 + 61 + 84 + 95 + 106 + 117 + 128 + 151 + 162 + 174 + 185),
    Family("GhostNet", "ghostnet_050", GHOST),
    Family("RepVGG", "repvgg_a0", 48 + 2 * 48 + 4 * 96 + 14 * 192 + 1280, "sums of convs"),
    Family("MobileOne", "mobileone_s0", 6 * 48 + 16 * 128 + 20 * 256 + 1024, "sums of convs"),
    Family("ConvNeXt", "convnext_atto", CONVNEXT),
    Family("ConvNeXt-V2", "convnextv2_atto", CONVNEXT),
    Family("InceptionNeXt", "inception_next_atto", CONVNEXT),
    Family("PoolFormer", "poolformer_s12", 2 * (2 * 64 + 2 * 128 + 6 * 320 + 2 * 512)),
    Family("StarNet", "starnet_s1", 2 * 24 + 2 * 48 + 8 * 96 + 3 * 192),
    Family("HRNet", "hrnet_w18_small", HRNET, "residual branches, what is fused"),
    Family("DLA", "dla46_c", 1_600, "residual branches, roots that are joined again"),
    Family("DarkNet", "darknet17", 64 + 128 + 256 + 512 + 1024),
    Family("CSPNet (CSPResNet)", "cspresnet50", 4 * 128 + 4 * 256 + 6 * 512 + 3 * 1024, JOINED),
    Family("CSPNet (CSPDarkNet)", "cspdarknet53", CSPDARKNET, JOINED),
    Family("CS3", "cs3darknet_s", 32 + 3 * 64 + 4 * 128 + 256),
    Family("VoVNet", "ese_vovnet19b_slim", VOVNET, CONCATENATIONS),
    Family("HGNetV2", "hgnetv2_b0", 1_248, "joined convs, residual branches"),
    Family("SelecSLS", "selecsls42", 2 * 32 + 128 + 144 + 288 + 304 + 608, "joined convs"),
)
