"""Evaluation mode for as long as a function runs."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def in_evaluation_mode(
    function: Callable[Concatenate[Model, Rest], Result],
) -> Callable[Concatenate[Model, Rest], Result]:
    """Return `function` such that its first argument, `model`, is in evaluation mode meanwhile.

    Afterwards every module of it has its own mode again, also where the function raised.
    """

    @wraps(function)
    def evaluated(model: Model, *arguments: Rest.args, **named: Rest.kwargs) -> Result:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            return function(model, *arguments, **named)
        finally:
            # `train` would give all of them the same one.
            for module, training in modes:
                module.training = training

    return evaluated
