"""One step by hand, resuming to the byte, and draws that depend on nothing but their count."""

import copy
import signal
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gaternet
from gaternet import errors
from gaternet.backbones.resnet_cifar import CifarResNet
from gaternet.data.settings import DIGITS
from gaternet.errors import UserError
from gaternet.model import GaterNet
from gaternet.training.calibration import calibrate
from gaternet.training.config import Compute, Optimizer, Recipe, Sources
from gaternet.training.loop import Probe, fit
from gaternet.training.phases import build_model, train
from gaternet.training.processes import Processes
from gaternet.training.run import open_run
from gaternet.training.trainer import Trainer
from small_runs import (
    EAGER,
    EFFICIENT,
    GATED,
    PLAIN,
    Silent,
    cpu_plan,
    few_digits,
    new_run,
    on_cpu,
    tree,
    with_batches,
)

KEYS = torch.arange(12)
RMSPROP = replace(PLAIN, optimizer=Optimizer(kind="rmsprop", lr=0.01, momentum=0.9))


def smooth_network() -> nn.Sequential:
    """A network in which no image depends on the others of its batch."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return nn.Sequential(*layers)


def a_batch() -> tuple[Tensor, Tensor, Tensor]:
    digits = few_digits(12)
    return digits.images, digits.labels, KEYS


def trainer_of(model: nn.Module, recipe: Recipe) -> Trainer:
    trainer = Trainer(model, recipe, cpu_plan(recipe))
    trainer.set_stage(0.5)
    trainer.model.train()
    return trainer


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare to within what the order of float32 sums may change."""
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_equal_hand_written_ones(nesterov: bool) -> None:
    optimizer = Optimizer(
        lr=0.3, momentum=0.8, nesterov=nesterov, weight_decay=0.01, label_smoothing=0.2
    )
    recipe = with_batches(replace(PLAIN, optimizer=optimizer), 12, kind="step", warmup=0.0)
    recipe = replace(recipe, schedule=replace(recipe.schedule, milestones=(0.4,)))
    model = smooth_network()
    by_hand = copy.deepcopy(model)
    trainer = trainer_of(model, recipe)
    images = (few_digits(12).images / 255 - DIGITS.mean[0]) / DIGITS.std[0]
    labels = few_digits(12).labels
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(3):
        loss, wrong, _ = trainer.step(*a_batch())
        scores = by_hand(images)
        target = 0.8 * F.one_hot(labels, 10) + 0.02
        expected = -(target * scores.log_softmax(dim=1)).sum(dim=1).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert wrong.item() == (scores.argmax(dim=1) != labels).sum().item()
        gradients = torch.autograd.grad(expected, list(by_hand.parameters()))
        with torch.no_grad():
            for p, g, v in zip(by_hand.parameters(), gradients, velocity, strict=True):
                decayed = g + 0.01 * p
                v.mul_(0.8).add_(decayed)
                p.sub_(0.03 * (decayed + 0.8 * v if nesterov else v))
    assert_same_weights(model, by_hand)


