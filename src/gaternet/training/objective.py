"""What a step makes smaller: cross entropy, the term of the gates (section 3.2.2), a budget's."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gaternet.data.augmentation import normalise
from gaternet.losses import gated_cross_entropy
from gaternet.training.budget import Budget
from gaternet.training.compute import ComputePlan
from gaternet.training.config import Recipe

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


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
