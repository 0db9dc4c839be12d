"""The baseline of as many parameters: the networks that a gated one starts from, averaged."""

from collections.abc import Iterable, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from gaternet import saved_models
from gaternet.commands import split_images
from gaternet.errors import UserError
from gaternet.reproduction.jobs import EnsembleJob
from gaternet.training.compute import choose_device, plan
from gaternet.training.result import errors_and_costs
from gaternet.training.run import Run


class Ensemble(nn.Module):
    """Networks whose class probabilities are averaged."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, (N, K), for images (N, C, H, W)."""
        each = torch.stack([network(images).log_softmax(dim=1) for network in self.networks])
        return each.logsumexp(dim=0) - log(len(each))


def measure_ensemble(
    job: EnsembleJob, runs: Mapping[str, Run], images: str, device: str
) -> dict[str, Any]:
    """Average finished runs on the test images; return what is kept, as a run's result.json.

    images: folder or hub name

    Raises UserError where the runs are of different images, or these have other classes.
    """
    recipe, where = job.recipe, choose_device(device)
    if len({run.config.data_fingerprint for run in runs.values()}) > 1:
        paths = " and ".join(str(run.path) for run in runs.values())
        raise UserError(f"{paths} were trained on different images: they cannot be averaged")
    model = Ensemble(saved_models.load(run.path) for run in runs.values()).to(where)
    data = runs["backbone"].config
    test = split_images(runs["backbone"], images, "test")
    return {
        "recipe": recipe.name,
        "data": {"name": data.data_name, "fingerprint": data.data_fingerprint},
        "epochs": recipe.epochs,
        "pretrain_epochs": None,
        "seed": recipe.seed,
        "averaged": [source.name for source in job.parts.values()],
        **errors_and_costs(model, test, recipe.data, plan(recipe.compute, where)),
        "command": job.command,
    }
