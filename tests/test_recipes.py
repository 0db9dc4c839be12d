"""Every recipe can be run, and the paper's have their papers' values."""

import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from gaternet import backbones, recipes
from gaternet.backbones import BackboneConfig
from gaternet.errors import UsageError
from gaternet.recipes import RECIPES
from gaternet.recipes.comparisons import control
from gaternet.training.config import Gating, parts, recipe_from_dict, recipe_to_dict
from gaternet.training.cost import cost
from gaternet.training.schedules import gate_dropout_rate, learning_rate
from gaternet.training.starting import pretraining

GATED = [name for name in RECIPES if RECIPES[name].gating]
PRETRAINED = [name for name in RECIPES if RECIPES[name].pretrain]
PAPER = [recipe.name for recipe in recipes.PAPER]

TABLE1 = [
    f"cifar{classes}/resnet{depth}{kind}"
    for classes in (10, 100)
    for depth in (20, 56, 164)
    for kind in ("", "-wider", "-se", "-gated")
]
TABLE2 = [
    f"cifar10/{model}{kind}"
    for model in (
        "densenet-bc-100-12",
        "densenet-bc-250-24",
        "densenet-bc-190-40",
        "shake-shake-26-2x64d",
        "shake-shake-26-2x96d",
    )
    for kind in ("", "-gated")
]
TABLE3 = [
    *(f"imagenet/resnet{d}{k}" for d in (34, 101, 152) for k in ("", "-wider", "-se", "-gated")),
    "imagenet/inception-v4",
    "imagenet/inception-v4-gated",
]  # fmt: skip
ROWS = [*TABLE1, *TABLE2, *TABLE3]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_be_run_and_survives_a_file(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipe_from_dict(recipe_to_dict(recipe), "config.json") == recipe


def test_networks_of_all_recipes_exist() -> None:
    wanted = {(r.backbone, r.data.classes) for r in RECIPES.values()}
    wanted |= {(r.gating.gater, 0) for r in RECIPES.values() if r.gating and r.gating.gater}
    with torch.device("meta"):
        for name, classes in sorted(wanted):
            network = backbones.create(BackboneConfig(name, classes))
            found = backbones.describe(network)
            assert (found.name, found.classes) == (name, classes)


def test_every_row_of_the_paper_s_tables_has_a_recipe() -> None:
    assert len(ROWS) == 48
    assert set(ROWS) <= set(PAPER)
    for number, names in enumerate((TABLE1, TABLE2, TABLE3), start=1):
        for name in names:
            assert RECIPES[name].reproduces.startswith(f"Table {number}, "), name


@pytest.mark.parametrize("name", PRETRAINED)
def test_recipe_starts_from_networks_that_its_own_data_trained(name: str) -> None:
    recipe = recipes.get(name)
    for part, first in zip(parts(recipe), recipe.pretrain, strict=True):
        before = recipes.get(first)
        network = recipe.gating.gater if recipe.gating and part == "gater" else recipe.backbone
        assert before.backbone == network
        assert before.data.name == recipe.data.name
        assert before.gating is None
        assert before.name.endswith("-short") == name.endswith("-short")
        shown = pretraining(part, recipe)
        assert (shown.data, shown.epochs) == (recipe.data, before.epochs)


def rates(name: str, shares: tuple[float, ...]) -> list[float]:
    recipe = recipes.get(name)
    return [learning_rate(recipe.schedule, recipe.optimizer.lr, share) for share in shares]


@pytest.mark.parametrize("name", [n for n in TABLE1 if "164" not in n])
def test_resnet_s_schedule(name: str) -> None:
    """He et al. (2016a), section 4.2."""
    recipe = recipes.get(name)
    steps = recipe.epochs * (50_000 // recipe.schedule.batch_size)
    assert steps == pytest.approx(64_000, rel=1e-3)
    shares = tuple(step / 64_000 for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999))
    assert rates(name, shares) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)
    optimizer = recipe.optimizer
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, False, 1e-4)
    augmentation = recipe.augmentation
    assert (augmentation.crop_padding, augmentation.mirror, augmentation.cutout) == (4, True, 0)


def test_preactivation_resnet_warms_up_for_400_steps() -> None:
    """He et al. (2016b): 0.01 is used for 400 iterations before 0.1; here the rise is linear."""
    shares = (0.0, 200 / 64_000, 400 / 64_000, 0.4999, 0.5, 0.75)
    expected = [0.0, 0.05, 0.1, 0.1, 0.01, 0.001]
    assert rates("cifar10/resnet164", shares) == pytest.approx(expected)


def test_densenet_s_schedule_and_what_the_joint_phase_changes() -> None:
    """Huang et al. (2017), section 4.2; paper, section 4.4."""
    for size in ("100-12", "250-24", "190-40"):
        plain = recipes.get(f"cifar10/densenet-bc-{size}")
        assert (plain.epochs, plain.schedule.batch_size, plain.optimizer.nesterov) == (
            300,
            64,
            True,
        )
        shares = (0.0, 149 / 300, 150 / 300, 225 / 300)
        assert rates(plain.name, shares) == pytest.approx([0.1, 0.1, 0.01, 0.001])
        gated = recipes.get(f"{plain.name}-gated")
        assert (gated.epochs, gated.optimizer.lr) == (320, 0.05)
        assert pretraining("backbone", gated).epochs == 300
        assert pretraining("gater", gated).schedule.batch_size == 128


def test_shake_shake_s_schedule_and_what_the_joint_phase_changes() -> None:
    """Gastaldi (2017), section 2; paper, section 4.4; cutout as DeVries and Taylor (2017)."""
    for width in (64, 96):
        plain = recipes.get(f"cifar10/shake-shake-26-2x{width}d")
        assert (plain.epochs, plain.schedule.batch_size) == (1800, 128)
        assert rates(plain.name, (0.0, 0.5, 0.999999)) == pytest.approx([0.2, 0.1, 0.0], abs=1e-6)
        gated = recipes.get(f"{plain.name}-gated")
        assert (gated.epochs, gated.optimizer.lr) == (1830, 0.05)
        cut = recipes.get(f"{plain.name}-gated-cutout")
        assert cut.augmentation.cutout == 16
        assert cut.pretrain == (f"{plain.name}-cutout", "cifar10/resnet20")


