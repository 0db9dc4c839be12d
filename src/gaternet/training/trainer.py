"""A network in training: one step, one epoch, and the state that a run goes on from."""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gaternet import checkpoint, model_config, saved_models
from gaternet.data.batches import Images, Order, training_batches
from gaternet.data.settings import Augmentation
from gaternet.errors import UserError
from gaternet.model import GatedModel
from gaternet.randomness import Purpose, sample_keys
from gaternet.training import divergence
from gaternet.training.budget import make_budget, set_budget
from gaternet.training.compute import ComputePlan, keep_freed_memory
from gaternet.training.config import Recipe
from gaternet.training.divergence import READ_EVERY, Sentinel, backward, describe, find_origin
from gaternet.training.means import EpochSums
from gaternet.training.objective import distributed, make_objective
from gaternet.training.optimizers import make_optimizer, slots_of
from gaternet.training.progress import Reporter
from gaternet.training.run import Run
from gaternet.training.saved_state import (
    OPTIMIZER,
    PROGRESS,
    TRAINED,
    Progress,
    Within,
    read_progress,
    restore_optimizer,
    tensors_of,
)
from gaternet.training.schedules import gate_dropout_rate, gate_noise, learning_rate

LOOK_EVERY_SECONDS = 0.5
"""How often the running means are read: reading them makes the host wait for the device."""