def test_rmsprop_steps_equal_hand_written_ones() -> None:
    """TensorFlow's: ε within the root, mean squares that start at 1, the rate in the momentum."""
    optimizer = Optimizer(kind="rmsprop", lr=0.3, momentum=0.8, weight_decay=0.01)
    recipe = with_batches(replace(PLAIN, optimizer=optimizer), 12, kind="step", warmup=0.0)
    model = smooth_network()
    by_hand = copy.deepcopy(model)
    trainer = trainer_of(model, recipe)
    images = (few_digits(12).images / 255 - DIGITS.mean[0]) / DIGITS.std[0]
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    squares = [torch.ones_like(p) for p in by_hand.parameters()]
    for _ in range(3):
        trainer.step(*a_batch())
        loss = F.cross_entropy(by_hand(images), few_digits(12).labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for p, g, v, s in zip(by_hand.parameters(), gradients, velocity, squares, strict=True):
                decayed = g + 0.01 * p
                s.mul_(0.9).add_(0.1 * decayed**2)
                v.mul_(0.8).add_(0.3 * decayed / (s + 1).sqrt())
                p.sub_(v)
    assert_same_weights(model, by_hand)


def test_accumulated_parts_equal_the_whole_batch() -> None:
    whole, parts = smooth_network(), smooth_network()
    one = trainer_of(whole, with_batches(PLAIN, 12)).step(*a_batch())
    three = trainer_of(parts, with_batches(PLAIN, 12, accumulate=3)).step(*a_batch())
    torch.testing.assert_close(one, three)
    assert_same_weights(parts, whole)


def test_batch_norm_sees_the_parts_of_an_accumulated_batch() -> None:
    whole, parts = build_model(PLAIN), build_model(PLAIN)
    assert isinstance(whole, CifarResNet)
    assert isinstance(parts, CifarResNet)
    trainer_of(whole, with_batches(PLAIN, 12)).step(*a_batch())
    trainer_of(parts, with_batches(PLAIN, 12, accumulate=3)).step(*a_batch())
    assert whole.bn.num_batches_tracked == 1
    assert parts.bn.num_batches_tracked == 3


def test_gated_step_counts_open_gates_and_pays_for_them() -> None:
    assert GATED.gating is not None
    model = build_model(GATED)
    assert isinstance(model, GaterNet)
    reference = copy.deepcopy(model)
    trainer = trainer_of(model, with_batches(GATED, 12))
    reference.train()
    reference.binarizer.set_stage(
        float(model.binarizer.noise_scale), float(model.binarizer.hard_share)
    )
    images = (few_digits(12).images / 255 - DIGITS.mean[0]) / DIGITS.std[0]
    logits, gates = reference(images, keys=KEYS)
    expected = F.cross_entropy(logits, few_digits(12).labels) + 1.0 * gates.sum() / gates.numel()
    loss, _, opened = trainer.step(*a_batch())
    assert GATED.gating.sparsity == 1.0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert opened.item() / 12 == pytest.approx(gates.mean().item(), rel=1e-4)


def test_average_equals_a_hand_written_one() -> None:
    recipe = with_batches(PLAIN, 12, ema=0.7)
    trainer = trainer_of(build_model(recipe), recipe)
    expected: dict[str, Tensor] = {}
    for step in range(4):
        trainer.step(*a_batch())
        for name, tensor in trainer.model.state_dict().items():
            if step == 0 or not tensor.is_floating_point():
                expected[name] = tensor.clone()
            else:
                expected[name] = 0.7 * expected[name] + 0.3 * tensor
    found = trainer.evaluated.state_dict()
    assert trainer.evaluated is not trainer.model
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


class Interrupted(Exception):
    pass


def test_processes_send_nothing_that_lies_on_the_cpu() -> None:
    """NCCL could not: of an average that is how many networks it is of."""

    class Noting(Processes):
        def take_from_first(self, tensors: Iterable[Tensor]) -> None:
            taken.extend(tensors)

    taken: list[Tensor] = []
    recipe = with_batches(PLAIN, 40, ema=0.9)
    trainer = Trainer(build_model(recipe), recipe, replace(cpu_plan(recipe), processes=Noting()))
    trainer.train_epoch(few_digits(), Silent())
    assert trainer.average is not None
    assert all(tensor is not trainer.average.n_averaged for tensor in taken)
    for network in (trainer.model, trainer.average.module):
        assert all(any(b is tensor for tensor in taken) for b in network.buffers())


def test_without_the_average_it_goes_on_with_what_was_averaged(tmp_path: Path) -> None:
    recipe = with_batches(PLAIN, 40, ema=0.9)
    images = few_digits()
    first = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    first.train_epoch(images, Silent())
    run = new_run(tmp_path / "run", recipe, images)
    run.save_checkpoint(1, *first.state())
    recipe = with_batches(PLAIN, 40)
    second = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    second.restore(run)
    for (name, ours), theirs in zip(
        second.model.state_dict().items(), first.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert any(
        not torch.equal(ours, theirs)
        for ours, theirs in zip(first.model.parameters(), first.evaluated.parameters(), strict=True)
    )


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let training stop after so many steps."""
    real, done = Trainer.step, 0

    def step(self: Trainer, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal done
        done += 1
        if done > after:
            raise Interrupted
        return real(self, *batch)

    monkeypatch.setattr(Trainer, "step", step)


def without_times(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in metrics]


@pytest.mark.parametrize(
    ("recipe", "ema", "compute"),
    [
        (PLAIN, 0.0, EAGER),
        (PLAIN, 0.0, Compute(precision="bfloat16", compile="off", channels_last=True)),
        (GATED, 0.9, Compute(precision="float32", compile="off", channels_last=True)),
        (EFFICIENT, 0.0, EAGER),
        (RMSPROP, 0.0, EAGER),
    ],
    ids=[
        "plain",
        "plain, bfloat16, channels last",
        "gated, averaged, channels last",
        "on a budget",
        "rmsprop",
    ],
)
def test_resumed_run_equals_an_undisturbed_one_to_the_byte(
    recipe: Recipe, ema: float, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_batches(replace(recipe, epochs=3, compute=compute), 128, ema=ema)
    sources = Sources("digits", from_scratch=recipe.gating is not None)
    whole = train(recipe, sources, tmp_path / "whole", on_cpu())
    with monkeypatch.context() as patch:
        interrupt(patch, after=15)  # an epoch has 10 steps
        with pytest.raises(Interrupted):
            train(recipe, sources, tmp_path / "broken", on_cpu())
    broken = open_run(tmp_path / "broken")
    assert [line["epoch"] for line in broken.metrics()] == [1]
    torch.manual_seed(99)  # what was drawn meanwhile must not matter
    resumed = train(recipe, sources, tmp_path / "broken", on_cpu(), resume=True)
    expected = tree(whole.checkpoints / "epoch-0003")
    assert {"model.safetensors", "optimizer.safetensors"} < expected.keys()
    assert ("trained.safetensors" in expected) == bool(ema)
    found = tree(resumed.checkpoints / "epoch-0003")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert without_times(resumed.metrics()) == without_times(whole.metrics())


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_run_told_to_end_behind_any_step_goes_on_with_the_next(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps an epoch: the last one of an epoch too."""
    recipe = with_batches(replace(PLAIN, epochs=2), 640)
    whole = train(recipe, Sources("digits"), tmp_path / "whole", on_cpu())
    options, real, done = on_cpu(), Trainer.step, 0

    def step(self: Trainer, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal done
        done += 1
        if done == after:
            options.interruption.received = signal.SIGTERM
        return real(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(errors.Interrupted):
            train(recipe, Sources("digits"), tmp_path / "run", options)
    run = train(recipe, Sources("digits"), tmp_path / "run", on_cpu(), resume=True)
    assert tree(run.checkpoints / "epoch-0002") == tree(whole.checkpoints / "epoch-0002")
    assert without_times(run.metrics()) == without_times(whole.metrics())


def test_run_without_momentum_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = Optimizer(lr=0.1, momentum=0.0, nesterov=False)
    recipe = with_batches(replace(PLAIN, epochs=2, optimizer=optimizer), 640)
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(Interrupted):
            train(recipe, Sources("digits"), tmp_path / "run", on_cpu())
    run = train(recipe, Sources("digits"), tmp_path / "run", on_cpu(), resume=True)
    assert [line["epoch"] for line in run.metrics()] == [1, 2]


def test_run_killed_within_its_first_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_batches(replace(PLAIN, epochs=1), 640)
    with monkeypatch.context() as patch:
        interrupt(patch, after=1)
        with pytest.raises(Interrupted):
            train(recipe, Sources("digits"), tmp_path / "run", on_cpu())
    (tmp_path / "run" / "checkpoints" / ".epoch-0001.7.partial").mkdir()
    run = train(recipe, Sources("digits"), tmp_path / "run", on_cpu(), resume=True)
    assert run.result is not None


class Poison(Silent):
    """Spoils a network's weights when its first epoch has ended."""

    def __init__(self, trainer: Trainer, value: float) -> None:
        self.trainer, self.value = trainer, value

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        with torch.no_grad():
            next(self.trainer.model.parameters()).fill_(self.value)


@pytest.mark.parametrize("recipe", [PLAIN, GATED], ids=["plain", "gated"])
def test_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    recipe: Recipe, tmp_path: Path
) -> None:
    recipe = with_batches(replace(recipe, epochs=3), 32)
    images = few_digits()
    run = new_run(tmp_path / "run", recipe, images)
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    probe = Probe(few_digits(20), "training sample")
    with pytest.raises(
        UserError, match=r"the loss became nan in epoch 2, step 1, first in .*weight.*optimizer\.lr"
    ):
        fit(trainer, images, probe, run, Poison(trainer, float("nan")))
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0001"]
    assert [line["epoch"] for line in run.metrics()] == [1]
    loaded = gaternet.load(run.path)
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())


def test_weights_that_an_epoch_s_last_step_blew_up_are_not_kept(tmp_path: Path) -> None:
    optimizer = replace(PLAIN.optimizer, lr=1e30)
    recipe = with_batches(replace(PLAIN, optimizer=optimizer), 160, warmup=0.0)
    images = few_digits(160)
    run = new_run(tmp_path / "run", recipe, images)
    trainer = Trainer(build_model(recipe), recipe, cpu_plan(recipe))
    with pytest.raises(UserError, match=r"the loss became .* in epoch 1"):
        fit(trainer, images, Probe(few_digits(20), "training sample"), run, Silent())
    assert not run.has_checkpoint


def test_order_and_draws_do_not_depend_on_the_batches() -> None:
    images = few_digits(160)
    found = []
    for size in (16, 40, 80):
        torch.manual_seed(size)
        recipe = with_batches(PLAIN, size)
        trainer = Trainer(smooth_network(), recipe, cpu_plan(recipe))
        trainer.epoch = 3
        found.append([torch.cat(part) for part in zip(*trainer.batches(images), strict=True)])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert torch.equal(ours, theirs)
    assert sorted(found[0][1].tolist()) == sorted(images.labels.tolist())


def test_epochs_differ_in_order_and_augmentation() -> None:
    trainer = Trainer(smooth_network(), with_batches(PLAIN, 160), cpu_plan(PLAIN))
    images = few_digits(160)
    (first,) = trainer.batches(images)
    (again,) = trainer.batches(images)
    trainer.epoch = 1
    (second,) = trainer.batches(images)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batch_norm_is_measured_again_under_the_gates_of_evaluation() -> None:
    recipe = with_batches(GATED, 40)
    model = build_model(recipe)
    assert isinstance(model, GaterNet)
    trainer = trainer_of(model, recipe)
    images = few_digits(160)
    reference = copy.deepcopy(model).train()
    inputs: list[Tensor] = []
    watched = reference.backbone.get_submodule("stage2.block1.bn1")
    watched.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batches = [(p / 255 - DIGITS.mean[0]) / DIGITS.std[0] for p, _, _ in trainer.batches(images)]
    # First the gater's own statistics, with a cumulative average; it then stays as it is.
    for module in reference.gater.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in batches:
            reference.gater(batch)
        reference.gater.eval()
        for batch in batches:
            reference(batch, gates=(reference.gate_logits(batch) >= 0).float())
    calibrate(trainer, images)
    expected = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    norm = model.backbone.get_submodule("stage2.block1.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


def test_batch_that_lost_images_has_parts_of_two_at_least() -> None:
    """Seven of eight images in four parts would leave one alone, which BatchNorm does not take."""
    network = build_model(PLAIN)
    assert isinstance(network, CifarResNet)
    pixels, labels, keys = (part[:7] for part in a_batch())
    trainer_of(network, with_batches(PLAIN, 8, accumulate=4)).step(pixels, labels, keys)
    assert network.bn.num_batches_tracked == 3
