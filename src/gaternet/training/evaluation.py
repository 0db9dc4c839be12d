"""Error rates, and what the gates do, over a set of images."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaternet.accounting import MacCounter, count_macs
from gaternet.binarizers import GateForm
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Images, evaluation_batches
from gaternet.data.settings import DataConfig
from gaternet.data.streams import HubStream
from gaternet.evaluation_mode import in_evaluation_mode
from gaternet.model import Decision, GatedModel
from gaternet.randomness import Purpose, sample_keys
from gaternet.training.compute import ComputePlan
from gaternet.training.processes import Processes

BATCH_SIZE = 500
"""Images that are evaluated at once, in each process."""

NEAR_THRESHOLD = 1.0
"""A logit this near the threshold changes sides by one standard deviation of training noise."""


@dataclass(frozen=True)
class GateUse:
    """How many gates never close, never open, or depend on the input, over a set of images.

    A soft gate counts as open where it is above 0, as in `analysis`.
    """

    total: int
    always_on: int
    always_off: int
    input_dependent: int
    mean_open: float
    """Open gates per image, mean."""
    near_threshold: float
    """Share of the gate logits within 1 of the threshold."""
    needed_macs: float
    """Multiply-accumulates that an image needs under its gates, who decides included, mean."""
    backbone_macs: int
    """Multiply-accumulates of the plain backbone."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; percentages of `images`."""

    images: int
    loss: float
    error_percent: float
    top5_error_percent: float
    form: GateForm | None
    """The gates that took part; None for a plain network."""
    gates: GateUse | None


class _GateCounter:
    def __init__(self, model: GatedModel, data: DataConfig, device: torch.device) -> None:
        self.macs = _mac_counter(model, data).to(device)
        self.needed = torch.zeros((), dtype=torch.float64, device=device)
        self.opened = torch.zeros(model.gate_count, dtype=torch.float64, device=device)
        self.near = torch.zeros((), dtype=torch.float64, device=device)
        self.threshold = model.binarizer.threshold

    def add(self, decision: Decision) -> None:
        # A soft gate that is not quite closed needs its filter as a whole.
        opened = (decision.gates > 0).double()
        self.opened += opened.sum(dim=0)
        self.needed += self.macs(opened).sum()
        self.near += ((decision.logits - self.threshold).abs() < NEAR_THRESHOLD).sum()

    def use(self, images: int, processes: Processes) -> GateUse:
        self.opened, self.near = processes.total(self.opened), processes.total(self.near)
        self.needed = processes.total(self.needed)
        total = len(self.opened)
        on = int((self.opened == images).sum())
        off = int((self.opened == 0).sum())
        return GateUse(
            total=total,
            always_on=on,
            always_off=off,
            input_dependent=total - on - off,
            mean_open=float(self.opened.sum()) / images,
            near_threshold=float(self.near) / (images * total),
            needed_macs=float(self.needed) / images,
            backbone_macs=self.macs.backbone_macs,
        )


_COUNTERS: WeakKeyDictionary[GatedModel, dict[tuple[int, int, int], MacCounter]] = (
    WeakKeyDictionary()
)
"""By model and size of image: a network in training is evaluated after every epoch."""


def _mac_counter(model: GatedModel, data: DataConfig) -> MacCounter:
    counters = _COUNTERS.setdefault(model, {})
    if data.input_size not in counters:
        counters[data.input_size] = count_macs(model, data.input_size)
    return counters[data.input_size]


def evaluate(
    model: nn.Module,
    images: Images,
    data: DataConfig,
    plan: ComputePlan,
    form: GateForm | None = None,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Measure a gated or a plain network on every image exactly once, in float32.

    Of several processes each measures its share, and all return the whole. `form` says which gates
    take part: hard without noise (the paper's evaluation), soft without noise, or hard with noise;
    None: the binarizer's own. The model is put into evaluation mode and left as it was found.
    """
    return judge(model, images, data, plan, form, batch_size)[0]


@torch.inference_mode()
@in_evaluation_mode
def judge(
    model: nn.Module,
    images: Images,
    data: DataConfig,
    plan: ComputePlan,
    form: GateForm | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[Evaluation, Tensor | None]:
    """Measure as `evaluate`, and return which images the network classifies rightly, (N,) bool.

    None of those of a stream, which have no places.
    """
    device, processes = plan.device, plan.processes
    counter = _GateCounter(model, data, device) if isinstance(model, GatedModel) else None
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # images, loss, wrong, wrong of 5
    right = None if isinstance(images, HubStream) else torch.zeros(len(images), device=device)
    for index, pixels, labels in evaluation_batches(images, data, batch_size, plan.loading):
        batch = normalise(pixels, data.mean, data.std)
        if isinstance(model, GatedModel) and counter is not None:
            keys = sample_keys(0, Purpose.NETWORK, 0, index)
            logits, decision = model.evaluate(batch, form, keys)
            counter.add(decision)
        else:
            logits = model(batch)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hit = top == labels[:, None]
        wrong, wrong5 = (~hit[:, 0]).sum(), (~hit.any(dim=1)).sum()
        sums += torch.stack((loss.new_tensor(len(labels)), loss, wrong, wrong5))
        if right is not None:
            right[index] = hit[:, 0].float()
    count, total_loss, wrong_images, wrong5_images = processes.total(sums).tolist()
    evaluation = Evaluation(
        images=int(count),
        loss=total_loss / count,
        error_percent=100 * wrong_images / count,
        top5_error_percent=100 * wrong5_images / count,
        form=form or (model.binarizer.form if isinstance(model, GatedModel) else None),
        gates=counter.use(int(count), processes) if counter else None,
    )
    return evaluation, None if right is None else processes.total(right).bool().cpu()
