"""What the gates do over a set of images."""

from gaternet.analysis.macs import LayerNeed, MacReport, report_macs
from gaternet.analysis.record import GateRecord, LayerUse, collect

__all__ = [
    "GateRecord",
    "LayerNeed",
    "LayerUse",
    "MacReport",
    "collect",
    "report_macs",
]
