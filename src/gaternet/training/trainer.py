"""A network in training: one step, one epoch, and the state that a run goes on from."""

import functools
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from timm.optim import RMSpropTF
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from gaternet import checkpoint, model_config, saved_models
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Images, Order, training_batches
from gaternet.data.settings import Augmentation
from gaternet.errors import UserError
from gaternet.losses import gated_cross_entropy
from gaternet.model import GatedModel, GaterNet
from gaternet.randomness import Purpose, sample_keys
from gaternet.training import divergence
from gaternet.training.budget import Budget, make_budget, set_budget, threshold_for
from gaternet.training.compute import ComputePlan, keep_freed_memory
from gaternet.training.config import Optimizer, Recipe
from gaternet.training.divergence import READ_EVERY, Sentinel, backward, describe, find_origin
from gaternet.training.processes import Processes
from gaternet.training.progress import Reporter
from gaternet.training.run import Run
from gaternet.training.saved_state import (
    OPTIMIZER,
    PROGRESS,
    TRAINED,
    Progress,
    Sums,
    Within,
    read_progress,
    restore_optimizer,
    tensors_of,
)
from gaternet.training.schedules import gate_dropout_rate, gate_noise, learning_rate

LOOK_EVERY_SECONDS = 0.5
"""How often the running means are read: reading them makes the host wait for the device."""

MEASURED_BATCHES = 100
"""Batches that BatchNorm's statistics, and the gates' threshold, are measured on when training has
ended."""

AS_THEY_ARE = Augmentation(crop_padding=0, mirror=False)

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass
class _Means:
    """Sums over an epoch's samples, kept on the device: loss, wrong predictions, share open."""

    sums: Tensor  # (3,) float64
    count: int = 0

    def add(self, loss: Tensor, wrong: Tensor, opened: Tensor, count: int) -> None:
        self.sums += torch.stack((loss.detach() * count, wrong, opened))
        self.count += count

    def read(self, gated: bool, seconds: float) -> dict[str, float]:
        loss, wrong, opened = (self.sums / self.count).tolist()
        numbers = {"loss": loss, "error_percent": 100 * wrong}
        if gated:
            numbers["open_share"] = opened
        return numbers | {"images_per_second": self.count / seconds}

    def of_each(self, processes: Processes) -> tuple[Sums, ...]:
        """Return the sums and the count of every process."""
        rows = self.sums.new_zeros(processes.count, 4)
        rows[processes.rank] = torch.cat((self.sums, self.sums.new_tensor([self.count])))
        return tuple((a, b, c, count) for a, b, c, count in processes.total(rows).tolist())

    @classmethod
    def share_of(cls, rows: tuple[Sums, ...], plan: ComputePlan) -> "_Means":
        """Return this process's own sums; where there were more processes, theirs are shared."""
        mine = torch.tensor(rows, dtype=torch.float64)[plan.processes.rank :: plan.processes.count]
        *_, count = sums = mine.sum(dim=0)
        return cls(sums[:3].to(plan.device), int(count))

    def over(self, processes: Processes) -> "_Means":
        """Return the sums over all processes, whose parts of the epoch may differ in size."""
        counted = torch.cat((self.sums, self.sums.new_tensor([self.count])))
        *_, count = totals = processes.total(counted)
        return _Means(totals[:3], int(count))


def check_finite(loss: float, epoch: int) -> None:
    """Raise UserError where a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} in epoch {epoch}; checkpoints of earlier epochs are kept. "
            "Start again in a new --out with a lower --optimizer.lr"
        )


def make_objective(
    network: nn.Module, recipe: Recipe, plan: ComputePlan, budget: Budget | None = None
) -> Objective:
    """Return (images uint8, labels, keys) → (loss, wrong predictions, share open · N)."""
    data, gating = recipe.data, recipe.gating
    smoothing = recipe.optimizer.label_smoothing
    takes_keys = getattr(getattr(network, "module", network), "takes_keys", False)

    def objective(pixels: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = normalise(pixels, data.mean, data.std)
        images = images.contiguous(memory_format=plan.memory_format)
        opened = torch.zeros((), device=pixels.device)
        with plan.autocast:
            output = network(images, keys=keys) if takes_keys else network(images)
        logits = output if gating is None else output.logits
        if gating is None:
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        else:
            opened = output.gates.detach().mean(dim=1).sum()
            loss = gated_cross_entropy(
                logits,
                output.gates,
                labels,
                sparsity=gating.sparsity,
                label_smoothing=smoothing,
                target_rate=gating.target_rate,
            )
        if budget is not None:
            loss = loss + budget(output.gates)
        wrong = (logits.detach().argmax(dim=1) != labels).sum()
        return loss, wrong, opened

    return _compiled(objective) if plan.compile and plan.processes.count == 1 else objective


def distributed(model: nn.Module, plan: ComputePlan) -> nn.Module:
    """Return what is called in training: the model itself, or, among several processes, one whose
    backward averages gradients over them and whose forward takes the first one's buffers."""
    if plan.processes.count == 1:
        return model
    network = _compiled(model) if plan.compile else model
    return DistributedDataParallel(
        network, device_ids=[plan.device] if plan.device.type == "cuda" else None
    )


