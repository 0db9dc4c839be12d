"""A network in training: one step, one epoch, and the state that a run goes on from."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from gaternet import checkpoint
from gaternet.data.augmentation import augment, normalise
from gaternet.data.batches import epoch_batches
from gaternet.data.image_set import ImageSet
from gaternet.errors import UserError
from gaternet.losses import gated_cross_entropy
from gaternet.model import GaterNet
from gaternet.randomness import Purpose, sample_keys
from gaternet.training.compute import ComputePlan, keep_freed_memory
from gaternet.training.config import Recipe
from gaternet.training.progress import Reporter
from gaternet.training.run import Run
from gaternet.training.schedules import gate_noise, learning_rate

LOOK_EVERY_SECONDS = 0.5
"""How often the running means are read: reading them makes the host wait for the device."""

BATCH_NORM_BATCHES = 100
"""Batches that BatchNorm's statistics are measured on again when training has ended."""

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass
class _Means:
    """Sums over an epoch's samples, kept on the device."""

    sums: Tensor
    count: int = 0

    def add(self, loss: Tensor, wrong: Tensor, opened: Tensor, count: int) -> None:
        self.sums += torch.stack((loss.detach() * count, wrong, opened))
        self.count += count

    def read(self, gated: bool, seconds: float, epoch: int) -> dict[str, float]:
        loss, wrong, opened = (self.sums / self.count).tolist()
        check_finite(loss, epoch)
        numbers = {"loss": loss, "error_percent": 100 * wrong}
        if gated:
            numbers["open_share"] = opened
        return numbers | {"images_per_second": self.count / seconds}


def check_finite(loss: float, epoch: int) -> None:
    """Raise UserError where a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} in epoch {epoch}; checkpoints of earlier epochs are kept. "
            "Start again in a new --out with a lower --optimizer.lr"
        )


def make_objective(model: nn.Module, recipe: Recipe, plan: ComputePlan) -> Objective:
    """Return (images uint8, labels, SemHash keys) → (loss, wrong predictions, share open · N)."""
    data, smoothing = recipe.data, recipe.optimizer.label_smoothing
    sparsity = recipe.gating.sparsity if recipe.gating else 0.0
    gated = isinstance(model, GaterNet)

    def objective(pixels: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = normalise(pixels, data.mean, data.std)
        images = images.contiguous(memory_format=plan.memory_format)
        opened = torch.zeros((), device=pixels.device)
        with plan.autocast:
            output = model(images, keys=keys) if gated else model(images)
        logits = output.logits if gated else output
        if gated:
            opened = output.gates.detach().mean(dim=1).sum()
            loss = gated_cross_entropy(
                logits, output.gates, labels, sparsity=sparsity, label_smoothing=smoothing
            )
        else:
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        wrong = (logits.detach().argmax(dim=1) != labels).sum()
        return loss, wrong, opened

    if not plan.compile:
        return objective
    # Inductor looks for a CUDA toolkit even when it compiles for the CPU, and says so.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch.compile(objective, dynamic=False)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum over all parameters."""
    settings = recipe.optimizer
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )


