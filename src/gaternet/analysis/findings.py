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
    mutual_information,
    similar_classes,
    special_gates,
)
from gaternet.analysis.embedding import Embedding
from gaternet.analysis.macs import CostByOutcome, compare_costs, needed_macs
from gaternet.analysis.probes import Probes, probe, why_no_probes
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
MOST_CLASSES = 2000
"""With more classes they are not compared in pairs."""


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates per image, who decides included.

    uncounted: operations that cost something and are in none of the figures
    """

    backbone: int
    mean: float
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
    subject: Subject, record: SplitRecord, counter: MacCounter, measured: Measured
) -> Findings:
    """Find out all that a record tells."""
    gates, embedding, other = record.gates, measured.embedding, measured.other
    missing = dict(measured.missing)
    no_probes = why_no_probes(record)
    if no_probes:
        missing["probes"] = no_probes
    few = len(record.classes) <= MOST_CLASSES
    if not few:
        missing["similar"] = f"more than {MOST_CLASSES:,} classes"
    return Findings(
        **vars(subject),
        images=len(record),
        accuracy=float(record.right.mean()),
        kinds=count_kinds(gates),
        rates=_rate_histogram(record),
        open_gates=summarise_open_gates(gates),
        distinct=len(distinct_vectors(gates.bits)),
        layers=layer_table(gates),
        information=_information(record),
        informative=informative_gates(record),
        special=special_gates(record),
        similar=similar_classes(record) if few else pd.DataFrame(),
        costs=_costs(record, counter, needed_macs(counter, gates)),
        probes=None if no_probes else probe(record),
        swaps=measured.swaps,
        against=measured.against,
        agreement=compare_rates(gates, other.gates) if other else None,
        components=embedding.components if embedding else None,
        explained=embedding.explained if embedding else None,
        missing=missing,
    )


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


def _rate_histogram(record: SplitRecord) -> tuple[int, ...]:
    rates = record.gates.open_counts()[record.gates.dependent()] / len(record)
    return tuple(np.histogram(rates, RATE_BINS, (0, 1))[0].tolist())


def _information(record: SplitRecord) -> Information:
    found = mutual_information(record)
    return Information(float(found.mean()), float(found.max()), chance_information(record))


def _costs(record: SplitRecord, counter: MacCounter, macs: NDArray[np.float64]) -> Costs:
    return Costs(
        counter.backbone_macs,
        float(macs.mean()),
        compare_costs(record, macs),
        counter.uncounted,
    )
