"""Settings: what contradicts itself or is unknown is refused by name."""

from dataclasses import FrozenInstanceError, replace
from math import inf, nan
from typing import Any

import pytest

from gaternet.data.settings import Augmentation
from gaternet.errors import UsageError, UserError
from gaternet.training.config import (
    Recipe,
    check,
    recipe_from_dict,
    recipe_to_dict,
)
from small_runs import GATED, PLAIN


def changed(recipe: Recipe, setting: str, value: Any) -> Recipe:
    part, _, name = setting.rpartition(".")
    if not part:
        return replace(recipe, **{name: value})
    return replace(recipe, **{part: replace(getattr(recipe, part), **{name: value})})


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1"),
        ("validation", -1, "validation must not be negative"),
        ("seed", -1, "seed must be in"),
        ("seed", 2**63, "seed must be in"),
        ("schedule.batch_size", 1, r"schedule\.batch-size must be at least 2"),
        ("schedule.accumulate", 3, r"schedule\.accumulate must divide"),
        ("schedule.accumulate", 0, r"schedule\.accumulate must divide"),
        ("schedule.accumulate", 64, r"schedule\.accumulate leaves parts of one image"),
        ("schedule.warmup", 1.0, r"schedule\.warmup must be in \[0, 1\)"),
        ("schedule.ema", 1.0, r"schedule\.ema must be in \[0, 1\)"),
        ("schedule.milestones", (0.5,), r"schedule\.milestones go with schedule\.kind step"),
        ("optimizer.lr", 0.0, r"optimizer\.lr must be above 0"),
        ("optimizer.lr", nan, r"optimizer\.lr must be above 0"),
        ("optimizer.lr", inf, r"optimizer\.lr must be above 0"),
        ("optimizer.momentum", 0.0, r"optimizer\.momentum must be above 0 with optimizer\.nest"),
        ("optimizer.momentum", 1.0, r"optimizer\.momentum must be in \[0, 1\)"),
        ("optimizer.weight_decay", -1e-4, r"optimizer\.weight-decay must not be negative"),
        ("optimizer.label_smoothing", 1.5, r"optimizer\.label-smoothing must be in \[0, 1\)"),
        ("gating.bottleneck", 0, r"gating\.bottleneck must be at least 1"),
        ("gating.input_size", 0, r"gating\.input-size must be at least 1"),
        ("gating.opening_bias", nan, r"gating\.opening-bias must be finite"),
        ("gating.sparsity", -0.1, r"gating\.sparsity must not be negative"),
        ("gating.anneal_from", 0.9, r"gating\.anneal-from ≤ gating\.anneal-until"),
        ("gating.anneal_until", 1.1, r"gating\.anneal-from ≤ gating\.anneal-until"),
    ],
)
def test_what_cannot_be_run_is_refused(setting: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"recipe digits/resnet8-gated: .*{message}"):
        check(changed(GATED, setting, value))


@pytest.mark.parametrize("milestones", [(0.75, 0.5), (0.5, 1.0), (0.0, 0.5)])
def test_milestones_rise_within_the_schedule(milestones: tuple[float, ...]) -> None:
    stepped = changed(PLAIN, "schedule.kind", "step")
    with pytest.raises(UsageError, match=r"schedule\.milestones must rise"):
        check(changed(stepped, "schedule.milestones", milestones))


def test_plain_network_has_nothing_to_pretrain() -> None:
    with pytest.raises(UsageError, match="pretrain names too many recipes"):
        check(replace(PLAIN, pretrain=("digits/resnet8", "digits/resnet8")))


def test_momentum_may_be_left_out() -> None:
    optimizer = replace(PLAIN.optimizer, momentum=0.0, nesterov=False)
    recipe = replace(PLAIN, optimizer=optimizer)
    assert check(recipe) is recipe


def test_negative_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding is -1"):
        Augmentation(crop_padding=-1)
    with pytest.raises(ValueError, match="cutout is -1"):
        Augmentation(cutout=-1)


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAIN.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("recipe", [PLAIN, GATED])
def test_recipe_survives_its_dictionary(recipe: Recipe) -> None:
    assert recipe_from_dict(recipe_to_dict(recipe), "config.json") == recipe


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("schedule", "warm_up", 0.1, r"config\.json: setting 'schedule\.warm_up': unexpected"),
        ("gating", "bottleneck", "wide", r"config\.json: setting 'gating\.bottleneck': .*integer"),
        ("schedule", "kind", "linear", r"config\.json: setting 'schedule\.kind'.*cosine"),
        ("schedule", "warmup", 2.0, r"config\.json: recipe .*schedule\.warmup must be in"),
        ("augmentation", "cutout", -1, r"config\.json: setting 'augmentation.*cutout is -1"),
    ],
)
def test_wrong_setting_in_a_file_is_refused_with_the_file(
    part: str, name: str, value: Any, message: str
) -> None:
    values = recipe_to_dict(GATED)
    values[part][name] = value
    with pytest.raises(UserError, match=message) as caught:
        recipe_from_dict(values, "config.json")
    assert caught.value.exit_code == 1


def test_missing_setting_is_refused() -> None:
    values = recipe_to_dict(PLAIN)
    del values["backbone"]
    with pytest.raises(UserError, match="setting 'backbone': field required"):
        recipe_from_dict(values, "config.json")


@pytest.mark.parametrize(
    ("gating", "message"),
    [
        ({"binarizer": "hard-concrete"}, r"--gating\.anneal-from 1"),
        (
            {"decides": "layers", "gater": None, "binarizer": "random", "rate": 0.5},
            r"random goes with --gating\.decides gater",
        ),
    ],
)
def test_gates_that_would_not_be_trained_as_evaluated_are_refused(
    gating: dict[str, Any], message: str
) -> None:
    assert GATED.gating is not None
    with pytest.raises(UsageError, match=message):
        check(replace(GATED, gating=replace(GATED.gating, **gating)))
