"""What a finished run measured: errors, costs, gates, and what it took."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gaternet.accounting import count_macs
from gaternet.data.batches import Images
from gaternet.data.settings import DataConfig
from gaternet.given_files import MAX_TEXT
from gaternet.right_images import Judged, pack
from gaternet.training.compute import ComputePlan, hardware
from gaternet.training.config import recipe_to_dict
from gaternet.training.evaluation import judge
from gaternet.training.run import Run
from gaternet.training.trainer import Trainer


def measure(
    trainer: Trainer, test: Images, run: Run, pretrain_epochs: Mapping[str, int | str]
) -> dict[str, Any]:
    """Return the content of result.json: the trained network on every test image, once.

    `pretrain_epochs` says for how many epochs the networks that it started from were trained, or by
    whom else; it is empty for a network that started from fresh weights.
    """
    recipe, model = trainer.recipe, trainer.evaluated
    epochs = run.metrics()  # of several processes only the first has written all of them by now
    kept = ("backbone", "gating", "validation", "optimizer", "schedule", "augmentation", "compute")
    settings = {name: value for name, value in recipe_to_dict(recipe).items() if name in kept}
    return {
        "recipe": recipe.name,
        "data": {"name": run.config.data_name, "fingerprint": run.config.data_fingerprint},
        "epochs": recipe.epochs,
        "pretrain_epochs": dict(pretrain_epochs) or None,
        "seed": recipe.seed,
        "computed_with": {
            "precision": trainer.plan.precision,
            "compile": trainer.plan.compile,
            "channels_last": trainer.plan.memory_format == torch.channels_last,
        },
        "wall_seconds": round(sum(line["seconds"] for line in epochs)),
        "training_error_percent": epochs[-1]["error_percent"] if epochs else None,
        **errors_and_costs(model, test, recipe.data, trainer.plan),
        **_trained_on(epochs),
        "settings": settings,
        "changes": list(run.config.changes),
    }


def _trained_on(epochs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the hardware of all epochs: a run may go on elsewhere. Nothing where none was kept."""
    found = dict.fromkeys(line["hardware"] for line in epochs if "hardware" in line)
    return {"hardware": "; ".join(found)} if found else {}


def errors_and_costs(
    model: nn.Module, test: Images, data: DataConfig, plan: ComputePlan
) -> dict[str, Any]:
    """Return a network's errors on the test images, what an image costs, and where and when."""
    found, right = judge(model, test, data, plan)
    macs, uncounted = macs_per_image(model, data)
    return {
        "hardware": hardware(plan.device),
        "processes": plan.processes.count,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "test_error_percent": round(found.error_percent, 3),
        "test_top5_error_percent": round(found.top5_error_percent, 3),
        "gate_form": found.form.value if found.form else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs_per_image": macs,
        "macs_needed_per_image": round(found.gates.needed_macs) if found.gates else macs,
        "macs_uncounted": uncounted,
        "gates": asdict(found.gates) if found.gates else None,
        "judged": None if right is None else _judged(right, test.fingerprint),
    }


def _judged(right: Tensor, fingerprint: str) -> dict[str, Any] | None:
    """Return which images are classified rightly, (N,) bool; None of too many to be read again."""
    text = pack(right.numpy())
    if len(text) > MAX_TEXT:
        return None
    return asdict(Judged(len(right), fingerprint, text))


def macs_per_image(model: nn.Module, data: DataConfig) -> tuple[int, dict[str, int]]:
    """Return (multiply-accumulates of one image, calls of what could not be counted).

    Every filter is computed, and the gater is included.
    """
    counter = count_macs(model, data.input_size)
    return counter.backbone_macs + counter.deciding_macs, counter.uncounted