class Trainer:
    """A model in training: its weights, their average, the optimiser, and where it stands."""

    def __init__(self, model: nn.Module, recipe: Recipe, plan: ComputePlan) -> None:
        self.recipe, self.plan = recipe, plan
        if plan.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(plan.device).to(memory_format=plan.memory_format)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.sentinel = Sentinel(self.optimizer, plan.device)
        self.network = distributed(self.model, plan)
        self.budget = make_budget(self.model, recipe)
        if self.budget:
            self.budget.to(plan.device)
        self.objective = make_objective(self.network, recipe, plan, self.budget)
        self.average: AveragedModel | None = None
        if recipe.schedule.ema:
            average = get_ema_multi_avg_fn(recipe.schedule.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.epoch = 0
        self.steps = 0
        """Taken within the epoch that has begun."""
        self.began = time.monotonic()
        """When it began; where the run was interrupted since, as if it had gone on at once."""
        self._means = self._no_means()
        self.skipped: set[str] = set()
        """Names of the bad images that were left out so far, in any process."""

    @property
    def evaluated(self) -> nn.Module:
        """The network whose error counts: the averaged one where there is one."""
        return self.average.module if self.average else self.model

    def steps_per_epoch(self, images: Images) -> int:
        """Return the full batches of an epoch; the rest, other images each time, is dropped."""
        return len(images) // self.recipe.schedule.batch_size

    def train_epoch(
        self, images: Images, reporter: Reporter, after_step: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Train on what is left of an epoch's full batches; return means over the whole of it.

        after_step: called when a step is done, and `state` is that of a checkpoint
        """
        steps = self.steps_per_epoch(images)
        if self.steps:
            self._set_stage(self.steps - 1, steps)  # for an epoch that has no batch left
        else:
            self.began = time.monotonic()
        last_look = time.monotonic()
        gated = self.recipe.gating is not None
        self.model.train()
        for batch in self.batches(images, first=self.steps):
            self._set_stage(self.steps, steps)
            self._means.add(*self.step(*batch), count=len(batch[1]))
            self.steps += 1
            if self.steps % READ_EVERY == 0 or self.steps == steps:
                self.stop_if_diverged(images)
            if after_step:
                after_step()
            now = time.monotonic()
            if now - last_look > LOOK_EVERY_SECONDS and self.steps < steps:
                last_look = now
                # This process's own part: processes do not look at the same moments.
                numbers = self._means.read(gated, now - self.began)
                numbers["images_per_second"] *= self.plan.processes.count
                reporter.step(self.epoch + 1, self.epoch * steps + self.steps, numbers)
        means = self._means.over(self.plan.processes)
        numbers = means.read(gated, time.monotonic() - self.began)
        self.epoch += 1
        self.steps, self._means = 0, self._no_means()
        self.note_skipped(images)
        self.plan.processes.take_from_first(self.model.buffers())
        if self.average:
            # Not how many networks it is of, which NCCL could not send: it lies on the CPU.
            self.plan.processes.take_from_first(self.average.module.buffers())
        reporter.step(self.epoch, self.epoch * steps, numbers)
        return numbers

    def note_skipped(self, images: Images) -> None:
        """Remember the bad images that any process has left out."""
        self.skipped |= self.plan.processes.union(set(images.skipped))

    def _no_means(self) -> EpochSums:
        return EpochSums(torch.zeros(3, dtype=torch.float64, device=self.plan.device))

    def batches(
        self, images: Images, augmentation: Augmentation | None = None, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield this process's part of the batches: augmented images, labels, keys.

        augmentation: another one than the recipe's
        first: the batch to begin with
        """
        recipe = self.recipe
        order = Order(
            recipe.seed,
            self.epoch,
            recipe.schedule.batch_size,
            augmentation or recipe.augmentation,
            recipe.data,
        )
        found = training_batches(images, order, self.plan.loading, first)
        for number, (index, pixels, labels) in enumerate(found, start=first):
            self._seed_batch(number)
            yield pixels, labels, sample_keys(recipe.seed, Purpose.NETWORK, self.epoch, index)

    def _seed_batch(self, number: int) -> None:
        """Let what takes no keys, such as dropout of timm's networks, follow from the step alone.

        `torch.manual_seed` does the same for every kind of device, in a quarter of a millisecond.
        """
        place = (self.recipe.seed, self.epoch, number, self.plan.processes.rank)
        seed = zlib.crc32(repr(place).encode())
        torch.default_generator.manual_seed(seed)
        if self.plan.device.type == "cuda":
            with torch.cuda.device(self.plan.device):
                torch.cuda.manual_seed(seed)

    def _set_stage(self, step: int, steps: int) -> None:
        self.set_stage((self.epoch + step / steps) / self.recipe.epochs)

    def set_stage(self, progress: float) -> None:
        rate = learning_rate(self.recipe.schedule, self.recipe.optimizer.lr, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if isinstance(self.model, GatedModel) and self.recipe.gating:
            self.model.binarizer.set_stage(*gate_noise(self.recipe.gating, progress))
            self.model.ungated.set_share(self.recipe.gating.ungated)
            if self.recipe.gating.dropout:
                self.model.dropout.set_rate(gate_dropout_rate(self.recipe.gating, progress))
        if self.budget:
            set_budget(self.budget, self.recipe, progress)

    def step(self, pixels: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step; return its loss, wrong predictions and share of gates open · N."""
        sums = []
        parts = self._parts(pixels, labels, keys)
        for number, part in enumerate(parts, start=1):
            share = len(part[1]) / len(labels)
            with self._without_averaging() if number < len(parts) else nullcontext():
                loss, wrong, opened = self.objective(*part)
                backward(loss, share)
            sums.append(torch.stack((loss.detach() * share, wrong, opened)))
        self.sentinel.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.model)
        loss, wrong, opened = torch.stack(sums).sum(dim=0)
        return loss, wrong, opened

    def _parts(self, *batch: Tensor) -> list[tuple[Tensor, ...]]:
        """Return what of a batch is in the network at once: two images at least, for BatchNorm.

        Where bad images are left out a batch can be too small for all of its parts.
        """
        count = min(self.recipe.schedule.accumulate, len(batch[0]) // 2)
        return list(zip(*(x.tensor_split(count) for x in batch), strict=True))

    def stop_if_diverged(self, images: Images) -> None:
        """Raise UserError where one of the epoch's steps was held back, naming where it went wrong.

        It is computed again: the weights are still those before it. Every process must come here
        behind the same step.
        """
        held = self.sentinel.held_steps()
        if not held:
            return
        bad = self.steps - held
        self.set_stage((self.epoch + bad / self.steps_per_epoch(images)) / self.recipe.epochs)
        batch = next(self.batches(images, first=bad))
        parts = self._parts(*batch)
        eager = replace(self.plan, compile=False)
        objective = make_objective(self.model, self.recipe, eager, self.budget)
        origin = find_origin(self.model, lambda: (objective(*part)[0] for part in parts))
        raise UserError(describe(self.plan.processes.gathered(origin), self.epoch + 1, bad + 1))

    def _without_averaging(self) -> AbstractContextManager[None]:
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def set_threshold(self, threshold: float) -> None:
        """Set the threshold of the gates, of the averaged network too."""
        for network in (self.model, self.evaluated):
            if isinstance(network, GatedModel):
                network.binarizer.threshold = threshold

    def state(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Return tensors and values that `restore` goes on from.

        Raises UserError where a value is not finite: nothing goes on from there.
        """
        tensors: dict[str, Mapping[str, Tensor]] = {
            checkpoint.MODEL: self.evaluated.state_dict(),
            OPTIMIZER: tensors_of(self.optimizer, self.model),
        }
        if self.average:
            tensors[TRAINED] = self.model.state_dict()
        divergence.check_finite(tensors)
        model = asdict(model_config.describe(self.model))
        return tensors, {checkpoint.MODEL: model, PROGRESS: asdict(self._progress())}

    def _progress(self) -> Progress:
        within = None
        if self.steps:
            within = Within(
                self.steps * self.recipe.schedule.batch_size,
                self._means.of_each(self.plan.processes),
                time.monotonic() - self.began,
            )
        updates = int(self.average.n_averaged) if self.average else 0
        return Progress(self.epoch, updates, tuple(sorted(self.skipped)), within)

    def restore(self, run: Run) -> None:
        """Go on from the newest checkpoint of `run`, from the start where it has none.

        Raises UserError, and changes nothing in the run, where the checkpoint is not of this model
        and optimiser.
        """
        if not run.has_checkpoint:
            run.rewind(0)
            return
        found = checkpoint.verify_newest(run.checkpoints)
        progress = read_progress(found)
        # Where it was begun with an average and goes on without, MODEL is that average.
        trained = TRAINED if not self.average and found.holds(TRAINED) else checkpoint.MODEL
        weights = found.read_tensors(trained)
        saved_models.load_weights(self.evaluated, weights, found.path)
        if self.average:
            saved_models.load_weights(self.model, found.read_tensors(TRAINED), found.path)
            self.average.n_averaged.fill_(progress.averaged_updates)
        self.set_threshold(saved_models.read_config(found).threshold)
        kept = slots_of(self.recipe.optimizer)
        restore_optimizer(self.optimizer, self.model, found, kept)
        self.epoch = progress.epoch
        self.skipped = set(progress.skipped)
        if progress.within:
            self.steps = progress.within.images // self.recipe.schedule.batch_size
            self.began = time.monotonic() - progress.within.seconds
            self._means = EpochSums.share_of(progress.within.sums, self.plan)
        run.rewind(self.epoch)