def _compiled(function: Any) -> Any:
    # Inductor looks for a CUDA toolkit even when it compiles for the CPU, and says so.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch.compile(function, dynamic=False)


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters that need gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.kind == "rmsprop":
        # TensorFlow's: ε within the root, squares that start at 1. With ε = 1 that matters.
        return RMSpropTF(
            parameters,
            lr=settings.lr,
            alpha=0.9,
            eps=1.0,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def slots_of(settings: Optimizer) -> dict[str, torch.Size | None]:
    """Return what an optimiser keeps of every parameter: slot → shape; None: the parameter's.

    As a step of it shows, with a parameter of its own.
    """
    one = nn.ParameterList([torch.zeros(2)])
    parameter = one[0]
    parameter.grad = torch.zeros(2)
    optimizer = make_optimizer(one, settings)
    optimizer.step()
    return {
        slot: None if value.shape == parameter.shape else value.shape
        for slot, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


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
        """The ragged last batch is dropped; its images come earlier in the next epoch's order."""
        return len(images) // self.recipe.schedule.batch_size

    def train_epoch(
        self, images: Images, reporter: Reporter, behind_step: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Train on what is left of an epoch's full batches; return means over the whole of it.

        behind_step: called when a step is done, and `state` is that of a checkpoint
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
            if behind_step:
                behind_step()
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
            self.plan.processes.take_from_first(self.average.buffers())
        reporter.step(self.epoch, self.epoch * steps, numbers)
        return numbers

    def note_skipped(self, images: Images) -> None:
        """Remember the bad images that any process has left out."""
        self.skipped |= self.plan.processes.union(set(images.skipped))

    def _no_means(self) -> _Means:
        return _Means(torch.zeros(3, dtype=torch.float64, device=self.plan.device))

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
        parts = [x.chunk(self.recipe.schedule.accumulate) for x in (pixels, labels, keys)]
        for number, part in enumerate(zip(*parts, strict=True), start=1):
            share = len(part[1]) / len(labels)
            with self._without_averaging() if number < len(parts[0]) else nullcontext():
                loss, wrong, opened = self.objective(*part)
                backward(loss, share)
            sums.append(torch.stack((loss.detach() * share, wrong, opened)))
        self.sentinel.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.model)
        loss, wrong, opened = torch.stack(sums).sum(dim=0)
        return loss, wrong, opened

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
        parts = zip(*(x.chunk(self.recipe.schedule.accumulate) for x in batch), strict=True)
        eager = replace(self.plan, compile=False)
        objective = make_objective(self.model, self.recipe, eager, self.budget)
        origin = find_origin(self.model, lambda: (objective(*part)[0] for part in parts))
        raise UserError(describe(self.plan.processes.gathered(origin), self.epoch + 1, bad + 1))

    def _without_averaging(self) -> AbstractContextManager[None]:
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    def reestimate_batch_norm(self, images: Images) -> None:
        """Measure BatchNorm's running statistics again, under the gates of evaluation.

        The gater's come first: the backbone's are then taken under the very gates that it gives.
        """
        network = self.evaluated
        if isinstance(network, GaterNet):
            gater = network.gater
            self._measure(images, gater, lambda batch, keys: gater(batch))
            network.eval()
            self._measure(
                images,
                network.backbone,
                lambda batch, keys: network(
                    batch, gates=network.decide(batch, keys=keys).gates, keys=keys
                ),
            )
        elif isinstance(network, GatedModel):
            self._measure(images, network, functools.partial(_under_its_gates, network))
        elif getattr(network, "takes_keys", False):
            self._measure(images, network, lambda batch, keys: network(batch, keys=keys))
        else:
            self._measure(images, network, lambda batch, keys: network(batch))
        self.plan.processes.take_from_first(self.evaluated.buffers())

    @torch.inference_mode()
    def meet_budget(self, images: Images) -> None:
        """Move the gates' threshold to where the gates of evaluation meet the budget.

        In training the gater's BatchNorms have a batch's statistics, and images are augmented: a
        few per cent. Gates that are decided on the way depend on each other; theirs stays.
        """
        model, budget = self.evaluated, self.budget
        if budget is None or not isinstance(model, GaterNet):
            return
        model.eval()
        data = self.recipe.data
        logits = torch.cat(
            [
                model.gate_logits(normalise(pixels, data.mean, data.std))
                for pixels, *_ in islice(self.batches(images, AS_THEY_ARE), MEASURED_BATCHES)
            ]
        )
        self.set_threshold(threshold_for(budget.counter, logits, budget.final, self.plan.processes))

    def set_threshold(self, threshold: float) -> None:
        """Set the threshold of the gates, of the averaged network too."""
        for network in (self.model, self.evaluated):
            if isinstance(network, GatedModel):
                network.binarizer.threshold = threshold

    def _measure(
        self, images: Images, network: nn.Module, call: Callable[[Tensor, Tensor], object]
    ) -> None:
        """Take the statistics of a network's BatchNorms anew while `call` runs it."""
        data = self.recipe.data
        batches = islice(self.batches(images), MEASURED_BATCHES)
        # update_bn passes on the first item of each batch: here a pair.
        pairs = (((normalise(pixels, data.mean, data.std), keys),) for pixels, _, keys in batches)
        update_bn(pairs, _Called(network, call))

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
        weights = found.read_tensors(checkpoint.MODEL)
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
            self._means = _Means.share_of(progress.within.sums, self.plan)
        run.rewind(self.epoch)


class _Called(nn.Module):
    """A network in training mode that is run by a function, from images and keys."""

    def __init__(self, network: nn.Module, call: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.network = network
        self._call = call

    def forward(self, pair: tuple[Tensor, Tensor]) -> object:
        return self._call(*pair)


def _under_its_gates(network: GatedModel, images: Tensor, keys: Tensor) -> object:
    """Run a network whose BatchNorms are in training under the gates of evaluation."""
    network.binarizer.eval()
    network.dropout.eval()
    network.ungated.eval()
    return network(images, keys=keys)
