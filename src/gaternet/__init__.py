"""CNNs that choose their filters per input."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaternet.binarizers import GateForm, ImprovedSemHash
    from gaternet.checkpoint import load, save
    from gaternet.errors import UserError
    from gaternet.gate_points import GatePoint, find_gate_points, name_gate_points
    from gaternet.gater import Gater
    from gaternet.graph import Graph, trace
    from gaternet.losses import gate_sparsity, gated_cross_entropy
    from gaternet.model import GaterNet, GaterNetOutput
    from gaternet.verification import Verification, verify

__all__ = [
    "GateForm",
    "GatePoint",
    "Gater",
    "GaterNet",
    "GaterNetOutput",
    "Graph",
    "ImprovedSemHash",
    "UserError",
    "Verification",
    "find_gate_points",
    "gate_sparsity",
    "gated_cross_entropy",
    "load",
    "name_gate_points",
    "save",
    "trace",
    "verify",
]

# Where each public name lives: importing gaternet loads nothing, using a name loads its module.
_HOMES = {
    "GateForm": "binarizers",
    "GatePoint": "gate_points",
    "Gater": "gater",
    "GaterNet": "model",
    "GaterNetOutput": "model",
    "Graph": "graph",
    "ImprovedSemHash": "binarizers",
    "UserError": "errors",
    "Verification": "verification",
    "find_gate_points": "gate_points",
    "gate_sparsity": "losses",
    "gated_cross_entropy": "losses",
    "load": "checkpoint",
    "name_gate_points": "gate_points",
    "save": "checkpoint",
    "trace": "graph",
    "verify": "verification",
}


_SUBPACKAGES = ("analysis",)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
