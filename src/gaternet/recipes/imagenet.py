"""ImageNet: ResNets, their wider and squeeze-and-excitation versions, Inception-v4 (Table 3)."""

from dataclasses import replace

from gaternet.data.settings import IMAGENET, IMAGENET_299, Augmentation
from gaternet.recipes.densenet import GATE_DROPOUT
from gaternet.recipes.resnet import SPARSITY
from gaternet.training.config import Gating, Optimizer, Recipe, Schedule

AUGMENTATION = Augmentation(crop_padding=0, smallest_area=0.08)

RESNET_EPOCHS = 120
RESNET_SCHEDULE = Schedule(batch_size=256, kind="step", milestones=(0.25, 0.5, 0.75))
"""600,000 steps of 256 images, learning rate 0.1, momentum 0.9, weight decay 0.0001 (He et al.,
2016a, section 3.4). He et al. divide the rate by ten at plateaus; here it is every 30 epochs."""

INCEPTION_EPOCHS = 160
INCEPTION_SCHEDULE = Schedule(batch_size=640, kind="exponential", decays=80)
INCEPTION_OPTIMIZER = Optimizer(
    kind="rmsprop", lr=0.045, momentum=0.9, weight_decay=4e-5, label_smoothing=0.1
)
"""RMSProp with decay 0.9 and ε = 1, learning rate 0.045 times 0.94 every two epochs, 20 replicas of
32 images, here one batch (Szegedy et al., 2017, section 4). That paper gives neither the number of
epochs nor weight decay nor label smoothing: the latter two are those of its authors' released code.
"""

BOTTLENECK = 256
"""ResNet-152-Gated too: the text says 1024, but the table's 83.80 M parameters are 256's."""


def _gating(dropout: float = 0.0) -> Gating:
    return Gating(gater="timm/resnet18", bottleneck=BOTTLENECK, sparsity=SPARSITY, dropout=dropout)


def resnet(name: str, backbone: str, reproduces: str) -> Recipe:
    """Return the recipe of a plain ResNet on ImageNet."""
    return Recipe(
        name=f"imagenet/{name}",
        reproduces=reproduces,
        data=IMAGENET,
        backbone=backbone,
        epochs=RESNET_EPOCHS,
        schedule=RESNET_SCHEDULE,
        augmentation=AUGMENTATION,
    )


def _table3(depth: int) -> list[Recipe]:
    title = f"Table 3, ResNet-{depth}"
    plain = resnet(f"resnet{depth}", f"timm/resnet{depth}", f"{title} on ImageNet")
    gated = replace(
        plain,
        name=f"{plain.name}-gated",
        reproduces=f"{title}-Gated on ImageNet",
        gating=_gating(),
        pretrain=(plain.name, "imagenet/resnet18"),
    )
    return [
        plain,
        resnet(f"resnet{depth}-wider", f"timm/resnet{depth}-wider", f"{title}-Wider on ImageNet"),
        resnet(f"resnet{depth}-se", f"timm/seresnet{depth}", f"{title}-SE on ImageNet"),
        gated,
    ]


def _inception() -> list[Recipe]:
    plain = Recipe(
        name="imagenet/inception-v4",
        reproduces="Table 3, Inception-v4 on ImageNet",
        data=IMAGENET_299,
        backbone="timm/inception_v4",
        epochs=INCEPTION_EPOCHS,
        optimizer=INCEPTION_OPTIMIZER,
        schedule=INCEPTION_SCHEDULE,
        augmentation=AUGMENTATION,
    )
    gated = replace(
        plain,
        name=f"{plain.name}-gated",
        reproduces="Table 3, Inception-v4-Gated on ImageNet",
        gating=_gating(dropout=GATE_DROPOUT),
        pretrain=(plain.name, "imagenet/resnet18"),
    )
    return [plain, gated]


RESNET18 = resnet(
    "resnet18", "timm/resnet18", "section 4.3: the gater's pre-training, ResNet-18 on ImageNet"
)
RECIPES = [RESNET18, *(r for depth in (34, 101, 152) for r in _table3(depth)), *_inception()]
