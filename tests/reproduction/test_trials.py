"""What trials of settings are said to tell."""

from dataclasses import replace

from gaternet.reproduction.results import Measurement, Trial, Trials
from gaternet.reproduction.trials import trials_section

AS_IT_IS = Trial("", True, 14.0, 12.0, 0, 0, 14.1, 19.9, 336, 9, 3, 271.3, 0.512)


def changed(changes: str, gained: int, lost: int) -> Trial:
    error = 14.0 + 100 * (lost - gained) / 5000
    return replace(
        AS_IT_IS, changes=changes, validation_error_percent=error, gained=gained, lost=lost
    )


FOUND = Trials(
    "cifar10",
    "cifar10/resnet20-gated-short",
    6,
    5000,
    (
        AS_IT_IS,
        changed("gating.sparsity=0", 100, 110),
        changed("optimizer.lr=0.2 epochs=7", 200, 100),
        changed("gating.sparsity=1", 100, 200),
        Trial("control", False, 12.0, 11.0, 250, 150),
    ),
)


def lines(found: Trials) -> list[str]:
    measured = Measurement("trials_x.json", "python x.py", "an abacus", "today", found)
    return list(trials_section([measured], "../results"))


def test_it_is_said_which_changes_matter() -> None:
    assert lines(FOUND)[-2] == (
        "A lower error than the recipe as it is: `--optimizer.lr=0.2` and `--epochs=7`; control. "
        "A higher error than the recipe as it is: `--gating.sparsity=1`. "
        "No significant difference from the recipe as it is: `--gating.sparsity=0`. "
        "The recipe has λ = 0.1."
    )
    assert "λ" not in lines(replace(FOUND, recipe="another/one"))[-2]
    alone = replace(FOUND, rows=FOUND.rows[:1])
    assert lines(alone)[-2] == "The recipe has λ = 0.1."


def test_tables_say_what_was_measured() -> None:
    rows = [line for line in lines(FOUND) if line.startswith("|")]
    assert (
        rows[2]
        == "| the recipe as it is | 14.00 % |  | 14.10 % | 19.90 % | 12.00 % | 271 of 336 | 9 | 3 "
        "| 51 % |"
    )
    assert rows[4].startswith("| `--optimizer.lr=0.2` and `--epochs=7` | 12.00 % | -2.00 ± 0.68 |")
    assert rows[6] == "| control | 12.00 % | -2.00 ± 0.78 |  |  | 11.00 % |  |  |  |  |"


def test_of_no_trials_nothing_is_said() -> None:
    assert not list(trials_section([], "results"))
