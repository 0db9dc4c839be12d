"""One trace of a backbone: operations, shapes, submodules and their outputs, multiply-accumulates.

Everything that has to know how a backbone is built (gate points, costs, compression, the runtime)
reads the `Graph` made here; nothing analyses the network a second time.
"""

import operator
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.parallel import DistributedDataParallel

from gaternet.errors import UserError
from gaternet.tracing import BATCH, BackboneTracer, Facts


@dataclass(frozen=True, eq=False)
class Graph:
    """What a backbone does in evaluation mode, found without running it.

    fx: its operations in their order of execution. A submodule of PyTorch's own, a conv, a linear
        layer or a norm is one `call_module` node. Sizes of tensors are operations too, so the
        batch size stays open; a size that Python itself needs, `range(x.shape[0])`, is fixed.
    modules: its submodules by name, with the backbone's settings and parameters without values.
    outputs: for each submodule, what each of its calls returned; None for what is not one tensor.
    macs: multiply-accumulates per image by layer, of convs, linear layers and matrix products;
        biases are not counted.
    uncounted: operations that cost something and are not in `macs`: "layer: operation" → calls.
    input_size: (C, H, W) of the image that it was traced with.
    """

    fx: torch.fx.Graph
    modules: Mapping[str, nn.Module]
    outputs: Mapping[str, tuple[Node | None, ...]]
    macs: Mapping[str, int]
    uncounted: Mapping[str, int]
    input_size: tuple[int, int, int]

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates per image of all layers that are counted."""
        return sum(self.macs.values())

    def module(self, node: Node) -> nn.Module | None:
        """The submodule that a node calls, None for a function or a method."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def names(self, node: Node) -> tuple[str, ...]:
        """The submodules whose output a node is, innermost first."""
        return tuple(_facts(node).names)

    def layer(self, node: Node) -> str:
        """The innermost submodule in whose forward a node runs, "" for the backbone itself."""
        return _facts(node).layer

    def shape(self, node: Node) -> tuple[int, ...] | None:
        """The shape of a node's tensor for `BATCH` images, None if it is not one tensor."""
        return node.meta["shape"]

    def node_macs(self, node: Node) -> int:
        """Multiply-accumulates per image of one operation, 0 for what is not counted."""
        return _facts(node).macs // BATCH

    def is_identity(self, node: Node) -> bool:
        """Whether a node hands on one of its inputs as it is (drop path in evaluation)."""
        return _facts(node).is_identity

    def works_in_place(self, node: Node) -> bool:
        """Whether a node overwrites one of its inputs."""
        return _facts(node).works_in_place

    def is_learned(self, node: Node) -> bool:
        """Whether a node is a parameter or is computed with one."""
        return node.meta["is_learned"]

    def inputs(self, node: Node) -> list[Node]:
        """The tensors that a node reads and that depend on the images: no parameters, no sizes."""
        return [given for given in node.all_input_nodes if given.meta["is_feature"]]

    def readers(self, node: Node) -> list[Node]:
        """The operations that read the values of a node's tensor, not only its size."""
        return [user for user in node.users if user.op == "output" or user.meta["holds_tensor"]]

    def order(self, node: Node) -> int:
        """The position of a node in the order of execution."""
        return node.meta["order"]

    def precedes(self, first: Node, second: Node) -> bool:
        """Whether the second node is the first or is computed from it."""
        return bool(second.meta["ancestors"] >> self.order(first) & 1)

    def common_ancestors(self, nodes: Iterable[Node]) -> frozenset[Node]:
        """The nodes that precede all the given ones, a node counting as its own predecessor."""
        bits = reduce(operator.and_, (node.meta["ancestors"] for node in nodes))
        return frozenset(node for node in self.fx.nodes if bits >> self.order(node) & 1)