class Trainer:
    """A model in training: its weights, their average, the optimiser, and where it stands."""

    def __init__(self, model: nn.Module, recipe: Recipe, plan: ComputePlan) -> None:
        self.recipe, self.plan = recipe, plan
        if plan.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(plan.device).to(memory_format=plan.memory_format)
        self.optimizer = make_optimizer(self.model, recipe)
        self.objective = make_objective(self.model, recipe, plan)
        self.average: AveragedModel | None = None
        if recipe.schedule.ema:
            average = get_ema_multi_avg_fn(recipe.schedule.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.epoch = 0

    @property
    def evaluated(self) -> nn.Module:
        """The network whose error counts: the averaged one where there is one."""
        return self.average.module if self.average else self.model

    def steps_per_epoch(self, images: ImageSet) -> int:
        """The ragged last batch is dropped; its images come earlier in the next epoch's order."""
        return len(images) // self.recipe.schedule.batch_size

    def train_epoch(self, images: ImageSet, reporter: Reporter) -> dict[str, float]:
        """Train on every full batch of one epoch; return means over it."""
        means = _Means(torch.zeros(3, dtype=torch.float64, device=self.plan.device))
        steps = self.steps_per_epoch(images)
        start = last_look = time.monotonic()
        gated = isinstance(self.model, GaterNet)
        self.model.train()
        for step, batch in enumerate(self.batches(images)):
            self.set_stage((self.epoch + step / steps) / self.recipe.epochs)
            means.add(*self.step(*batch), count=len(batch[1]))
            now = time.monotonic()
            if now - last_look > LOOK_EVERY_SECONDS and step + 1 < steps:
                last_look = now
                numbers = means.read(gated, now - start, self.epoch + 1)
                reporter.step(self.epoch + 1, self.epoch * steps + step + 1, numbers)
        numbers = means.read(gated, time.monotonic() - start, self.epoch + 1)
        self.epoch += 1
        reporter.step(self.epoch, self.epoch * steps, numbers)
        return numbers

    def batches(self, images: ImageSet) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        recipe, device = self.recipe, self.plan.device
        size = recipe.schedule.batch_size
        for index, pixels, labels in epoch_batches(images, recipe.seed, self.epoch, size, device):
            drawn = sample_keys(recipe.seed, Purpose.AUGMENTATION, self.epoch, index)
            keys = sample_keys(recipe.seed, Purpose.SEMHASH, self.epoch, index)
            yield augment(pixels, drawn, recipe.augmentation, recipe.data.mean), labels, keys

    def set_stage(self, progress: float) -> None:
        rate = learning_rate(self.recipe.schedule, self.recipe.optimizer.lr, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if isinstance(self.model, GaterNet) and self.recipe.gating:
            self.model.binarizer.set_stage(*gate_noise(self.recipe.gating, progress))

    def step(self, pixels: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.recipe.schedule.accumulate
        sums = []
        for part in zip(pixels.chunk(parts), labels.chunk(parts), keys.chunk(parts), strict=True):
            loss, wrong, opened = self.objective(*part)
            (loss / parts).backward()
            sums.append(torch.stack((loss.detach() / parts, wrong, opened)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.model)
        loss, wrong, opened = torch.stack(sums).sum(dim=0)
        return loss, wrong, opened

    def reestimate_batch_norm(self, images: ImageSet) -> None:
        """Measure BatchNorm's running statistics again, under the gates of evaluation.

        The gater's come first: the backbone's are then taken under the very gates that it gives.
        """
        network = self.evaluated
        if isinstance(network, GaterNet):
            update_bn(self._some_images(images), network.gater)
            network = _UnderHardGates(network.eval())
        update_bn(self._some_images(images), network)

    def _some_images(self, images: ImageSet) -> Iterator[Tensor]:
        data = self.recipe.data
        for pixels, _, _ in islice(self.batches(images), BATCH_NORM_BATCHES):
            yield normalise(pixels, data.mean, data.std)

    def state(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Return tensors and values that `restore` goes on from."""
        tensors: dict[str, Mapping[str, Tensor]] = {
            checkpoint.MODEL: self.evaluated.state_dict(),
            "momentum": {
                name: self.optimizer.state[parameter]["momentum_buffer"]
                for name, parameter in self.model.named_parameters()
                if "momentum_buffer" in self.optimizer.state[parameter]
            },
        }
        if self.average:
            tensors["trained"] = self.model.state_dict()
        updates = int(self.average.n_averaged) if self.average else 0
        return tensors, {
            checkpoint.MODEL: asdict(checkpoint.describe(self.model)),
            "progress": {"epoch": self.epoch, "averaged_updates": updates},
        }

    def restore(self, run: Run) -> None:
        """Go on from the newest checkpoint of `run`, from the start where it has none."""
        if not run.has_checkpoint:
            run.rewind(0)
            return
        path = checkpoint.newest(run.checkpoints)
        progress = checkpoint.read_json(path, "progress")
        weights = checkpoint.read_tensors(path, checkpoint.MODEL)
        checkpoint.load_weights(self.evaluated, weights, path)
        if self.average:
            trained = checkpoint.read_tensors(path, "trained")
            checkpoint.load_weights(self.model, trained, path)
            self.average.n_averaged.fill_(progress["averaged_updates"])
        momentum = checkpoint.read_tensors(path, "momentum")
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                # In the parameter's own memory layout, which the fused step takes for granted.
                buffer = torch.empty_like(parameter).copy_(momentum[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.epoch = progress["epoch"]
        run.rewind(self.epoch)


class _UnderHardGates(nn.Module):
    """A GaterNet whose backbone alone is trained or evaluated: its gater stays as it is."""

    def __init__(self, network: GaterNet) -> None:
        super().__init__()
        self.backbone = network.backbone
        self._network = (network,)  # in a tuple, so that it is no submodule

    def forward(self, images: Tensor) -> Any:
        (network,) = self._network
        gates = network.binarizer.evaluate(network.gate_logits(images))
        return network(images, gates=gates).logits
