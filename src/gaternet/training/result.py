"""What a finished run measured: errors, costs, gates, and what it took."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from gaternet import graph
from gaternet.data.batches import Images
from gaternet.data.settings import DataConfig
from gaternet.local import LocalGaterNet
from gaternet.model import GatedModel, GaterNet
from gaternet.training.compute import hardware
from gaternet.training.config import recipe_to_dict
from gaternet.training.evaluation import evaluate
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
    found = evaluate(model, test, recipe.data, trainer.plan)
    macs, uncounted = macs_per_image(model, recipe.data)
    kept = ("backbone", "gating", "validation", "optimizer", "schedule", "augmentation", "compute")
    settings = {name: value for name, value in recipe_to_dict(recipe).items() if name in kept}
    return {
        "recipe": recipe.name,
        "data": {"name": run.config.data_name, "fingerprint": run.config.data_fingerprint},
        "epochs": recipe.epochs,
        "pretrain_epochs": dict(pretrain_epochs) or None,
        "seed": recipe.seed,
        "hardware": hardware(trainer.plan.device),
        "processes": trainer.plan.processes.count,
        "computed_with": {
            "precision": str(trainer.plan.dtype).removeprefix("torch."),
            "compile": trainer.plan.compile,
            "channels_last": trainer.plan.memory_format == torch.channels_last,
        },
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "wall_seconds": round(sum(line["seconds"] for line in run.metrics())),
        "test_error_percent": round(found.error_percent, 3),
        "test_top5_error_percent": round(found.top5_error_percent, 3),
        "gate_form": found.form.value if found.form else None,
        "settings": settings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs_per_image": macs,
        "macs_uncounted": uncounted,
        "gates": asdict(found.gates) if found.gates else None,
    }


def macs_per_image(model: nn.Module, data: DataConfig) -> tuple[int, dict[str, int]]:
    """Return (multiply-accumulates of one image, calls of what could not be counted).

    Every filter is computed, and the gater is included.
    """
    size = (data.channels, data.image_size, data.image_size)
    if not isinstance(model, GatedModel):
        backbone = graph.trace(model, size)
        return backbone.total_macs, dict(backbone.uncounted)
    backbone = graph.trace(model.backbone, size)
    if isinstance(model, LocalGaterNet):
        return backbone.total_macs + _linear_macs(model.heads), dict(backbone.uncounted)
    assert isinstance(model, GaterNet)
    glance = model.gater.input_size or data.image_size
    extractor = graph.trace(model.gater.extractor, (data.channels, glance, glance))
    assert model.gater.head is not None
    head = _linear_macs(model.gater.head)
    uncounted = {f"backbone.{name}": calls for name, calls in backbone.uncounted.items()}
    uncounted |= {f"gater.{name}": calls for name, calls in extractor.uncounted.items()}
    return backbone.total_macs + extractor.total_macs + head, uncounted


def _linear_macs(module: nn.Module) -> int:
    layers = (m for m in module.modules() if isinstance(m, nn.Linear))
    return sum(layer.in_features * layer.out_features for layer in layers)
