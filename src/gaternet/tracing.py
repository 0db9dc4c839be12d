"""How a backbone is traced: fx records its operations, fake tensors give each its value.

Values make shape-dependent Python work (`if x.shape[-1] > 7`, `b, c, h, w = x.shape`, asserts)
and cost next to nothing: nothing is computed, whatever the size of the backbone.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import Attribute
from torch.nn.modules.conv import _ConvNd

from gaternet.macs import NORMS, module_macs, operation_macs

BATCH = 2
"""Images in the traced batch: not 1, so that nothing broadcasts over it by accident."""

# Seen as one operation, subclasses too: a weight-standardised conv is a conv.
_WHOLE = (_ConvNd, nn.Linear, *NORMS)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(slots=True)
class Facts:
    """What is known of a node; `Graph` tells what each means."""

    value: Any
    layer: str
    is_identity: bool = False
    works_in_place: bool = False
    macs: int = 0
    names: list[str] = field(default_factory=list)


def skeleton_of(backbone: nn.Module, fake_mode: FakeTensorMode) -> nn.Module:
    """A copy of a backbone in evaluation mode, with fake tensors and without hooks."""
    memo: dict[int, Any] = {}
    for module in backbone.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            memo[id(hooks)] = type(hooks)()
        own = (module._parameters, module._buffers, vars(module))
        for tensor in (value for place in own for value in place.values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _fake(tensor, fake_mode)
    skeleton = copy.deepcopy(backbone, memo).eval()
    for module in skeleton.modules():
        if hasattr(module, "grad_checkpointing"):  # timm's: it computes the same
            vars(module)["grad_checkpointing"] = False
    return skeleton


def _fake(tensor: Tensor, fake_mode: FakeTensorMode) -> Tensor:
    # On the fake CPU, wherever the backbone lies: constants made in its forward lie there too.
    with fake_mode:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


class _Proxy(fx.Proxy):
    """A node while it is traced, with its value: tensors are fake, sizes and flags real."""

    @property
    def value(self) -> Any:
        return self.node.meta["facts"].value

    def __getattr__(self, name: str) -> Any:
        # A method is recorded when it is called; any other attribute has a value at once.
        value = getattr(self.value, name)
        if callable(value):
            return Attribute(self, name)
        if isinstance(value, str):  # x.device.type, which Python itself needs
            return value
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("a trace does not record that a part of a tensor is assigned to")

    def __len__(self) -> int:
        return len(self.value)

    def __index__(self) -> int:
        return _known(self.value).__index__()

    def __int__(self) -> int:
        return int(_known(self.value))

    def __float__(self) -> float:
        return float(_known(self.value))


def _known(value: Any) -> Any:
    if isinstance(value, Tensor):
        raise TypeError("Python asks for the values of a tensor, which are not known in a trace")
    return value


class BackboneTracer(fx.Tracer):
    """Records the operations of a backbone's skeleton on one batch of images."""

    def __init__(self, backbone: nn.Module, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.skeleton = skeleton_of(backbone, self.fake_mode)
        self.input_size = input_size
        self.evaluating = False
        self.current = "the images"
        self.macs: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.outputs: dict[str, list[fx.Node | None]] = {
            name: [] for name, _ in self.skeleton.named_modules() if name
        }

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        # Only the images: every other argument of the forward keeps its default.
        return root_fn, [self.skeleton, self.create_proxy("placeholder", "images", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith(("torch.nn.", "torch.ao.nn."))
        return (own and not isinstance(m, _CONTAINERS)) or isinstance(m, _WHOLE)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        if any(result is given for given in (*args, *kwargs.values())) and _is_tensor(result):
            # A module that returns what it was given (drop path, an empty Sequential) gets a node
            # of its own: a hook on it is not a hook on whatever made its input.
            result = self.create_proxy("call_module", name, args, kwargs)
        if _is_tensor(result):
            result.node.meta["facts"].names.append(name)
        self.outputs[name].append(result.node if _is_tensor(result) else None)
        return result

    def proxy(self, node: fx.Node) -> _Proxy:
        self.evaluating = True  # calls and attributes of modules are then not recorded
        try:
            with self.fake_mode, torch.no_grad():
                self._evaluate(node)
        finally:
            self.evaluating = False
        return _Proxy(node, self)

    def to_bool(self, obj: Any) -> bool:
        return bool(_known(obj.value))

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[i] for i in range(len(obj.value))])

    def _evaluate(self, node: fx.Node) -> None:
        layer = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        self.current = f"`{node.target}` in `{layer}`" if layer else f"`{node.target}`"
        args = fx.node.map_arg(node.args, self._value)
        kwargs = fx.node.map_arg(node.kwargs, self._value)
        given = [self._value(source) for source in node.all_input_nodes]
        tensors = [value for value in given if isinstance(value, Tensor)]
        versions = [tensor._version for tensor in tensors]
        value = self._run(node, args, kwargs)
        facts = Facts(value, layer)
        facts.works_in_place = versions != [tensor._version for tensor in tensors]
        facts.is_identity = not facts.works_in_place and any(value is t for t in tensors)
        node.meta["facts"] = facts
        if not facts.is_identity:
            self._count(node, facts, args, kwargs)

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        match node.op:
            case "placeholder":
                dtypes = (p.dtype for p in self.skeleton.parameters() if p.is_floating_point())
                dtype = next(dtypes, torch.float32)
                return torch.empty(BATCH, *self.input_size, dtype=dtype, device="cpu")
            case "get_attr":
                return self._attribute(node)
            case "call_module":
                layer = self.skeleton.get_submodule(str(node.target))
                if type(layer) is nn.BatchNorm2d:
                    # As evaluation has it. On fake tensors it takes longer than all the rest.
                    return torch.empty_like(args[0] if args else kwargs["input"])
                return layer.forward(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _attribute(self, node: fx.Node) -> Any:
        owner, _, name = str(node.target).rpartition(".")
        return getattr(self.skeleton.get_submodule(owner), name)

    def _value(self, node: fx.Node) -> Any:
        if "facts" not in node.meta:  # a constant: fx makes its node without a proxy
            node.meta["facts"] = Facts(self._attribute(node), "")
        return node.meta["facts"].value

    def _count(self, node: fx.Node, facts: Facts, args: Any, kwargs: Any) -> None:
        macs: int | None
        if node.op == "call_module":
            layer, name = self.skeleton.get_submodule(str(node.target)), str(node.target)
            image = next(iter((*args, *kwargs.values())), None)
            macs, operation = module_macs(layer, image, facts.value), type(layer).__name__
        elif node.op in ("call_function", "call_method"):
            macs = operation_macs(node.target, facts.value, args, kwargs)
            name = facts.layer or node.name
            operation = getattr(node.target, "__name__", str(node.target))
        else:
            return
        if macs is None:
            self.uncounted[f"{name}: {operation}"] += 1
        elif macs:
            facts.macs = macs
            self.macs[name] += macs


def _is_tensor(result: Any) -> bool:
    return isinstance(result, _Proxy) and isinstance(result.value, Tensor)
