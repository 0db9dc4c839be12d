"""What an operation of a traced backbone does to the channels that pass through it."""

from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from gaternet.graph import Graph

NORM_MODULES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
NORM_FUNCTIONS = frozenset(
    {"batch_norm", "group_norm", "layer_norm", "instance_norm", "rms_norm", "local_response_norm"}
)

# Activations that map 0 to 0; a Hardtanh does where its range holds 0.
ZERO_KEEPING_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Softsign,
)
OTHER_ACTIVATIONS = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, nn.Hardtanh)
ZERO_KEEPING_MODULES = (
    *ZERO_KEEPING_ACTIVATIONS,
    nn.Identity,
    _DropoutNd,
    nn.AlphaDropout,
    _AvgPoolNd,
    _MaxPoolNd,
    _LPPoolNd,
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _ReflectionPadNd,
    _ReplicationPadNd,
    nn.Upsample,
)
ZERO_KEEPING_FUNCTIONS = frozenset(
    ["relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh", "tanhshrink", "hardshrink", "softshrink", "softsign", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "drop_path", "avg_pool2d", "max_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "upsample", "permute", "transpose", "contiguous", "clone", "to", "float", "half", "bfloat16", "type_as", "detach", "neg", "abs", "sqrt", "square"]
)
OTHER_CHANNELWISE_FUNCTIONS = frozenset(
    {"add", "sub", "sigmoid", "hardsigmoid", "logsigmoid", "softplus", "hardtanh", "clamp", "exp"}
)
_FUNCTIONAL_CONVS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
_PRODUCTS = frozenset({"mul", "multiply"})
_QUOTIENTS = frozenset({"div", "divide", "truediv", "true_divide"})
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}


def operation(node: fx.Node) -> str:
    """The name of a function or method, the same for all its forms: add for +, +=, add_."""
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op != "call_function" or not callable(node.target):
        return ""
    name = node.target.__name__
    return _IN_PLACE.get(name, name.rstrip("_"))


def is_filter(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is a convolution or a linear layer with learned weights."""
    module = graph.module(node)
    if module is not None:
        return isinstance(module, _ConvNd | nn.Linear)
    if operation(node) not in _FUNCTIONAL_CONVS | {"linear"}:
        return False
    return graph.is_learned(_argument(node, 1, "weight"))


def is_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is a normalisation."""
    return isinstance(graph.module(node), NORM_MODULES) or operation(node) in NORM_FUNCTIONS


def is_activation(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is an element-wise activation, be it a module or a function."""
    classes = ZERO_KEEPING_ACTIVATIONS + OTHER_ACTIVATIONS
    if graph.module(node) is not None:
        return isinstance(graph.module(node), classes)
    return operation(node).replace("_", "") in {c.__name__.lower() for c in classes}


def is_addition(graph: Graph, node: fx.Node) -> bool:
    """Whether a node adds two or more feature maps of its own shape."""
    inputs = graph.inputs(node)
    return (
        operation(node) == "add"
        and len(inputs) > 1
        and len(graph.shape(node) or ()) == 4
        and all(graph.shape(operand) == graph.shape(node) for operand in inputs)
    )


def is_concatenation(graph: Graph, node: fx.Node) -> bool:
    """Whether a node concatenates feature maps (N, C, H, W) along their channels."""
    if operation(node) not in {"cat", "concat", "concatenate"}:
        return False
    shape = graph.shape(node) or ()
    return len(shape) == 4 and _argument(node, 1, "dim", _argument(node, 1, "axis", 0)) in (1, -3)


def keeps_zero(graph: Graph, node: fx.Node) -> bool:
    """Whether a channel that is 0 before a node is 0 after it, whatever the weights are."""
    module, name = graph.module(node), operation(node)
    if graph.is_identity(node) or isinstance(module, ZERO_KEEPING_MODULES):
        return True
    match module:
        case nn.Hardtanh():
            return module.min_val <= 0 <= module.max_val
        case _ConstantPadNd():
            return module.value == 0
    if name == "pad":
        return _argument(node, 2, "mode", "constant") != "constant" or not _argument(
            node, 3, "value", None
        )
    if name in _QUOTIENTS:
        return isinstance(node.args[0], fx.Node)
    return name in ZERO_KEEPING_FUNCTIONS | _PRODUCTS or _is_fixed_depthwise(graph, node)


def channel_input(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The input whose channels a node hands on one by one; None where it mixes channels.

    For a product it is the feature map, not what scales it (squeeze-and-excitation).
    """
    name, inputs = operation(node), graph.inputs(node)
    if not inputs or is_filter(graph, node):
        return None
    if name in _PRODUCTS | _QUOTIENTS:
        return _scaled(graph, node, inputs)
    channelwise = (
        keeps_zero(graph, node)
        or is_norm(graph, node)
        or isinstance(graph.module(node), OTHER_ACTIVATIONS + (_ConstantPadNd,))
        or name in OTHER_CHANNELWISE_FUNCTIONS | {"pad"}
    )
    return inputs[0] if channelwise and len(inputs) == 1 else None


def channel_dim(graph: Graph, node: fx.Node, before: int) -> int:
    """Where the channels are after a node: 1 in (N, C, H, W), 3 in (N, H, W, C)."""
    name, rank = operation(node), len(graph.shape(node) or ())
    dims: Any = node.args[1:]
    if name == "permute":
        dims = dims[0] if len(dims) == 1 else dims or node.kwargs["dims"]
        return [dim % rank for dim in dims].index(before)
    if name == "transpose":
        first, second = (dim % rank for dim in dims or node.kwargs.values())
        return {first: second, second: first}.get(before, before)
    return before


def own_channel_dim(graph: Graph, node: fx.Node) -> int:
    """Where a convolution or linear layer puts the channels of its output."""
    linear = isinstance(graph.module(node), nn.Linear) or operation(node) == "linear"
    return len(graph.shape(node) or ()) - 1 if linear else 1


def _scaled(graph: Graph, node: fx.Node, inputs: list[fx.Node]) -> fx.Node | None:
    whole = [operand for operand in inputs if graph.shape(operand) == graph.shape(node)]
    origins = [a for a in whole if all(a is b or graph.precedes(a, b) for b in inputs)]
    return next(iter(origins or whole), None)


def _is_fixed_depthwise(graph: Graph, node: fx.Node) -> bool:
    """A depthwise convolution with constant weights and no bias: blur pooling."""
    if operation(node) not in _FUNCTIONAL_CONVS or is_filter(graph, node):
        return False
    weight, output = graph.shape(_argument(node, 1, "weight")), graph.shape(node)
    depthwise = weight is not None and weight[:2] == ((output or (0, 0))[1], 1)
    return depthwise and _argument(node, 2, "bias") is None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
