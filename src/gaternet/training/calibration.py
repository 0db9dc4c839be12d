"""What is measured when training has ended, for the network that is evaluated.

BatchNorm's running statistics, and the threshold from which gates are open.
"""

import functools
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gaternet.data.augmentation import normalise
from gaternet.data.batches import Images
from gaternet.data.settings import Augmentation
from gaternet.model import GatedModel, GaterNet
from gaternet.training.budget import threshold_for
from gaternet.training.trainer import Trainer

MEASURED_BATCHES = 100
"""Training batches that are measured on."""

AS_THEY_ARE = Augmentation(crop_padding=0, mirror=False)


MISSED = 0.05
"""Of a budget: what is off by more than this is reported."""


def calibrate(trainer: Trainer, images: Images) -> str | None:
    """Make the network that is evaluated of one whose training has ended; return a warning, if any.

    BatchNorm's statistics of the gater come first, since the gates follow from them; then the
    gates' threshold, where there is a budget; and under these very gates the statistics of all
    else. In another order a filter that the threshold opens would meet statistics without it.
    """
    warning = None
    network, gating = trainer.evaluated, trainer.recipe.gating
    assert isinstance(network, GatedModel)
    assert gating is not None
    if isinstance(network, GaterNet):
        gater = network.gater
        if gating.reestimate_batch_norm:
            _measure(trainer, images, gater, lambda batch, keys: gater(batch))
            trainer.plan.processes.take_from_first(gater.buffers())
        warning = _meet_budget(trainer, network, images)
    if gating.reestimate_batch_norm:
        _measure_backbone(trainer, images, network)
        trainer.plan.processes.take_from_first(network.buffers())
    return warning


def _measure_backbone(trainer: Trainer, images: Images, network: GatedModel) -> None:
    """Measure BatchNorm's statistics again under the gates of evaluation."""
    if isinstance(network, GaterNet):
        network.eval()
        _measure(
            trainer,
            images,
            network.backbone,
            lambda batch, keys: network(
                batch, gates=network.decide(batch, keys=keys).gates, keys=keys
            ),
        )
    else:
        _measure(trainer, images, network, functools.partial(_under_its_gates, network))


@torch.inference_mode()
def _meet_budget(trainer: Trainer, model: GaterNet, images: Images) -> str | None:
    """Move the gates' threshold to where the gates of evaluation meet the budget, if they do.

    In training the gater's BatchNorms have a batch's statistics, and images are augmented: that is
    a little off. Gates that are decided on the way depend on each other; theirs stays.
    """
    budget, processes = trainer.budget, trainer.plan.processes
    if budget is None:
        return None
    model.eval()
    data = trainer.recipe.data
    logits = torch.cat(
        [
            model.gate_logits(normalise(pixels, data.mean, data.std))
            for pixels, *_ in islice(trainer.batches(images, AS_THEY_ARE), MEASURED_BATCHES)
        ]
    )
    threshold = threshold_for(budget.counter, logits, budget.final, processes)
    trainer.set_threshold(threshold)
    share = budget.counter.shares((logits >= threshold).double()).mean()
    needed = float(processes.total(share)) / processes.count
    if abs(needed - budget.final) <= MISSED * budget.final:
        return None
    return (
        f"warning: the gates leave {100 * needed:.1f} % of the backbone's multiply-accumulates, "
        f"not the {100 * budget.final:g} % of --gating.budget, and no threshold does: train for "
        "longer, or with another --gating.opening-bias"
    )


def _measure(
    trainer: Trainer, images: Images, network: nn.Module, call: Callable[[Tensor, Tensor], object]
) -> None:
    """Take the statistics of a network's BatchNorms anew while `call` runs it."""
    data = trainer.recipe.data
    batches = islice(trainer.batches(images), MEASURED_BATCHES)
    # update_bn passes on the first item of each batch: here a pair.
    pairs = (((normalise(pixels, data.mean, data.std), keys),) for pixels, _, keys in batches)
    update_bn(pairs, _Called(network, call))


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
