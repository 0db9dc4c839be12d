"""A model is left as it was found by all that look at it in evaluation mode."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gaternet.analysis import collect, labelled_batches, observe, swap_gates
from gaternet.data.batches import Batch, Loading
from gaternet.data.settings import DIGITS
from gaternet.evaluation_mode import in_evaluation_mode
from gaternet.model import GaterNet
from gaternet.training.evaluation import evaluate
from gaternet.verification import verify
from small_runs import PLAIN, cpu_plan, few_digits, tiny_gated

CLASSES = tuple("0123456789")


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def batches() -> list[Batch]:
    return list(labelled_batches(few_digits(20), DIGITS, Loading(torch.device("cpu"))))


LOOKS: dict[str, Callable[[GaterNet], object]] = {
    "collect": lambda model: collect(model, [batch.images for batch in batches()]),
    "observe": lambda model: observe(model, batches(), CLASSES),
    "swap_gates": lambda model: swap_gates(model, batches(), observe(model, batches(), CLASSES)),
    "evaluate": lambda model: evaluate(model, few_digits(20), DIGITS, cpu_plan(PLAIN)),
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_module_keeps_its_mode(look: str) -> None:
    model = tiny_gated().train()
    model.backbone.eval()
    before = modes(model)
    assert len(set(before.values())) == 2
    LOOKS[look](model)
    assert modes(model) == before


def test_also_where_something_goes_wrong() -> None:
    model = tiny_gated().train()
    model.gater.eval()
    before = modes(model)
    record = observe(model, batches(), CLASSES)
    wrong = [batch._replace(labels=batch.labels + 1) for batch in batches()]
    with pytest.raises(ValueError, match="other labels"):
        swap_gates(model, wrong, record)
    assert modes(model) == before


def test_meanwhile_it_is_evaluated() -> None:
    @in_evaluation_mode
    def meanwhile(model: nn.Module, *, times: int) -> list[bool]:
        return [any(modes(model).values())] * times

    assert meanwhile(tiny_gated().train(), times=2) == [False, False]
    assert meanwhile.__name__ == "meanwhile"


def test_meanwhile_products_are_exact() -> None:
    """PyTorch's default on a GPU rounds what convs multiply; it can be read without one."""
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    seen = []
    model = tiny_gated()
    model.backbone.register_forward_pre_hook(lambda *_: seen.append(conv.fp32_precision))
    before = conv.fp32_precision
    assert before == "tf32"
    for look in LOOKS.values():
        look(model)
    verify(model.eval(), model, torch.randn(2, 1, 8, 8))
    assert set(seen) == {"ieee"}
    assert conv.fp32_precision == before
