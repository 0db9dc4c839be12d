"""A gater that does not look: one mask for all images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gaternet
from gaternet import backbones
from gaternet.accounting import count_macs
from gaternet.backbones import BackboneConfig
from gaternet.errors import UserError
from gaternet.model import GaterNet
from gaternet.recipes import RECIPES
from gaternet.training.config import BLIND, Sources, parts
from gaternet.training.phases import train
from small_runs import GATED, on_cpu, with_batches


def blind_gater(image_size: int = 32) -> gaternet.Gater:
    extractor = backbones.create(BackboneConfig(BLIND, 0, image_size=image_size))
    return gaternet.Gater(extractor, 1, batch_norm=False)


def test_name_builds_what_describes_itself_by_it() -> None:
    config = BackboneConfig(BLIND, 0, channels=1, image_size=16)
    assert backbones.describe(backbones.create(config)) == config
    with pytest.raises(UserError, match="it serves as a gater alone"):
        backbones.create(replace(config, classes=10))


def test_gates_are_the_same_for_every_image_and_cost_a_linear_layer_each() -> None:
    torch.manual_seed(0)
    backbone = backbones.create(BackboneConfig("resnet8", 10))
    model = GaterNet(backbone, blind_gater()).eval()
    gates = model(torch.randn(6, 3, 32, 32)).gates
    assert gates.shape == (6, 112)
    assert torch.equal(gates, gates[:1].expand(6, 112))
    assert 0 < gates.mean() < 1
    assert count_macs(model, (3, 32, 32)).deciding_macs == 1 + 112


def test_in_training_each_image_has_noise_of_its_own_and_the_mask_learns() -> None:
    torch.manual_seed(0)
    backbone = backbones.create(BackboneConfig("resnet8", 10))
    model = GaterNet(backbone, blind_gater()).train()
    logits, gates = model(torch.randn(6, 3, 32, 32))
    assert not torch.equal(gates, gates[:1].expand(6, 112))
    gaternet.gated_cross_entropy(logits, gates, torch.arange(6), sparsity=0.1).backward()
    bias = model.gater.head[-1].bias.grad if model.gater.head else None
    assert bias is not None
    assert bias.count_nonzero() > 56


def test_run_starts_from_a_backbone_alone_and_comes_back(tmp_path: Path) -> None:
    gating = GATED.gating
    assert gating is not None
    changed = replace(gating, gater=BLIND, input_size=None, bottleneck=1, batch_norm=False)
    recipe = with_batches(
        replace(GATED, gating=changed, pretrain=GATED.pretrain[:1], epochs=1), 128
    )
    assert parts(recipe) == ("backbone",)
    run = train(recipe, Sources("digits", from_scratch=True), tmp_path / "run", on_cpu())
    result = run.result
    assert result is not None
    assert result["gates"]["input_dependent"] == 0
    model = gaternet.load(run.path)
    images = torch.rand(4, *recipe.data.input_size)
    assert torch.equal(model(images).gates[0], model(images).gates[3])


def test_recipes_pre_train_no_gater_of_it() -> None:
    recipe = RECIPES["cifar10/resnet20-gated-fixed-short"]
    assert recipe.pretrain == ("cifar10/resnet20-short",)
