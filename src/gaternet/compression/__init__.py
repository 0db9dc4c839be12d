"""Filters that never open leave the network for good; gates that never close leave the gater."""

from gaternet.compression.apply import apply, compress, one_mask
from gaternet.compression.network import CompressedBackbone, backbone_of
from gaternet.compression.plan import (
    CompressionPlan,
    PointPlan,
    fingerprint,
    plan,
    read_plan,
    write_plan,
)
from gaternet.compression.report import Masked

__all__ = [
    "CompressedBackbone",
    "CompressionPlan",
    "Masked",
    "PointPlan",
    "apply",
    "backbone_of",
    "compress",
    "fingerprint",
    "one_mask",
    "plan",
    "read_plan",
    "write_plan",
]
