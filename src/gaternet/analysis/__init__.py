"""What the gates do over a set of images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaternet.analysis.agreement import Agreement, compare_kinds, compare_rates
    from gaternet.analysis.classes import (
        chance_information,
        class_agreement,
        class_layer_rates,
        class_rates,
        extreme_images,
        informative_gates,
        mutual_information,
        similar_classes,
        special_gates,
    )
    from gaternet.analysis.embedding import Components, Embedding, embed, principal_components
    from gaternet.analysis.macs import (
        CostByOutcome,
        LayerNeed,
        MacReport,
        compare_costs,
        needed_macs,
        report_macs,
    )
    from gaternet.analysis.probes import Probes, probe
    from gaternet.analysis.record import GateRecord, LayerUse, collect
    from gaternet.analysis.saved import read_record, write_record
    from gaternet.analysis.split_record import Extremes, SplitRecord, labelled_batches, observe
    from gaternet.analysis.statistics import (
        KindCounts,
        OpenGates,
        count_kinds,
        distinct_vectors,
        gate_table,
        layer_table,
        opening_rates,
        summarise_open_gates,
    )
    from gaternet.analysis.swaps import Swap, swap_gates

# Where each name lives: most of them need pandas, and whoever only records gates does not.
_HOMES = {
    "agreement": ("Agreement", "compare_kinds", "compare_rates"),
    "classes": (
        "chance_information",
        "class_agreement",
        "class_layer_rates",
        "class_rates",
        "extreme_images",
        "informative_gates",
        "mutual_information",
        "similar_classes",
        "special_gates",
    ),
    "embedding": ("Components", "Embedding", "embed", "principal_components"),
    "macs": (
        "CostByOutcome",
        "LayerNeed",
        "MacReport",
        "compare_costs",
        "needed_macs",
        "report_macs",
    ),
    "probes": ("Probes", "probe"),
    "record": ("GateRecord", "LayerUse", "collect"),
    "saved": ("read_record", "write_record"),
    "split_record": ("Extremes", "SplitRecord", "labelled_batches", "observe"),
    "statistics": (
        "KindCounts",
        "OpenGates",
        "count_kinds",
        "distinct_vectors",
        "gate_table",
        "layer_table",
        "opening_rates",
        "summarise_open_gates",
    ),
    "swaps": ("Swap", "swap_gates"),
}

__all__ = [
    "Agreement",
    "Components",
    "CostByOutcome",
    "Embedding",
    "Extremes",
    "GateRecord",
    "KindCounts",
    "LayerNeed",
    "LayerUse",
    "MacReport",
    "OpenGates",
    "Probes",
    "SplitRecord",
    "Swap",
    "chance_information",
    "class_agreement",
    "class_layer_rates",
    "class_rates",
    "collect",
    "compare_costs",
    "compare_kinds",
    "compare_rates",
    "count_kinds",
    "distinct_vectors",
    "embed",
    "extreme_images",
    "gate_table",
    "informative_gates",
    "labelled_batches",
    "layer_table",
    "mutual_information",
    "needed_macs",
    "observe",
    "opening_rates",
    "principal_components",
    "probe",
    "read_record",
    "report_macs",
    "similar_classes",
    "special_gates",
    "summarise_open_gates",
    "swap_gates",
    "write_record",
]

_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
