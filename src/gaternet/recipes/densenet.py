"""DenseNet-BC on CIFAR-10 (the paper's Table 2) and CIFAR-100."""

from dataclasses import replace

from gaternet.data.settings import CIFAR10, CIFAR100, DataConfig
from gaternet.recipes.resnet import GATING
from gaternet.training.config import Optimizer, Recipe, Schedule

EPOCHS = 300
SCHEDULE = Schedule(batch_size=64, kind="step", milestones=(0.5, 0.75))
OPTIMIZER = Optimizer(lr=0.1, nesterov=True)
"""300 epochs in batches of 64, the learning rate divided by ten at 50 % and 75 %, Nesterov momentum
0.9, weight decay 0.0001 (Huang et al., 2017, section 4.2)."""

MORE_EPOCHS = 20
JOINT_RATE = 0.05
GATE_DROPOUT = 0.05
"""What the paper changes for the joint phase (section 4.4, appendix B)."""


def _densenet(data: DataConfig, depth: int, growth: int) -> list[Recipe]:
    title = f"DenseNet-BC (L = {depth}, k = {growth})"
    source = "Table 2, " if data is CIFAR10 else "not in the paper: "
    plain = Recipe(
        name=f"{data.name}/densenet-bc-{depth}-{growth}",
        reproduces=f"{source}{title} on {data.title}",
        data=data,
        backbone=f"densenet-bc-{depth}-{growth}",
        epochs=EPOCHS,
        schedule=SCHEDULE,
        optimizer=OPTIMIZER,
    )
    gated = replace(
        plain,
        name=f"{plain.name}-gated",
        reproduces=f"{source}{title}-Gated on {data.title}",
        epochs=EPOCHS + MORE_EPOCHS,
        optimizer=replace(OPTIMIZER, lr=JOINT_RATE),
        gating=replace(GATING, dropout=GATE_DROPOUT),
        pretrain=(plain.name, f"{data.name}/resnet20"),
    )
    return [plain, gated]


RECIPES = [
    recipe
    for data in (CIFAR10, CIFAR100)
    for depth, growth in ((100, 12), (250, 24), (190, 40))
    for recipe in _densenet(data, depth, growth)
]
