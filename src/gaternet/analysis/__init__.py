"""What the gates do over a set of images."""

from gaternet.analysis.record import GateRecord, LayerUse, collect

__all__ = ["GateRecord", "LayerUse", "collect"]
