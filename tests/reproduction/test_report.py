"""The page of results: every figure of it from the runs that it is given."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gaternet.measured_runs import MeasuredRun, machines
from gaternet.recipes import RECIPES
from gaternet.reproduction.error_tables import ErrorTable, error_tables
from gaternet.reproduction.report import render
from gaternet.reproduction.results import Results
from gaternet.right_images import Judged, pack

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
    macs=40_813_184,
    wall_seconds=5400,
)
GATED = replace(
    PLAIN,
    recipe="cifar10/resnet20-gated-short",
    error=8.25,
    seed=0,
    file="gated.json",
    pretrain_epochs={"backbone": 30, "gater": 30},
)


def page_of(runs: Sequence[MeasuredRun], results: str = "../results") -> str:
    return render(Results(tuple(runs)), results)


def run_of(recipe: str, *errors: float) -> list[MeasuredRun]:
    begun: dict[str, int | str] | None = {"backbone": 30} if RECIPES[recipe].pretrain else None
    return [
        replace(PLAIN, recipe=f"{recipe}-short", error=error, seed=seed, pretrain_epochs=begun)
        for seed, error in enumerate(errors)
    ]


def table_of(*runs: MeasuredRun) -> ErrorTable:
    (table,) = error_tables(runs)
    return table


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_say_what_was_measured() -> None:
    other = replace(PLAIN, error=9.9, seed=1000, wall_seconds=9000, file="b.json")
    other = replace(other, training_error=2.5, torch="9.1")
    runs = [PLAIN, other, replace(GATED, gates=1336, open_gates=289.7)]
    page = page_of(runs)
    assert "## CIFAR-10, ResNet-20, 30 epochs a phase in place of 164" in page
    head, _, plain, gated, _, _, compared = rows(page)
    assert head[3:6] == ["open gates", "epochs", "paper's error"]
    assert head[6:9] == ["test error", "seeds", "training error"]
    assert plain == [
        "ResNet-20",
        "0.27 M",
        "40.8 M",
        "",
        "30",
        "8.06 %",
        "9.70 ± 0.28 %",
        "[1000](../results/b.json), [2000](../results/plain.json)",
        "2.50 % (1 of 2)",
        "2.5, 1.5",
        "an abacus; torch 9.1",
    ]
    assert gated[3:8] == [
        "290 of 1,336",
        "30 + 30, gater 30 + 30",
        "6.88 %",
        "8.25 %",
        "[0](../results/gated.json)",
    ]
    row = ["ResNet-20-Gated", "ResNet-20", "-1.18", "-1.45", "too few seeds"]
    assert compared == [*row, "1.00 ×"]


def test_only_runs_of_one_length_are_compared() -> None:
    plain, gated = replace(PLAIN, epochs=60), replace(GATED, epochs=60)
    longer = replace(gated, pretrain_epochs={"backbone": 60})
    assert not rows(page_of([PLAIN, longer]))
    page = page_of([PLAIN, GATED, longer, plain])
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert [heading.split(", ")[2][:2] for heading in headings] == ["60", "30"]


def test_changes_of_a_network_that_is_not_there_are_no_table() -> None:
    control = replace(run_of("cifar10/resnet20-control", 9.0)[0], epochs=5)
    local = replace(run_of("cifar10/resnet20-gated-local", 9.5)[0], epochs=5)
    gated = replace(run_of("cifar10/resnet20-gated", 8.5)[0], epochs=5)
    assert not [*error_tables([control, local])]
    assert table_of(control, local, gated).block.title.endswith("one thing changed")


def test_joint_phase_shorter_than_what_came_before_is_a_table_of_its_own() -> None:
    few = replace(GATED, epochs=5, error=8.0, file="few.json")
    soft = replace(few, recipe="cifar10/resnet20-gated-soft-short", error=7.0)
    control = replace(few, recipe="cifar10/resnet20-control-short", error=8.5)
    tables = list(error_tables([PLAIN, GATED, few, control, soft, replace(PLAIN, epochs=5)]))
    assert len(list(error_tables([PLAIN, few, control]))) == 0
    assert [table.title for table in tables] == [
        "CIFAR-10, ResNet-20, 30 epochs a phase in place of 164",
        "CIFAR-10, ResNet-20-Gated with one thing changed, 30 epochs, then 5, in place of 164 each",
    ]
    kept = [[run.error for _, runs in table.rows for run in runs] for table in tables]
    # The plain network of 30 epochs is what all start from.
    assert kept == [[9.5, 8.25], [9.5, 8.5, 8.0, 7.0]]
    asked = [(each.first.label, each.second.label) for each in tables[1].comparisons]
    plain, control_of_it, gated, soft_gates = (row.label for row, _ in tables[1].rows)
    assert asked == [
        *((plain, gated), (control_of_it, gated), (control_of_it, plain)),
        *((soft_gates, gated), (soft_gates, control_of_it)),
    ]


def test_what_goes_on_is_compared_with_what_it_started_from() -> None:
    few = replace(GATED, epochs=5, seed=1)
    soft = replace(few, recipe="cifar10/resnet20-gated-soft-short", error=7.0)
    plain = [replace(PLAIN, seed=seed, error=9 + seed / 1e4) for seed in (1, 1001, 2000, 2001)]
    ensembles = [
        replace(PLAIN, recipe="cifar10/resnet20-ensemble-short", averaged=2, seed=seed)
        for seed in (0, 1, 2001)
    ]
    table = table_of_ablations(few, soft, *plain, *ensembles)
    seeds = {row.label: [run.seed for run in runs] for row, runs in table.rows}
    assert seeds["ResNet-20"] == [2001]
    assert seeds["ResNet-20-Ensemble"] == seeds["ResNet-20-Gated"] == [1]


def test_baseline_of_all_epochs_is_in_the_table_of_what_was_trained_in_two_phases() -> None:
    gated = replace(GATED, recipe="cifar10/resnet20-efficient-short", epochs=15, error=9.0)
    fixed = replace(gated, recipe="cifar10/resnet20-efficient-fixed-short", error=10.0)
    small = replace(PLAIN, recipe="cifar10/resnet14-short", epochs=45, error=9.2)
    others = [replace(small, epochs=epochs) for epochs in (15, 30)]
    (table,) = error_tables([PLAIN, gated, fixed, small, *others, replace(PLAIN, epochs=45)])
    assert table.title == (
        "CIFAR-10, ResNet-20 with gates that save multiply-accumulates, 30 epochs, then 15, "
        "in place of 164 each"
    )
    kept = {row.label: [run.epochs for run in runs] for row, runs in table.rows}
    assert kept == {
        "ResNet-20": [30],
        "ResNet-20, budget 0.5": [15],
        "ResNet-14": [45],
        "one mask, budget 0.5": [15],
    }
    (asked,) = table.comparisons
    assert (asked.first.label, asked.second.label) == (
        "ResNet-20, budget 0.5",
        "one mask, budget 0.5",
    )


def test_networks_of_one_seed_are_compared_on_the_same_images() -> None:
    right = np.ones((2, 200), dtype=bool)
    right[0, :10] = right[1, 4:30] = False  # 4 only the second classifies rightly, 20 the first
    gated, soft = (
        replace(
            GATED,
            recipe=f"cifar10/resnet20-{name}-short",
            error=100 * float(np.mean(~mine)),
            judged=Judged(200, "abc", pack(mine)),
        )
        for name, mine in zip(("gated", "gated-soft"), right, strict=True)
    )
    (found,) = table_of(gated, soft).comparisons
    steps = right[0].astype(float) - right[1]
    assert found.found.difference == pytest.approx(100 * steps.mean())
    assert found.found.half_width == pytest.approx(196 * steps.std() / 200**0.5)
    table = table_of(gated, soft)
    assert table.verdict().startswith("soft gates, never binarized has a higher error than ResNet-")
    assert (
        "of the same 200 test images, it is judged at 5 % for these very networks"
        in table.verdict()
    )
    assert "of the same images | higher error" in table.differences()[2]
    assert isinstance(soft.judged, Judged)
    for other in (None, replace(soft.judged, fingerprint="other")):
        (found,) = table_of(gated, replace(soft, judged=other)).comparisons
        assert found.found.half_width is None


def test_two_seeds_are_compared_with_one_on_the_same_images() -> None:
    right = np.random.default_rng(0).random((3, 200)) < 0.8
    one, other, gated = (
        replace(
            run, seed=seed, error=100 * float(np.mean(~mine)), judged=Judged(200, "a", pack(mine))
        )
        for run, seed, mine in zip((PLAIN, PLAIN, GATED), (1000, 2000, 0), right, strict=True)
    )
    (found,) = table_of(one, other, gated).comparisons
    steps = right[:2].mean(axis=0) - right[2]
    assert found.found.difference == pytest.approx(100 * steps.mean())
    assert found.found.half_width == pytest.approx(196 * steps.std() / 200**0.5)
    assert found.found.images == 200
    (found,) = table_of(one, replace(other, judged=None), gated).comparisons
    assert found.found.half_width is None


@pytest.mark.parametrize(("spread", "images"), [(0.1, 200), (9.0, 0)])
def test_wider_interval_is_told_where_there_are_two(spread: float, images: int) -> None:
    right = np.arange(200) > 20
    other = Judged(200, "abc", pack(np.roll(right, 10)))
    gated = replace(GATED, error=other.error_percent, judged=replace(other, right=pack(right)))
    soft = replace(gated, recipe="cifar10/resnet20-gated-soft-short", judged=other)
    control = replace(GATED, recipe="cifar10/resnet20-control-short", error=9.0)
    random = replace(GATED, recipe="cifar10/resnet20-gated-random-short", judged=None)
    seeded = [
        each
        for seed in range(4)
        for each in (
            replace(control, seed=seed),
            replace(random, seed=seed, error=9 + seed * spread),
        )
    ]
    comparisons = table_of_ablations(gated, soft, *seeded).comparisons
    (found,) = (
        each
        for each in comparisons
        if (each.first.recipe, each.second.recipe) == (soft.row, gated.row)
    )
    assert found.found.images == images


def table_of_ablations(*runs: MeasuredRun) -> ErrorTable:
    return next(table for table in error_tables(runs) if "one thing changed" in table.title)


@pytest.mark.parametrize("begun", [None, {"backbone": "timm"}, {"backbone": 30, "gater": 5}])
def test_run_that_did_not_start_as_its_recipe_does_is_in_no_table(
    begun: dict[str, int | str] | None,
) -> None:
    other = replace(GATED, pretrain_epochs=begun, error=1.0)
    (table,) = error_tables([PLAIN, GATED, other])
    assert [run.error for _, runs in table.rows for run in runs] == [9.5, 8.25]
    assert not list(error_tables([PLAIN, other]))


def test_images_that_are_not_those_of_the_error_are_refused() -> None:
    run = replace(PLAIN, error=12.5, judged=Judged(8, "abc", pack(np.arange(8) > 0)))
    with pytest.raises(ValueError, match=r"of 12\.500 % error, not 12\.600 %"):
        replace(run, error=12.6)


def test_full_schedule_is_told_from_a_short_one_of_as_many_epochs() -> None:
    longer = replace(GATED, epochs=164, pretrain_epochs={"backbone": 164})
    page = page_of([*(replace(run, recipe=run.row, epochs=164) for run in (PLAIN, longer)), longer])
    assert "the paper's 164 epochs a phase" in page
    assert len(rows(page)) == 7


def test_run_with_settings_of_its_own_is_in_no_table() -> None:
    assert not rows(page_of([PLAIN, replace(GATED, differs=["gating.sparsity 0.3"])]))


def test_it_is_said_what_differences_support() -> None:
    plain, gated = (
        run_of(f"cifar10/resnet20{end}", error, error + 0.1, error + 0.05)
        for end, error in (("", 9.0), ("-gated", 8.0))
    )
    control, wider = "cifar10/resnet20-control", "cifar10/resnet20-wider"
    assert table_of(*plain, *gated).verdict() == (
        "ResNet-20-Gated has a lower error than ResNet-20."
    )
    several = [*plain, *gated, *run_of(control, 8.05, 8.1), *run_of(wider, 7.0, 7.1)]
    assert table_of(*several).verdict() == (
        "ResNet-20-Gated has a lower error than ResNet-20 and a higher error than ResNet-20-Wider, "
        "and does not differ significantly from ResNet-20-Control. "
        "ResNet-20-Control has a lower error than ResNet-20. "
        "Corrected for the table's 4 comparisons (Holm) all significant differences stand. "
        # t(6) 2.447 · s √((2·2·0.05² + (0.05² + 0.1²) / 2) / 6) · √(1/3 + 1/2)
        "Not significant does not mean equal: with 6 degrees of freedom only differences above 0.1 "
        "points are significant."
    )
    assert table_of(plain[0], gated[0]).verdict() == (
        "Too few seeds to say whether any difference is more than chance."
    )


@pytest.mark.parametrize(
    ("gated", "needed", "said"),
    [
        (8.0, 61.2e6, "has a lower error than ResNet-20 (at 1.50 times the cost)."),
        (8.0, 20.4e6, "has a lower error than ResNet-20 (at 0.50 times the cost)."),
        (8.0, 41.6e6, "has a lower error than ResNet-20."),
        (9.9, 20.4e6, "has a higher error than ResNet-20 (at 0.50 times the cost)."),
        (9.9, 61.2e6, "has a higher error than ResNet-20 (at 1.50 times the cost)."),
        (9.05, 61.2e6, "does not differ significantly from ResNet-20 (at 1.50 times the cost)."),
    ],
)
def test_it_is_said_where_a_difference_has_its_price(
    gated: float, needed: float, said: str
) -> None:
    runs = [
        *run_of("cifar10/resnet20", 9.0, 9.1, 9.1),
        *run_of("cifar10/resnet20-gated", *[gated] * 3),
    ]
    paid = [
        replace(run, macs=40_800_000, needed_macs=round(needed) if "gated" in run.recipe else None)
        for run in runs
    ]
    table = table_of(*paid)
    assert table.verdict().startswith(f"ResNet-20-Gated {said}")
    assert table.differences()[2].endswith(f"| {needed / 40.8e6:.2f} × |")


def test_of_many_changes_it_is_said_which_matter() -> None:
    gated_with = "cifar10/resnet20-gated-"
    gated = run_of(gated_with[:-1], 8.0, 8.1, 8.0, 8.1)
    soft, random = run_of(f"{gated_with}soft", 6.0), run_of(f"{gated_with}random", 10.0)
    same = run_of(f"{gated_with}lambda-0", 8.06)
    assert table_of(*gated, *soft, *random, *same).verdict() == (
        "A lower error than ResNet-20-Gated: soft gates, never binarized. "
        "A higher error than ResNet-20-Gated: gates at random at one rate. "
        "No significant difference from ResNet-20-Gated: without the L1 term. "
        "Corrected for the table's 3 comparisons (Holm) all significant differences stand. "
        # t(3) 3.182 · s 0.0577 · √(1 + 1/4)
        "Not significant does not mean equal: with 3 degrees of freedom only differences above 0.2 "
        "points are significant."
    )


def test_nothing_is_said_of_differences_that_nothing_judges() -> None:
    right = [np.arange(200) >= wrong for wrong in (20, 60)]
    gated, soft = (
        replace(run, error=100 * float(np.mean(~mine)), judged=Judged(200, "a", pack(mine)))
        for run, mine in zip(
            (GATED, replace(GATED, recipe="cifar10/resnet20-gated-soft-short")), right, strict=True
        )
    )
    unknown = replace(GATED, recipe="cifar10/resnet20-gated-random-short", judged=None)
    table = table_of_ablations(gated, soft, unknown)
    assert "| too few seeds |" in "".join(table.differences())
    assert "soft gates" in table.verdict()
    assert "at random" not in table.verdict()


def test_what_does_not_stand_among_many_questions_is_named() -> None:
    gated = run_of("cifar10/resnet20-gated", 8.0, 8.1, 8.0, 8.1)
    near, far = (
        run_of(f"cifar10/resnet20-gated-{end}", error)
        for end, error in (("soft", 8.26), ("random", 10.0))
    )
    assert (
        "Corrected for the table's 2 comparisons (Holm) all significant differences stand."
        in table_of(*gated, *near, *far).verdict()
    )
    same = run_of("cifar10/resnet20-gated-lambda-0", 8.06)
    more = run_of("cifar10/resnet20-gated-fixed", 8.07)
    assert (
        "Corrected for the table's 4 comparisons (Holm) these are not significant any more: soft "
        "gates, never binarized against ResNet-20-Gated."
    ) in table_of(*gated, *near, *far, *same, *more).verdict()
    assert "(Holm) none is" in table_of(*gated, *near, *same, *more).verdict()


def test_number_formats_of_training_are_told_where_they_differ() -> None:
    plain, gated = replace(PLAIN, precision="bfloat16"), replace(GATED, precision="bfloat16")
    assert "number format" not in table_of(plain, gated).verdict()
    assert "| an abacus; bfloat16 |" in table_of(plain, gated).errors("results")[2]
    other = replace(plain, seed=2001, precision="float32")
    assert (
        "Not all were trained in the same number format (bfloat16: ResNet-20 and ResNet-20-Gated; "
        "float32: ResNet-20); a part of their differences may come from that."
    ) in table_of(plain, other, gated).verdict()


def test_an_ensemble_has_no_seeds_of_its_own() -> None:
    plain, gated = (run_of(f"cifar10/resnet20{end}", 9.0, 9.1, 9.2) for end in ("", "-gated"))
    ensemble = [
        replace(PLAIN, recipe="cifar10/resnet20-ensemble-short", averaged=2, seed=seed, error=8.0)
        for seed in range(3)
    ]
    alone, beside = (
        table_of(*runs).comparisons[0].found
        for runs in ((*plain, *gated), (*plain, *gated, *ensemble))
    )
    assert (beside.half_width, beside.freedom) == (alone.half_width, 4)


def test_needed_multiply_accumulates_are_told_where_they_are_fewer() -> None:
    more = replace(GATED, macs=81_628_928)
    cells = [
        table_of(PLAIN, replace(more, needed_macs=needed)).errors("results")[3].split(" | ")[2]
        for needed in (71_076_427, 81_628_928, None)
    ]
    assert cells == ["81.6 M, 71.1 M needed", "81.6 M", "81.6 M"]


def test_what_is_in_no_table_is_named() -> None:
    alone = replace(GATED, differs=["gating.sparsity 0.3"], file="alone.json")
    page = page_of([PLAIN, GATED, alone])
    assert "none is trained alike: [alone.json](../results/alone.json)." in page
    assert "In no table" not in page_of([PLAIN, GATED])


def test_networks_of_an_ensemble_are_counted() -> None:
    ensemble = replace(PLAIN, recipe="cifar10/resnet20-ensemble-short", averaged=2)
    assert table_of(GATED, ensemble).errors("results")[3].split(" | ")[4] == "2 × 30"


def test_short_schedule_says_what_else_differs_from_the_paper_s() -> None:
    said = table_of(PLAIN, GATED).note()
    assert "a peak rate of 0.2 (0.05 for" in said
    assert "weight decay 0.0005" in said
    assert "(bias\n1), λ is 0.1, the noise fades between 40% and 70% of the epochs" in said
    full = [replace(run, recipe=run.row) for run in (PLAIN, GATED)]
    assert said in page_of([PLAIN, GATED])
    assert "short schedule" not in page_of(full)


def test_what_trained_several_runs_is_named_once() -> None:
    runs = [replace(PLAIN, hardware=each) for each in ("b; c", "b", "a; c")]
    assert machines(runs) == ["a", "b", "c"]
