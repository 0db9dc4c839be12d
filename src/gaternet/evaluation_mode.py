"""Evaluation mode for as long as a function runs, with the same products on every device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


@contextmanager
def exact_products() -> Iterator[None]:
    """Let a GPU's convs multiply float32 as it is; by default they round to TF32 first.

    That moves a gate's logit by a thousandth, and gates near the threshold with it.
    """
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


def in_evaluation_mode(
    function: Callable[Concatenate[Model, Rest], Result],
) -> Callable[Concatenate[Model, Rest], Result]:
    """Return `function` such that its first argument, `model`, is in evaluation mode meanwhile.

    Products are exact (`exact_products`). Afterwards every module of it has its own mode again,
    also where the function raised.
    """

    @wraps(function)
    def evaluated(model: Model, *arguments: Rest.args, **named: Rest.kwargs) -> Result:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with exact_products():
                return function(model, *arguments, **named)
        finally:
            # `train` would give all of them the same one.
            for module, training in modes:
                module.training = training

    return evaluated
