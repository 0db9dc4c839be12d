"""Going on with a run: what must be as it was, and what the user lets change."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gaternet.errors import UsageError, UserError
from gaternet.spelling import did_you_mean
from gaternet.training.config import Resumption, flat, recipe_to_dict
from gaternet.training.run import Run, RunConfig, open_run

_ABSENT = "none"


def reopen(out: Path, config: RunConfig, how: Resumption, *, writes: bool) -> Run:
    """Open the run in `out` to go on with it as `config` says; what was allowed is recorded.

    Raises UserError where there is none, it has ended, or fields differ that may not; UsageError
    where there is no such field.
    """
    if not (out / "config.json").exists():
        raise UserError(f"{out} holds no run to go on with; leave --resume out to begin one")
    run = open_run(out, writes=writes)
    if run.result:
        raise UserError(f"{out} has ended already; its figures are in {out / 'result.json'}")
    before, now = fields(run.config), fields(config)
    for name in config.versions.keys() - run.config.versions.keys():
        del now[name]  # a run of an earlier version does not say
    allowed = _known(how.allow_change, before | now)
    changed = {
        name: (before.get(name, _ABSENT), now.get(name, _ABSENT))
        for name in now | before
        if before.get(name) != now.get(name)
    }
    refused = {name: pair for name, pair in changed.items() if name not in allowed}
    if refused:
        told = "; ".join(f"{name} {old} → {new}" for name, (old, new) in refused.items())
        raise UserError(
            f"{out} was begun with other settings ({told}); resume it with the same, start anew in "
            f"another directory, or let them change: --allow-change {' '.join(refused)}"
        )
    if changed:
        run.change_config(config, _record(run, changed))
    return run


def fields(config: RunConfig) -> dict[str, Any]:
    """Return what must not change, by the names that --allow-change takes.

    Those of the recipe's settings, weights.PART, images (the fingerprint of the data), and the
    versions of gaternet and torch.
    """
    return {
        **flat(recipe_to_dict(config.recipe) | {"weights": config.weights}),
        "images": config.data_fingerprint,
        **config.versions,
    }


def _known(names: Iterable[str], known: Mapping[str, Any]) -> set[str]:
    """Return the fields of these names, as they are or as they are typed as flags."""
    found = set()
    for name in names:
        field = name.removeprefix("--").replace("-", "_")
        if field not in known:
            hint = did_you_mean(field, known, "config.json has them all")
            raise UsageError(f"--allow-change {name}: there is no such field; {hint}")
        found.add(field)
    return found


def _record(run: Run, changed: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
    epoch, step = run.position
    when = {"behind_epoch": epoch, "step": step, "date": time.strftime("%Y-%m-%d")}
    return [
        {"field": name, "before": before, "now": now, **when}
        for name, (before, now) in changed.items()
    ]
