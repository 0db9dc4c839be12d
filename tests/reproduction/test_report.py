"""The page of results: every figure of it from the runs that it is given."""

from dataclasses import replace

from gaternet.measured_runs import MeasuredRun
from gaternet.reproduction.report import render

PLAIN = MeasuredRun(
    recipe="cifar10/resnet20-short",
    shortened=True,
    error=9.5,
    top5_error=0.3,
    epochs=30,
    pretrain_epochs=None,
    seed=2000,
    hardware="an abacus",
    differs=[],
    file="plain.json",
    params=272_474,
    wall_seconds=5400,
)
GATED = replace(PLAIN, recipe="cifar10/resnet20-gated-short", error=8.25, seed=0, file="gated.json")


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_say_what_was_measured() -> None:
    runs = [PLAIN, replace(PLAIN, error=9.9, seed=1000, wall_seconds=9000, file="b.json"), GATED]
    page = render(runs, "../results")
    assert "## CIFAR-10, ResNet-20, 30 epochs a phase in place of 164" in page
    head, _, plain, gated, _, _, compared = rows(page)
    assert head[:4] == ["network", "parameters", "paper's error", "test error"]
    assert plain == [
        "ResNet-20",
        "0.27 M",
        "8.06 %",
        "9.70 ± 0.28 %",
        "[1000](../results/b.json), [2000](../results/plain.json)",
        "2.0",
        "an abacus",
    ]
    assert gated[3:5] == ["8.25 %", "[0](../results/gated.json)"]
    # t(1) 12.706 · s 0.2828 · √(1/2 + 1)
    assert compared == ["ResNet-20-Gated", "ResNet-20", "-1.18", "-1.45 ± 4.40", "not told apart"]


def test_only_runs_of_one_length_are_compared() -> None:
    longer = replace(GATED, epochs=60)
    assert not rows(render([PLAIN, longer], "results"))
    page = render([PLAIN, GATED, longer, replace(PLAIN, epochs=60)], "results")
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert [heading.split(", ")[2][:2] for heading in headings] == ["60", "30"]


def test_full_schedule_is_told_from_a_short_one_of_as_many_epochs() -> None:
    full = [replace(run, recipe=run.row, epochs=164) for run in (PLAIN, GATED)]
    page = render([*full, replace(GATED, epochs=164)], "results")
    assert "the paper's 164 epochs a phase" in page
    assert len(rows(page)) == 7


def test_run_with_settings_of_its_own_is_in_no_table() -> None:
    assert not rows(render([PLAIN, replace(GATED, differs=["gating.sparsity 0.3"])], "results"))
