"""What an operation of a traced backbone does to the channels that pass through it."""

from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.padding import (
    _CircularPadNd,
    _ConstantPadNd,
    _ReflectionPadNd,
    _ReplicationPadNd,
)
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from gaternet.graph import Graph
from gaternet.macs import NORMS

ZERO_KEEPING_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink),
    nn.Softsign,
)
# Hardtanh is here because its range may leave 0 out.
OTHER_ACTIVATIONS = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, nn.Hardtanh)
_ACTIVATIONS = ZERO_KEEPING_ACTIVATIONS + OTHER_ACTIVATIONS

_POOLS = (_AvgPoolNd, _MaxPoolNd, _LPPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_EDGE_PADS = (_ReflectionPadNd, _ReplicationPadNd, _CircularPadNd)
ZERO_KEEPING_MODULES = (
    *ZERO_KEEPING_ACTIVATIONS,
    *_POOLS,
    *_EDGE_PADS,
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Upsample),
)

# Functions and methods go by name, in-place forms too; their activations by the classes above.
_NORM_FUNCTIONS = frozenset({"batch_norm", "group_norm", "layer_norm", "instance_norm", "rms_norm"})
_NORMS_APART = frozenset({"batch_norm", "instance_norm"})
_POOL_FUNCTIONS = frozenset(
    {"avg_pool2d", "max_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
)
# Not alpha dropout: in training it maps 0 to a constant.
_DROP_FUNCTIONS = frozenset({"dropout", "dropout2d"})
_LAYOUT_FUNCTIONS = frozenset({"permute", "transpose", "contiguous", "interpolate"})
_COPY_FUNCTIONS = frozenset({"clone", "to", "float", "half", "bfloat16", "type_as", "detach"})
_PRODUCTS = frozenset({"mul", "multiply"})
_QUOTIENTS = frozenset({"div", "divide", "truediv", "true_divide"})
_OFFSETS = frozenset({"add", "sub"})
ZERO_KEEPING_FUNCTIONS = (
    _POOL_FUNCTIONS | _DROP_FUNCTIONS | _LAYOUT_FUNCTIONS | _COPY_FUNCTIONS | _PRODUCTS | {"neg"}
)
_CONV_FUNCTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
_PARTITIONS = frozenset({"chunk", "split", "tensor_split"})

# They hand on slices, sums or means of their input, its dimensions where they were.
_SAME_LAYOUT = _CONCATENATIONS | _OFFSETS | {"getitem", "roll", "flip", "pad", "mean", "amax"}
_ON_LAST_DIM = frozenset({"linear", "layer_norm", "rms_norm"})
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
    has_weight = operation(node) in _CONV_FUNCTIONS | {"linear"}
    return has_weight and graph.is_learned(_argument(node, 1, "weight"))


def is_depthwise(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is a convolution that makes each channel from one of its own."""
    module = graph.module(node)
    return (
        isinstance(module, _ConvNd)
        and not isinstance(module, _ConvTransposeNd)
        and module.groups == module.in_channels == module.out_channels > 1
    )


def is_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is a normalisation."""
    return (
        isinstance(graph.module(node), (*NORMS, nn.LocalResponseNorm))
        or operation(node) in _NORM_FUNCTIONS
    )


def shares_statistics(graph: Graph, node: fx.Node) -> bool:
    """Whether a node normalises each channel by what is in other channels, as GroupNorm does, or
    by what is in other images, as BatchNorm does that keeps no statistics.
    """
    module = graph.module(node)
    if is_batch_dependent(module):
        return True
    apart = isinstance(module, _NormBase) or operation(node) in _NORMS_APART
    return is_norm(graph, node) and not apart


def is_batch_dependent(module: nn.Module | None) -> bool:
    """Whether in evaluation what a module makes of an image depends on the rest of the batch."""
    return isinstance(module, _BatchNorm) and module.running_var is None


def is_activation(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is an element-wise activation, be it a module or a function."""
    return _is_one_of(_ACTIVATIONS, graph, node)


def is_addition(graph: Graph, node: fx.Node) -> bool:
    """Whether a node adds two or more feature maps of its own shape."""
    return _is_sum(graph, node, rank=4)


def is_concatenation(graph: Graph, node: fx.Node) -> bool:
    """Whether a node concatenates feature maps (N, C, H, W) along their channels."""
    if operation(node) not in _CONCATENATIONS or len(graph.shape(node) or ()) != 4:
        return False
    return _argument(node, 1, "dim", node.kwargs.get("axis", 0)) in (1, -3)


def keeps_zero(graph: Graph, node: fx.Node) -> bool:
    """Whether a channel that is 0 before a node is 0 after it, whatever the weights are."""
    module, name, features = graph.module(node), operation(node), graph.inputs(node)
    if graph.is_identity(node) or isinstance(module, ZERO_KEEPING_MODULES):
        return True
    if name in ZERO_KEEPING_FUNCTIONS or _is_one_of(ZERO_KEEPING_ACTIVATIONS, graph, node):
        return True
    if isinstance(module, nn.Hardtanh):
        return module.min_val <= 0 <= module.max_val
    if isinstance(module, _ConstantPadNd):
        return module.value == 0
    if name == "pad":
        return _argument(node, 2, "mode", "constant") != "constant" or not _argument(
            node, 3, "value"
        )
    if name in _OFFSETS:  # sum() begins with 0
        terms = (*node.args, node.kwargs.get("other", 0))
        return all(term in features if isinstance(term, fx.Node) else term == 0 for term in terms)
    if name in _QUOTIENTS:
        return isinstance(node.args[0], fx.Node)
    return _is_fixed_depthwise(graph, node)


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
        or is_activation(graph, node)
        or isinstance(graph.module(node), _ConstantPadNd)
        or name in _OFFSETS | {"pad", "clamp"}
    )
    return inputs[0] if channelwise and len(inputs) == 1 else None


def sliced_input(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The feature map (N, C, H, W) of which a node is a range of channels: x[:, :8], a chunk."""
    if operation(node) != "getitem" or len(graph.shape(node) or ()) != 4:
        return None
    source, index = next(iter(graph.inputs(node)), None), node.args[1]
    if source is not None and operation(source) in _PARTITIONS:
        along = _argument(source, 2, "dim", 0)
        return graph.inputs(source)[0] if along in (1, -3) else None
    if not isinstance(index, tuple) or len(index) < 2:
        return None
    others = (*index[:1], *index[2:])
    return source if all(part == slice(None) for part in others) else None


def is_unsqueezed(graph: Graph, node: fx.Node) -> bool:
    """Whether a node makes features (N, C) into a feature map (N, C, 1, 1)."""
    inputs = graph.inputs(node)
    before = graph.shape(inputs[0]) if len(inputs) == 1 else None
    return before is not None and len(before) == 2 and graph.shape(node) == (*before, 1, 1)


def is_token_sum(graph: Graph, node: fx.Node) -> bool:
    """Whether a node adds two or more sequences of tokens (N, L, C) of its own shape."""
    return _is_sum(graph, node, rank=3)


def channel_dim(graph: Graph, node: fx.Node) -> int | None:
    """Where the channels of a node are: 1 in (N, C, H, W), 3 in (N, H, W, C); None if unknown.

    A conv makes dimension 1, a linear layer and a plain LayerNorm work on the last one.
    """
    path = [node]
    while (source := _layout_source(graph, path[-1])) is not None:
        path.append(source)
    dim = _made_dim(graph, path.pop())
    while path and dim is not None:
        dim = _permuted(graph, path.pop(), dim)
    return dim


def _is_sum(graph: Graph, node: fx.Node, rank: int) -> bool:
    inputs, shape = graph.inputs(node), graph.shape(node) or ()
    same = all(graph.shape(operand) == shape for operand in inputs)
    return operation(node) == "add" and len(inputs) > 1 and len(shape) == rank and same


def _layout_source(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The input whose layout of dimensions a node keeps or permutes."""
    if _made_dim(graph, node) is not None:
        return None
    source = channel_input(graph, node)
    if source is None and operation(node) in _SAME_LAYOUT:
        source = next(iter(graph.inputs(node)), None)
    same_rank = source and len(graph.shape(source) or ()) == len(graph.shape(node) or ())
    return source if same_rank else None


def _made_dim(graph: Graph, node: fx.Node) -> int | None:
    module, name = graph.module(node), operation(node)
    last = len(graph.shape(node) or ()) - 1
    if node.op == "placeholder" or isinstance(module, _ConvNd) or name in _CONV_FUNCTIONS:
        return 1
    if type(module) in (nn.Linear, nn.LayerNorm, nn.RMSNorm) or name in _ON_LAST_DIM:
        return last
    return 1 if is_unsqueezed(graph, node) else None


def _permuted(graph: Graph, node: fx.Node, before: int) -> int:
    name, rank = operation(node), len(graph.shape(node) or ())
    given: Any = node.args[1:] or tuple(node.kwargs.values())
    if name == "permute":
        order = given[0] if len(given) == 1 else given
        return [dim % rank for dim in order].index(before)
    if name == "transpose":
        first, second = (dim % rank for dim in given)
        return {first: second, second: first}.get(before, before)
    return before


def _scaled(graph: Graph, node: fx.Node, inputs: list[fx.Node]) -> fx.Node | None:
    whole = [operand for operand in inputs if graph.shape(operand) == graph.shape(node)]
    origins = [a for a in whole if all(a is b or graph.precedes(a, b) for b in inputs)]
    return next(iter(origins or whole), None)


def _is_fixed_depthwise(graph: Graph, node: fx.Node) -> bool:
    """A depthwise convolution with constant weights and no bias: blur pooling."""
    if operation(node) not in _CONV_FUNCTIONS or is_filter(graph, node):
        return False
    weight, output = graph.shape(_argument(node, 1, "weight")), graph.shape(node)
    depthwise = weight is not None and weight[:2] == ((output or (0, 0))[1], 1)
    return depthwise and _argument(node, 2, "bias") is None


def _is_one_of(activations: tuple[type[nn.Module], ...], graph: Graph, node: fx.Node) -> bool:
    if graph.module(node) is not None:
        return isinstance(graph.module(node), activations)
    # leaky_relu is LeakyReLU
    return operation(node).replace("_", "") in {cls.__name__.lower() for cls in activations}


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
