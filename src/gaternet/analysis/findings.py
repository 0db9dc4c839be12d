"""All that is found out about a run's gates on a split, as plain numbers and small tables."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gaternet.accounting import MacCounter
from gaternet.analysis.agreement import Agreement, compare_rates
from gaternet.analysis.classes import (
    chance_information,
    informative_gates,
    similar_classes,
    special_gates,
)
from gaternet.analysis.derived import Derived
from gaternet.analysis.embedding import Embedding
from gaternet.analysis.macs import CostByOutcome, compare_costs
from gaternet.analysis.missing import what_is_missing
from gaternet.analysis.probes import Probes, probe
from gaternet.analysis.record import GateRecord
from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import (
    KindCounts,
    OpenGates,
    count_kinds,
    distinct_vectors,
    layer_table,
    summarise_open_gates,
)
from gaternet.analysis.swaps import Swap
from gaternet.output import json_text

RATE_BINS = 20


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates per image, who decides included.

    deviation: standard deviation over images
    uncounted: operations that cost something and are in none of the figures
    """

    backbone: int
    mean: float
    deviation: float
    by_outcome: CostByOutcome
    uncounted: dict[str, int]


@dataclass(frozen=True)
class Information:
    """What gates tell of the class, in bits, mean and most of all gates.

    chance: what a gate that is independent of the class shows, about, for so many images
    """

    mean: float
    most: float
    chance: float


@dataclass(frozen=True)
class Findings:
    """What `gaternet analyze` finds on the images of a split.

    accuracy: share of the images that the model classifies rightly
    rates: input-dependent gates by their opening rate, in 20 bins from 0 to 1 (Figure 3)
    distinct: different gate vectors that occur
    components, explained: of the embedding, see `Embedding`; None where there is none
    missing: what was not found out, and why
    """

    run: str
    recipe: str
    data: str
    split: str
    images: int
    accuracy: float
    kinds: KindCounts
    rates: tuple[int, ...]
    open_gates: OpenGates
    distinct: int
    layers: pd.DataFrame
    information: Information
    informative: pd.DataFrame
    special: pd.DataFrame
    similar: pd.DataFrame
    costs: Costs
    probes: Probes | None
    swaps: tuple[Swap, ...]
    against: str | None
    agreement: Agreement | None
    components: int | None
    explained: float | None
    missing: dict[str, str]


@dataclass(frozen=True)
class Subject:
    """What is analyzed: a run's name, its recipe, its data and the split of it."""

    run: str
    recipe: str
    data: str
    split: str


@dataclass(frozen=True)
class Measured:
    """What takes the model or much time, beside the record itself.

    missing: what was left out, and why
    """

    swaps: tuple[Swap, ...]
    embedding: Embedding | None
    against: str | None
    other: SplitRecord | None
    missing: Mapping[str, str]


def find(
    subject: Subject,
    record: SplitRecord,
    derived: Derived,
    counter: MacCounter,
    measured: Measured,
) -> Findings:
    """Find out all that a record tells."""
    gates, embedding, other = record.gates, measured.embedding, measured.other
    opened, costs = summarise_open_gates(gates), _costs(record, counter, derived.macs)
    missing = dict(measured.missing) | dict(what_is_missing(record, opened, costs.by_outcome))
    agreement, information = derived.agreement, derived.information
    return Findings(
        **vars(subject),
        images=len(record),
        accuracy=float(record.right.mean()),
        kinds=count_kinds(gates),
        rates=rate_histogram(gates),
        open_gates=opened,
        distinct=len(distinct_vectors(gates.bits)),
        layers=layer_table(gates),
        information=Information(
            float(information.mean()), float(information.max()), chance_information(record)
        ),
        informative=informative_gates(record, information=information),
        special=special_gates(record),
        similar=(
            pd.DataFrame() if agreement is None else similar_classes(record, agreement=agreement)
        ),
        costs=costs,
        probes=None if "probes" in missing else probe(record),
        swaps=measured.swaps,
        against=measured.against,
        agreement=compare_rates(gates, other.gates) if other else None,
        components=embedding.components if embedding else None,
        explained=embedding.explained if embedding else None,
        missing=missing,
    )


def rate_histogram(gates: GateRecord) -> tuple[int, ...]:
    """Count the input-dependent gates by their opening rate, in 20 bins from 0 to 1 (Figure 3)."""
    counts = gates.open_counts()[gates.dependent()]
    # In whole numbers: a rate of 0.15 would fall below the edge of its bin.
    return tuple(np.bincount(counts * RATE_BINS // len(gates), minlength=RATE_BINS).tolist())


def to_json(found: Findings) -> str:
    """Return findings as JSON; a table is a list of rows."""
    return json_text(_plain(found))


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return value.to_dict("records")
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _costs(record: SplitRecord, counter: MacCounter, macs: NDArray[np.float64]) -> Costs:
    return Costs(
        counter.backbone_macs,
        float(macs.mean()),
        float(macs.std()),
        compare_costs(record, macs),
        counter.uncounted,
    )