def test_imagenet_s_schedules() -> None:
    resnet = recipes.get("imagenet/resnet101-gated")
    steps = resnet.epochs * (1_281_167 // resnet.schedule.batch_size)
    assert steps == pytest.approx(600_000, rel=2e-3)  # He et al. (2016a), section 3.4
    assert rates(resnet.name, (0.0, 0.25, 0.5, 0.75)) == pytest.approx([0.1, 0.01, 1e-3, 1e-4])
    inception = recipes.get("imagenet/inception-v4")
    assert inception.optimizer.kind == "rmsprop"
    by_epoch = rates(inception.name, (0.0, 1 / 160, 2 / 160, 4 / 160))
    assert by_epoch == pytest.approx([0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94**2])
    assert (inception.data.image_size, resnet.data.image_size) == (299, 224)


def test_gate_dropout_grows_where_the_paper_has_it() -> None:
    """Paper, appendix B: DenseNet, Shake-Shake and Inception-v4, from 0 to 0.05."""
    for name in (n for n in PAPER if n in GATED):
        gating = RECIPES[name].gating
        assert gating is not None
        expected = 0.05 if re.search("densenet|shake|inception", name) else 0.0
        assert gate_dropout_rate(gating, 0.0) == 0.0
        assert gate_dropout_rate(gating, 0.5) == pytest.approx(expected / 2)
        assert gate_dropout_rate(gating, 1.0) == expected


@pytest.mark.parametrize("name", [name for name in PAPER if name in GATED])
def test_paper_s_gating_is_left_as_it_is(name: str) -> None:
    gating = recipes.get(name).gating
    assert gating is not None
    on_cifar = name.startswith("cifar")
    gater, bottleneck = ("resnet20", 8) if on_cifar else ("timm/resnet18", 256)
    # λ and the opening bias are printed nowhere; dropout has a test of its own.
    assert replace(gating, sparsity=0.0, opening_bias=0.0, dropout=0.0) == Gating(
        gater=gater, bottleneck=bottleneck, anneal_from=1.0, anneal_until=1.0
    )


@pytest.mark.parametrize("name", [n for n in GATED if n.removesuffix("-short").endswith("-gated")])
def test_control_trains_the_plain_backbone_on_for_as_long(name: str) -> None:
    if name.startswith("digits"):
        return
    gated = RECIPES[name]
    control = recipes.get(name.replace("-gated", "-control"))
    assert control.gating is None
    assert control.pretrain == gated.pretrain[:1]
    for setting in ("backbone", "epochs", "optimizer", "schedule", "augmentation", "data"):
        assert getattr(control, setting) == getattr(gated, setting)


VARIED: dict[str, dict[str, Any]] = {
    "local": {"decides": "layers", "gater": None},
    "fixed": {"gater": "blind"},
    "soft": {"binarizer": "soft", "anneal_from": 1.0, "anneal_until": 1.0},
    "random": {
        "binarizer": "random", "rate": 0.8, "sparsity": 0.0, "anneal_from": 1.0, "anneal_until": 1.0
    },
    "straight-through": {"binarizer": "straight-through", "anneal_from": 1.0, "anneal_until": 1.0},
    "gumbel-sigmoid": {"binarizer": "gumbel-sigmoid"},
    "hard-concrete": {"binarizer": "hard-concrete", "anneal_from": 1.0, "anneal_until": 1.0},
    "scratch": {},
    "lambda-0": {"sparsity": 0.0},
    "bottleneck-2": {"bottleneck": 2},
    "bottleneck-32": {"bottleneck": 32},
    "bottleneck-128": {"bottleneck": 128},
    "gater-resnet8": {"gater": "resnet8"},
    "gater-resnet14": {"gater": "resnet14"},
    "gater-16px": {"input_size": 16},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIED)
@pytest.mark.parametrize("base", ["cifar10/resnet20-gated", "cifar10/resnet56-gated-short"])
def test_variant_changes_what_its_name_says_and_nothing_else(base: str, variant: str) -> None:
    gated = RECIPES[base]
    short = "-short" if base.endswith("-short") else ""
    varied = recipes.get(f"{base.removesuffix('-short')}-{variant}{short}")
    assert gated.gating is not None
    assert varied.gating is not None
    changed = {k for k, v in asdict(varied.gating).items() if v != asdict(gated.gating)[k]}
    assert changed <= VARIED[variant].keys()
    assert {k: getattr(varied.gating, k) for k in VARIED[variant]} == VARIED[variant]
    same = replace(
        varied,
        name=gated.name,
        reproduces=gated.reproduces,
        gating=gated.gating,
        pretrain=gated.pretrain,
        optimizer=gated.optimizer,
    )
    assert same == gated
    fresh = variant == "scratch"
    assert varied.optimizer == (RECIPES[gated.pretrain[0]] if fresh else gated).optimizer
    assert (varied.pretrain == ()) == fresh


def test_convnet_aig_gates_whole_branches_at_a_target_rate() -> None:
    for name in ("imagenet/resnet101-gated-aig", "cifar10/resnet20-gated-aig"):
        gating = recipes.get(name).gating
        assert gating is not None
        assert (gating.decides, gating.gater, gating.binarizer) == (
            "branches", None, "gumbel-sigmoid"
        )  # fmt: skip
        assert gating.target_rate is not None
        assert gating.sparsity == 0


def test_cost_is_three_forwards_an_image_and_epoch() -> None:
    plain, gated = (cost(recipes.get(f"cifar10/resnet20{kind}")) for kind in ("", "-gated"))
    assert plain.training_macs == 3 * plain.macs_per_image * 50_000 * 164
    assert plain.pretraining_macs == 0
    assert gated.pretraining_macs == 2 * plain.training_macs
    # notes on the paper: 40.8 M for the backbone, as much for the gater
    assert plain.macs_per_image == pytest.approx(40.8e6, rel=1e-3)
    assert gated.macs_per_image == pytest.approx(81.6e6, rel=1e-3)


def test_length_names_what_comes_before() -> None:
    length = recipes.describe_length(recipes.get("cifar10/resnet56-gated"))
    assert length == (
        "164 epochs, after 164 of cifar10/resnet56 and 164 of cifar10/resnet20 where these are "
        "not given"
    )
    assert recipes.describe_length(recipes.get("cifar10/resnet56")) == "164 epochs"


def test_unknown_recipe_gives_near_ones() -> None:
    with pytest.raises(UsageError, match=r"'cifar10/resnet20_gated'.*cifar10/resnet20-gated"):
        recipes.get("cifar10/resnet20_gated")
    with pytest.raises(UsageError, match="gaternet recipes list"):
        recipes.get("?")


def test_controls_of_one_backbone_trained_alike_are_one() -> None:
    gated, efficient = (
        recipes.get(f"cifar10/resnet20-{kind}-short") for kind in ("gated", "efficient")
    )
    assert control(gated) == control(efficient) == recipes.get("cifar10/resnet20-control-short")
