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


def reestimate_batch_norm(trainer: Trainer, images: Images) -> None:
    """Measure BatchNorm's running statistics again, under the gates of evaluation.

    The gater's come first: the backbone's are then taken under the very gates that it gives.
    """
    network = trainer.evaluated
    if isinstance(network, GaterNet):
        gater = network.gater
        _measure(trainer, images, gater, lambda batch, keys: gater(batch))
        network.eval()
        _measure(
            trainer,
            images,
            network.backbone,
            lambda batch, keys: network(
                batch, gates=network.decide(batch, keys=keys).gates, keys=keys
            ),
        )
    elif isinstance(network, GatedModel):
        _measure(trainer, images, network, functools.partial(_under_its_gates, network))
    elif getattr(network, "takes_keys", False):
        _measure(trainer, images, network, lambda batch, keys: network(batch, keys=keys))
    else:
        _measure(trainer, images, network, lambda batch, keys: network(batch))
    trainer.plan.processes.take_from_first(trainer.evaluated.buffers())


@torch.inference_mode()
def meet_budget(trainer: Trainer, images: Images) -> None:
    """Move the gates' threshold to where the gates of evaluation meet the budget.

    In training the gater's BatchNorms have a batch's statistics, and images are augmented: that is
    a little off. Gates that are decided on the way depend on each other; theirs stays.
    """
    model, budget = trainer.evaluated, trainer.budget
    if budget is None or not isinstance(model, GaterNet):
        return
    model.eval()
    data = trainer.recipe.data
    logits = torch.cat(
        [
            model.gate_logits(normalise(pixels, data.mean, data.std))
            for pixels, *_ in islice(trainer.batches(images, AS_THEY_ARE), MEASURED_BATCHES)
        ]
    )
    threshold = threshold_for(budget.counter, logits, budget.final, trainer.plan.processes)
    trainer.set_threshold(threshold)


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
