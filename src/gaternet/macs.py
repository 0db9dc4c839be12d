"""Multiply-accumulates of one operation: convolutions, linear layers and matrix products."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

NORMS = (
    *(_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d),
)
"""Layers that normalise, timm's own too: what leaves them may be decided by other channels."""

Rule = Callable[[Tensor, Sequence[Any], Mapping[str, Any]], int]


def _convolution(weight: Tensor, output: Tensor) -> int:
    """Each output value sums (channels / groups) · kernel products; `weight` is (out, in/g, …)."""
    return output.numel() * weight[0].numel()


def _transposed(weight: Tensor, image: Tensor) -> int:
    """Each input value is spread over (out / groups) · kernel; `weight` is (in, out/g, …)."""
    return image.numel() * weight[0].numel()


def module_macs(layer: nn.Module, image: Any, output: Any) -> int | None:
    """Multiply-accumulates of one call of a layer; None where it is not known how to count.

    Norms and activations count 0: what is counted is convolutions, linear layers and matrix
    products, biases left out.
    """
    match layer:
        case _ConvTransposeNd():
            return _transposed(layer.weight, image)
        case _ConvNd():
            return _convolution(layer.weight, output)
        case nn.Linear():
            return output.numel() * layer.in_features
        case _ if isinstance(layer, NORMS):
            return 0
        case nn.PReLU() | nn.Embedding():
            return 0
    return 0 if next(layer.parameters(), None) is None else None


def _weight(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    return args[1] if len(args) > 1 else kwargs["weight"]


def _count_conv(output: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    return _convolution(_weight(args, kwargs), output)


def _count_transposed(output: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    return _transposed(_weight(args, kwargs), args[0] if args else kwargs["input"])


def _count_linear(output: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    return output.numel() * _weight(args, kwargs).shape[-1]


def _count_matmul(output: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    factor: Tensor = args[0] if args else kwargs["input"]
    return output.numel() * factor.shape[-1]


def _count_addmm(output: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """`addmm(bias, a, b)` and `baddbmm`."""
    return _count_matmul(output, args[1:], kwargs)


COUNTED: Mapping[Any, Rule] = {
    F.conv1d: _count_conv,
    F.conv2d: _count_conv,
    F.conv3d: _count_conv,
    F.conv_transpose1d: _count_transposed,
    F.conv_transpose2d: _count_transposed,
    F.conv_transpose3d: _count_transposed,
    F.linear: _count_linear,
    operator.matmul: _count_matmul,
    torch.matmul: _count_matmul,
    torch.mm: _count_matmul,
    torch.bmm: _count_matmul,
    torch.addmm: _count_addmm,
    torch.baddbmm: _count_addmm,
    "matmul": _count_matmul,
    "__matmul__": _count_matmul,
    "mm": _count_matmul,
    "bmm": _count_matmul,
    "addmm": _count_addmm,
    "baddbmm": _count_addmm,
}

# They multiply matrices, in forms that are not counted.
UNCOUNTED: frozenset[str] = frozenset(
    {
        "bilinear",
        "cdist",
        "chain_matmul",
        "dot",
        "einsum",
        "inner",
        "multi_head_attention_forward",
        "multi_dot",
        "mv",
        "outer",
        "scaled_dot_product_attention",
        "tensordot",
    }
)

_KNOWN = frozenset({"torch", "_operator", "math", "builtins"})


def operation_macs(
    target: Callable[..., Any] | str, output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int | None:
    """Multiply-accumulates of one function or tensor method; None where they are not known.

    A custom operator and a function that is neither PyTorch's nor Python's own (one marked with
    `torch.fx.wrap`) are not known.
    """
    if target in COUNTED:
        return COUNTED[target](output, args, kwargs)
    if isinstance(target, str):
        return None if target in UNCOUNTED else 0
    module = (getattr(target, "__module__", None) or "torch").split(".")[0]
    custom = module not in _KNOWN or isinstance(target, OpOverload | OpOverloadPacket)
    return None if custom or target.__name__ in UNCOUNTED else 0
