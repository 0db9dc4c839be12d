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


def check_begun(out: Path) -> None:
    """Raise UserError where there is no run to go on with in `out`, or it has ended."""
    if not (out / "config.json").exists():
        raise UserError(f"{out} holds no run to go on with; leave --resume out to begin one")
    if open_run(out).result:
        raise UserError(f"{out} has ended already; its figures are in {out / 'result.json'}")


def reopen(
    out: Path, config: RunConfig, how: Resumption, *, writes: bool, part: bool = False
) -> Run:
    """Open the run in `out` to go on with it as `config` says, which `Run.keep_config` writes down
    together with what was allowed to change.

    part: of another run, which has fields that this one lacks

    Raises UserError where there is none, it has ended, fields differ that may not, or it is to end
    before where it is; UsageError where there is no such field.
    """
    check_begun(out)
    run = open_run(out, writes=writes)
    allowed = {name.removeprefix("--").replace("-", "_") for name in how.allow_change}
    if not part:
        _check_known(allowed, fields(run.config) | fields(config))
    changed = differences(run.config, config)
    refused = {name: pair for name, pair in changed.items() if name not in allowed}
    if refused:
        raise UserError(
            f"{out} was begun with other settings ({in_words(refused)}); resume it with the same, "
            f"start anew in another directory, or let them change: --allow-change "
            f"{' '.join(refused)}"
        )
    if changed:
        _check_epochs_left(run, config, changed)
        run.change_config(config, _record(run, changed))
    return run


def _check_epochs_left(run: Run, config: RunConfig, changed: Iterable[str]) -> None:
    """Raise UserError where a run would have been at its end before.

    What belongs to the end, such as noise that has faded, was not done there.
    """
    finished, _ = run.position
    if "epochs" in changed and config.recipe.epochs <= finished:
        raise UserError(
            f"--epochs {config.recipe.epochs}: {run.path} has {finished} epochs behind it already, "
            "of a longer schedule; give more"
        )


def fields(config: RunConfig) -> dict[str, Any]:
    """Return what must not change, by the names that --allow-change takes.

    Those of the recipe's settings, weights.PART, images (the fingerprint of the data), and the
    versions of gaternet and torch.
    """
    settings = recipe_to_dict(config.recipe) | {"weights": config.weights}
    del settings["reproduces"]  # a line for people
    return {
        **flat(settings),
        "images": config.data_fingerprint,
        **config.versions,
    }


def differences(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return which of their fields differ, as (before, now)."""
    old, new = fields(before), fields(now)
    for name in now.versions.keys() - before.versions.keys():
        del new[name]  # a run of an earlier version does not say
    return {
        name: (old.get(name, _ABSENT), new.get(name, _ABSENT))
        for name in new | old
        if old.get(name) != new.get(name)
    }


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return which fields differ as a line of text."""
    return "; ".join(f"{name} {before} → {now}" for name, (before, now) in changed.items())


def _check_known(names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, "config.json has them all")
            raise UsageError(f"--allow-change {name}: there is no such field; {hint}")


def _record(run: Run, changed: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
    epoch, step = run.position
    when = {"behind_epoch": epoch, "step": step, "date": time.strftime("%Y-%m-%d")}
    return [
        {"field": name, "before": before, "now": now, **when}
        for name, (before, now) in changed.items()
    ]
