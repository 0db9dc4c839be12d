"""What the gates have to do with the classes.

Classes of which the split has no image are left out of tables; in arrays they are NaN.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gaternet.analysis.split_record import SplitRecord
from gaternet.analysis.statistics import binary_entropy, opening_rates

COLUMNS = 4096
"""Gates that are looked at at once."""


def mutual_information(record: SplitRecord) -> NDArray[np.float64]:
    """Return I(gate; class) = H(gate) − H(gate | class) of each gate, (G,), in bits.

    It is that of the shares observed, which is too high by `chance_information` on average for a
    gate that knows nothing of the class.
    """
    sizes = record.class_sizes
    present = np.flatnonzero(sizes)
    weights = sizes[present] / len(record)
    found = []
    for part in _column_parts(record):
        counts = record.class_counts[:, part][present]
        within = weights @ binary_entropy(counts / sizes[present, None])
        found.append(binary_entropy(counts.sum(axis=0) / len(record)) - within)
    return np.maximum(np.concatenate(found), 0.0)


def chance_information(record: SplitRecord) -> float:
    """Return what `mutual_information` gives for a gate independent of the class, about, in bits.

    (K − 1) / (2·N·ln 2), with K classes that occur (Miller and Madow, 1955).
    """
    classes = int((record.class_sizes > 0).sum())
    return (classes - 1) / (2 * len(record) * math.log(2))


def class_rates(record: SplitRecord) -> NDArray[np.float32]:
    """Return for what share of each class's images each gate is open, (K, G)."""
    sizes = record.class_sizes[:, None].astype(np.float32)
    sizes[sizes == 0] = np.nan
    return (record.class_counts / sizes).astype(np.float32)


def class_layer_rates(record: SplitRecord) -> pd.DataFrame:
    """Return what share of each layer's gates an image of each class opens, mean.

    A row for each class that occurs, a column for each layer.
    """
    sizes = record.class_sizes
    present = np.flatnonzero(sizes)
    counts = record.class_counts
    shares = {
        name: counts[present, columns].mean(axis=1) / sizes[present]
        for name, columns in record.gates.slices.items()
    }
    return pd.DataFrame(shares, index=[record.classes[k] for k in present])


def special_gates(record: SplitRecord, count: int = 5) -> pd.DataFrame:
    """Return the gates most special to each class: the largest differences, open or closed.

    class, gate (column), layer, number (in the layer), rate (in the class), elsewhere (in all other
    classes), difference; `count` rows for each class, the largest difference first.
    """
    sizes, counts = record.class_sizes, record.class_counts
    opened = record.gates.open_counts()
    layers, starts = _layer_names(record), _starts(record)
    tables = []
    for label in np.flatnonzero(sizes):
        others = len(record) - sizes[label]
        if not others:
            continue
        rate, elsewhere = counts[label] / sizes[label], (opened - counts[label]) / others
        difference = rate - elsewhere
        gates = np.argsort(-np.abs(difference), kind="stable")[:count]
        tables.append(
            pd.DataFrame(
                {
                    "class": record.classes[label],
                    "gate": gates,
                    "layer": layers[gates],
                    "number": gates - starts[gates],
                    "rate": rate[gates],
                    "elsewhere": elsewhere[gates],
                    "difference": difference[gates],
                }
            )
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def class_agreement(record: SplitRecord) -> NDArray[np.float64]:
    """Return the similarity of classes by their gates, (K, K), 0 to 1.

    The share of the input-dependent gates that two images have alike, mean over all pairs of an
    image of one class and another one of the other. NaN where there is no pair, or no such gate.
    """
    sizes = record.class_sizes.astype(np.float64)
    columns = record.gates.dependent()
    both = np.zeros((len(sizes), len(sizes)))
    for start in range(0, len(columns), COLUMNS):
        counts = record.class_counts[:, columns[start : start + COLUMNS]].astype(np.float64)
        both += counts @ counts.T
    opened = record.class_counts[:, columns].sum(axis=1, dtype=np.float64)
    width = float(len(columns))
    # Σ over gates of  open·open + closed·closed,  for all pairs of images.
    alike = width * np.outer(sizes, sizes) - np.outer(opened, sizes) - np.outer(sizes, opened)
    alike += 2 * both
    pairs = np.outer(sizes, sizes)
    # An image is no pair with itself.
    np.fill_diagonal(alike, np.diag(alike) - width * sizes)
    np.fill_diagonal(pairs, sizes * (sizes - 1))
    total = pairs * width
    return np.divide(alike, total, where=total > 0, out=np.full_like(alike, np.nan))


def similar_classes(
    record: SplitRecord, count: int = 5, agreement: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    """Return the pairs of classes whose images have most gates alike: class, other, agreement.

    agreement: of `class_agreement`, where it is known already
    """
    agreement = class_agreement(record) if agreement is None else agreement
    first, second = np.triu_indices(len(agreement), 1)
    values = agreement[first, second]
    known = np.flatnonzero(~np.isnan(values))
    best = known[np.argsort(-values[known], kind="stable")[:count]]
    names = np.array(record.classes, dtype=object)
    return pd.DataFrame(
        {"class": names[first[best]], "other": names[second[best]], "agreement": values[best]}
    )


def extreme_images(record: SplitRecord, gate: int) -> pd.DataFrame:
    """Return the images that open one gate with most certainty, then those that close it so.

    image (place in the split), logit, open, label, prediction: names of classes.
    """
    extremes = record.extremes
    sides = (
        (extremes.opening, extremes.opening_logits),
        (extremes.closing, extremes.closing_logits),
    )
    tables = []
    for index, logits in sides:
        rows = record.rows(index[:, gate])
        tables.append(
            pd.DataFrame(
                {
                    "image": index[:, gate],
                    "logit": logits[:, gate],
                    "open": record.gates.take(rows).gates()[:, gate] > 0,
                    "label": [record.classes[k] for k in record.labels[rows]],
                    "prediction": [record.classes[k] for k in record.predictions[rows]],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def informative_gates(
    record: SplitRecord, count: int = 10, information: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    """Return the gates that tell most of the class: gate, layer, number, rate, information.

    information: of `mutual_information`, where it is known already
    """
    information = mutual_information(record) if information is None else information
    gates = np.argsort(-information, kind="stable")[:count]
    starts = _starts(record)
    return pd.DataFrame(
        {
            "gate": gates,
            "layer": _layer_names(record)[gates],
            "number": gates - starts[gates],
            "rate": opening_rates(record.gates)[gates],
            "information": information[gates],
        }
    )


def _layer_names(record: SplitRecord) -> NDArray[np.object_]:
    """Return the layer of each gate, (G,)."""
    slices = record.gates.slices
    names = np.array(list(slices), dtype=object)
    return np.repeat(names, [c.stop - c.start for c in slices.values()])


def _starts(record: SplitRecord) -> NDArray[np.int64]:
    """Return the first column of each gate's layer, (G,)."""
    slices = record.gates.slices.values()
    return np.repeat([c.start for c in slices], [c.stop - c.start for c in slices])


def _column_parts(record: SplitRecord) -> Iterator[slice]:
    for start in range(0, record.gates.gate_count, COLUMNS):
        yield slice(start, start + COLUMNS)
