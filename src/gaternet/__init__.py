"""CNNs that choose their filters per input."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaternet.accounting import MacCounter, count_macs
    from gaternet.binarizers import Binarizer, GateForm, ImprovedSemHash
    from gaternet.compression import compress
    from gaternet.errors import UserError
    from gaternet.gate_points import GatePoint, detach, find_gate_points, name_gate_points
    from gaternet.gater import Gater
    from gaternet.graph import Graph, trace
    from gaternet.local import LocalGaterNet
    from gaternet.losses import budget_loss, gate_sparsity, gated_cross_entropy, rate_loss
    from gaternet.model import Decision, GatedModel, GaterNet, GaterNetOutput
    from gaternet.rivals import make_binarizer
    from gaternet.runtime.export import ExportError, ExportResult, export
    from gaternet.runtime.serving import Serving
    from gaternet.saved_models import load, save
    from gaternet.verification import Verification, verify

__all__ = [
    "Binarizer",
    "Decision",
    "ExportError",
    "ExportResult",
    "GateForm",
    "GatePoint",
    "GatedModel",
    "Gater",
    "GaterNet",
    "GaterNetOutput",
    "Graph",
    "ImprovedSemHash",
    "LocalGaterNet",
    "MacCounter",
    "Serving",
    "UserError",
    "Verification",
    "budget_loss",
    "compress",
    "count_macs",
    "detach",
    "export",
    "find_gate_points",
    "gate_sparsity",
    "gated_cross_entropy",
    "load",
    "make_binarizer",
    "name_gate_points",
    "rate_loss",
    "save",
    "trace",
    "verify",
]

# Where each public name lives: importing gaternet loads nothing, using a name loads its module.
_HOMES = {
    "Binarizer": "binarizers",
    "Decision": "model",
    "ExportError": "runtime.export",
    "ExportResult": "runtime.export",
    "GateForm": "binarizers",
    "GatePoint": "gate_points",
    "GatedModel": "model",
    "Gater": "gater",
    "GaterNet": "model",
    "GaterNetOutput": "model",
    "Graph": "graph",
    "ImprovedSemHash": "binarizers",
    "LocalGaterNet": "local",
    "MacCounter": "accounting",
    "Serving": "runtime.serving",
    "UserError": "errors",
    "Verification": "verification",
    "budget_loss": "losses",
    "compress": "compression",
    "count_macs": "accounting",
    "detach": "gate_points",
    "export": "runtime.export",
    "find_gate_points": "gate_points",
    "gate_sparsity": "losses",
    "gated_cross_entropy": "losses",
    "load": "saved_models",
    "make_binarizer": "rivals",
    "name_gate_points": "gate_points",
    "rate_loss": "losses",
    "save": "saved_models",
    "trace": "graph",
    "verify": "verification",
}


_SUBPACKAGES = ("analysis", "compression", "runtime")


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
