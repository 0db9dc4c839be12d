"""A gater that does not look: one mask for all images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gaternet
from gaternet import backbones, recipes
from gaternet.accounting import count_macs
from gaternet.backbones import BackboneConfig
from gaternet.bench.training_pace import plain_recipes
from gaternet.errors import UserError
from gaternet.model import GaterNet
from gaternet.training.config import BLIND, Sources, parts
from gaternet.training.phases import train
from small_runs import GATED, on_cpu, with_batches


def blind_gater(image_size: int = 32) -> gaternet.Gater:
    extractor = backbones.create(BackboneConfig(BLIND, 0, image_size=image_size))
    return gaternet.Gater(extractor, 8)


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
    assert count_macs(model, (3, 32, 32)).deciding_macs == 8 + 8 * 112


@pytest.mark.parametrize("batch_norm", [True, False])
def test_mask_is_the_last_biases_exactly(batch_norm: bool) -> None:
    torch.manual_seed(0)
    gater = gaternet.Gater(blind_gater().extractor, 8, batch_norm=batch_norm)
    model = GaterNet(backbones.create(BackboneConfig("resnet8", 10)), gater)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        logits, gates = model(torch.randn(6, 3, 32, 32))
        gaternet.gated_cross_entropy(logits, gates, torch.arange(6), sparsity=0.1).backward()
        optimizer.step()
    assert gater.head is not None
    last = gater.head[-1]
    assert isinstance(last, nn.Linear)
    biases = last.bias
    assert biases.unique().numel() > 56
    for training in (True, False):
        said = model.train(training).gate_logits(torch.randn(5, 3, 32, 32))
        assert torch.equal(said, biases.expand(5, 112))


def test_in_training_each_image_has_noise_of_its_own() -> None:
    torch.manual_seed(0)
    model = GaterNet(backbones.create(BackboneConfig("resnet8", 10)), blind_gater()).train()
    gates = model(torch.randn(6, 3, 32, 32)).gates
    assert not torch.equal(gates, gates[:1].expand(6, 112))


def test_run_starts_from_a_backbone_alone_and_comes_back(tmp_path: Path) -> None:
    gating = GATED.gating
    assert gating is not None
    changed = replace(gating, gater=BLIND, input_size=None)
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


def test_its_recipe_pre_trains_the_backbone_alone_and_its_pace_is_measured_so() -> None:
    recipe = recipes.get("cifar10/resnet20-gated-fixed-short")
    assert recipe.pretrain == ("cifar10/resnet20-short",)
    assert list(plain_recipes(recipe)) == ["backbone"]