def trace(backbone: nn.Module, input_size: tuple[int, int, int] | None = None) -> Graph:
    """Trace a backbone in evaluation mode; it is not run and not changed.

    It may be of any size and lie on any device, the meta device too. Forward hooks are ignored.

    input_size: (C, H, W) of an image; by default the backbone's own `input_size`, else timm's
        `pretrained_cfg["input_size"]`

    Raises ValueError where no input size is known or the backbone is compiled or distributed,
    UserError for an operation that cannot be traced (the message names it).
    """
    _check_unwrapped(backbone)
    size = own_input_size(backbone) if input_size is None else checked_input_size(input_size)
    with torch.inference_mode(False):
        tracer = BackboneTracer(backbone, size)
        try:
            operations = tracer.trace(tracer.skeleton)
        except Exception as error:
            raise UserError(_explain(backbone, tracer, error)) from error
    _annotate(operations, tracer.skeleton)
    return Graph(
        fx=operations,
        modules=dict(tracer.skeleton.named_modules()),
        outputs={name: tuple(nodes) for name, nodes in tracer.outputs.items()},
        macs={name: macs // BATCH for name, macs in tracer.macs.items()},
        uncounted=dict(tracer.uncounted),
        input_size=size,
    )


def own_input_size(backbone: nn.Module) -> tuple[int, int, int]:
    """Return (C, H, W) as the backbone declares it; raise ValueError where it does not."""
    size = getattr(backbone, "input_size", None)
    if size is None:
        size = (getattr(backbone, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise ValueError(
            f"the input size of {type(backbone).__name__} is not known: "
            "give input_size=(channels, height, width)"
        )
    return checked_input_size(size, f"the input size that {type(backbone).__name__} declares")


def checked_input_size(size: Any, what: str = "input_size") -> tuple[int, int, int]:
    """Return (C, H, W); raise ValueError, which begins with `what`, for anything else."""
    lengths = tuple(size) if isinstance(size, Iterable) else (size,)
    if len(lengths) != 3 or any(not isinstance(n, Integral) or n < 1 for n in lengths):
        raise ValueError(f"{what} is {size!r}: give input_size=(channels, height, width)")
    channels, height, width = map(int, lengths)
    return channels, height, width


def _check_unwrapped(backbone: nn.Module) -> None:
    wrapped = isinstance(backbone, nn.DataParallel | DistributedDataParallel)
    if wrapped or hasattr(backbone, "_orig_mod"):  # torch.compile's
        raise ValueError(
            f"the backbone is wrapped, a {type(backbone).__name__}: gate the plain network, then "
            "compile or distribute the gated one"
        )


def _annotate(operations: torch.fx.Graph, skeleton: nn.Module) -> None:
    """Put what a reader of the graph asks for in place of the fake values."""
    learned = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    learned |= {name for name, module in skeleton.named_modules() if _has_parameters(module)}
    for order, node in enumerate(operations.nodes):
        facts: Facts = node.meta.setdefault("facts", Facts(None, ""))
        given = node.all_input_nodes
        holds_tensor = _holds_tensor(facts.value)
        # Not what is made from sizes alone, as positional encodings are.
        from_images = node.op == "placeholder" or any(n.meta["is_feature"] for n in given)
        is_learned = node.op in ("get_attr", "call_module") and node.target in learned
        node.meta |= {
            "order": order,
            "shape": tuple(facts.value.shape) if isinstance(facts.value, Tensor) else None,
            "holds_tensor": holds_tensor,
            "is_feature": holds_tensor and from_images,
            "is_learned": is_learned or any(n.meta["is_learned"] for n in given),
            "ancestors": reduce(operator.or_, (n.meta["ancestors"] for n in given), 1 << order),
        }
        facts.value = None


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _facts(node: Node) -> Facts:
    return node.meta["facts"]


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def _explain(backbone: nn.Module, tracer: BackboneTracer, error: Exception) -> str:
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent / "tracing.py"), __file__)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(own)]
    line = f" at {theirs[-1].filename}:{theirs[-1].lineno}, `{theirs[-1].line}`" if theirs else ""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{type(backbone).__name__} cannot be traced{line}, after {tracer.current}, with images "
        f"of size {tracer.input_size}: {reason}. If the size is wrong, give input_size; "
        "otherwise put that line into a function at the top level of a file and mark it with "
        "torch.fx.wrap, or, if it depends on values, make it a torch.library.custom_op with "
        "register_fake: the trace takes it as one operation"
    )
