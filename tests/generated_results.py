"""Files of measurements that nobody measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gaternet.right_images import pack

ORIGIN = {"command": "python x.py", "hardware": "an abacus", "date": "2026-01-02", "torch": "none"}


def right_of(wrong: int) -> str:
    """Return which of 100 images a network classifies rightly that errs on the first ones."""
    return pack(np.arange(100) >= wrong)


TRIALS: dict[str, Any] = {
    **ORIGIN,
    "data": "cifar10",
    "recipe": "cifar10/resnet20-gated-short",
    "epochs": 6,
    "validation": 5000,
    "rows": [
        {
            "changes": changes,
            "gated": True,
            "validation_error_percent": error,
            "training_error_percent": error + 1,
            "gained": gained,
            "lost": 0,
            "soft_error_percent": error - 0.1,
            "all_open_error_percent": error + 5,
            "total": 336,
            "always_on": 9,
            "always_off": 3,
            "mean_open": opened,
            "needed_share": 1.75,
        }
        for changes, error, gained, opened in (
            ("", 13.9, 0, 289.2),
            ("gating.sparsity=0", 11.9, 100, 300.3),
        )
    ]
    + [
        {
            "changes": "control",
            "gated": False,
            "validation_error_percent": 10.9,
            "training_error_percent": 9.9,
            "gained": 200,
            "lost": 50,
        }
    ],
}

CURVE: dict[str, Any] = {
    **ORIGIN,
    "batch": 1,
    "rows": [
        {
            "run": f"runs/{run}",
            "backbone": backbone,
            "epochs": epochs,
            "goes_on": run == "gated",
            "budget": budget,
            "mask": None,
            "threshold": threshold,
            "offset": threshold,
            "error_percent": error,
            "judged": {"images": 100, "fingerprint": "a", "right": right_of(int(error))},
            "macs": macs,
            "form": "any",
            "median_ms": milliseconds,
            "interval_ms": [milliseconds - 0.1, milliseconds + 0.1],
        }
        for run, backbone, epochs, budget, threshold, error, macs, milliseconds in (
            ("small", "resnet8", 12, None, None, 17.0, 12.5e6, 0.3),
            ("large", "resnet20", 12, None, None, 12.0, 40.8e6, 0.9),
            ("start", "resnet20", 6, None, None, 9.0, 1e6, 0.1),
            ("gated", "resnet20", 12, 0.5, 0.0, 14.0, 20.4e6, 1.5),
            ("gated", "resnet20", 12, 0.5, 0.5, 18.0, 17.0e6, 1.4),
        )
    ],
}

BEHAVIOUR: dict[str, Any] = {
    **ORIGIN,
    "recipe": "cifar10/resnet20-gated-short",
    "seed": 0,
    "epochs": 30,
    "pretrain_epochs": {"backbone": 30, "gater": 30},
    "data": "cifar10",
    "split": "test",
    "images": 1000,
    "accuracy": 0.9,
    "layers": [
        {"name": f"layer{depth}", "total": 16, "always_on": 1, "always_off": 8 - depth}
        for depth in range(8)
    ],
    "open": [6.0 + depth for depth in range(8)],
    "entropy": [depth / 10 for depth in range(8)],
    "open_gates": {"least": 70, "mean": 72.0, "most": 74, "deviation": 1.0, "distance": 0.01},
    "opened": [100, 200, 400, 200, 100],
    "all_open": {},
    "classes": ["cat", "dog", "eel"],
    "agreement": [[0.9, 0.6, 0.5], [0.6, 0.8, 0.5], [0.5, 0.5, 0.8]],
    "probes": {
        "images": 1000,
        "chance": 0.3,
        "neighbours": 0.8,
        "linear": 0.8,
        "model": 0.9,
        "model_where_told": 0.95,
        "model_where_untold": 0.7,
    },
    "swaps": [
        {"gates": gates, "images": 1000, "accuracy": accuracy, "change": accuracy - 0.9, **width}
        for gates, accuracy, width in (
            ("its own", 0.9, {"interval": 0.0, "followed": 0.9}),
            ("an image's of another class", 0.6, {"interval": 0.02, "followed": 0.3}),
            ("open for most images", 0.8, {"interval": 0.02}),
        )
    ],
}

RUN: dict[str, Any] = {
    **ORIGIN,
    "recipe": "cifar10/resnet20-gated-short",
    "epochs": 30,
    "pretrain_epochs": {"backbone": 30, "gater": 30},
    "seed": 0,
    "test_error_percent": 8.0,
    "test_top5_error_percent": 0.2,
    "parameters": 547_858,
    "macs_per_image": 81_628_928,
    "wall_seconds": 3600,
}
PLAIN: dict[str, Any] = {
    **RUN,
    "recipe": "cifar10/resnet20-short",
    "pretrain_epochs": None,
    "test_error_percent": 9.0,
}
FILES = {
    "trials_r20.json": TRIALS,
    "efficiency_resnet20.json": CURVE,
    "findings_r20.json": BEHAVIOUR,
    "a.json": RUN,
    "b.json": PLAIN,
}


def write_results(folder: Path, files: Mapping[str, object] = FILES) -> Path:
    """Write files of measurements into a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder
