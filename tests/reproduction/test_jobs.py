"""Which runs a table needs: in which order, from which other runs, and each once."""

from gaternet import paper, recipes
from gaternet.ledger import recipe_name
from gaternet.reproduction.jobs import Job, Length, jobs_of, with_parts
from gaternet.reproduction.targets import Block, ablations, efficient, table1, titled

SHORT = Length(short=True, epochs=30)


def jobs(
    block: Block, *rows: str, seeds: tuple[int, ...] = (0,), length: Length = SHORT
) -> list[Job]:
    names = rows or tuple(row.recipe for row in block.rows)
    return list(with_parts(jobs_of(block, names, seeds, length)))


def test_a_comparable_set_comes_early() -> None:
    found = [job.name for job in jobs(table1()[0], seeds=(0, 1))]
    one = [
        "cifar10-resnet20-short-30ep-seed2000",
        "cifar10-resnet20-short-30ep-seed1000",
        "cifar10-resnet20-gated-short-30ep-seed0",
        "cifar10-resnet20-control-short-30ep-seed0",
        "cifar10-resnet20-ensemble-short-30ep-seed0",
        "cifar10-resnet20-se-short-30ep-seed2000",
        "cifar10-resnet20-wider-short-30ep-seed2000",
    ]
    other = [name.replace("seed0", "seed1").replace("000", "001") for name in one]
    assert found == one + other


def test_gated_run_and_control_start_from_one_backbone() -> None:
    by_name = {job.recipe.name: job for job in jobs(table1()[2])}  # CIFAR-10, ResNet-56
    gated, control = (by_name[f"cifar10/resnet56-{kind}-short"] for kind in ("gated", "control"))
    assert {part: job.name for part, job in gated.parts.items()} == {
        "backbone": "cifar10-resnet56-short-30ep-seed2000",
        "gater": "cifar10-resnet20-short-30ep-seed1000",
    }
    assert control.parts == {"backbone": gated.parts["backbone"]}


def test_ensemble_is_of_what_the_gated_run_starts_from() -> None:
    by_name = {job.recipe.name: job for job in jobs(table1()[3])}  # CIFAR-100, ResNet-56
    gated, ensemble = (by_name[f"cifar100/resnet56-{kind}-short"] for kind in ("gated", "ensemble"))
    assert ensemble.parts == gated.parts
    assert ensemble.recipe.gating is None
    assert ensemble.command == (
        "gaternet reproduce table1 --rows cifar100/resnet56-ensemble --short --epochs 30 --seeds 0"
    )


def test_every_row_of_table_1_is_there_and_its_full_schedule() -> None:
    blocks = table1()
    rows = {row.recipe: row for block in blocks for row in block.rows}
    printed = [row for row in paper.ROWS if row.table == 1]
    assert {recipe_name(row): row.error for row in printed} == {
        name: row.paper_error for name, row in rows.items() if row.paper_error is not None
    }
    for block in blocks:
        for job in jobs(block, length=Length()):
            assert job.recipe.epochs == 164
            averaged = job.recipe.name.endswith("-ensemble")
            table = f"reproduce table1 --rows {job.recipe.name} --epochs 164 --seeds 0"
            run = f"train {job.recipe.name} --epochs 164 --seed {job.recipe.seed}"
            assert job.command == f"gaternet {table if averaged else run}"


def test_what_has_no_short_schedule_is_left_out() -> None:
    assert not jobs(table1()[4])  # ResNet-164
    assert len(jobs(table1()[4], length=Length())) == 7


def test_ablations_change_one_thing_of_the_gated_network() -> None:
    (block,) = ablations()
    found = {job.recipe.name: job for job in jobs(block)}
    assert {f"{row.recipe}-short" for row in block.rows} <= found.keys()
    assert "cifar10/resnet8-short" in found  # a smaller gater's pre-training
    assert not found["cifar10/resnet20-gated-scratch-short"].parts
    lengths = {name: job.recipe.epochs for name, job in found.items()}
    assert lengths.pop("cifar10/resnet20-gated-scratch-short") == 60
    assert set(lengths.values()) == {30}
    for first, second in block.comparisons:
        assert {first, second} <= {row.recipe for row in block.rows}
    assert {row.averages or row.recipe for row in block.rows} <= recipes.RECIPES.keys()


def test_joint_phases_may_be_shorter_than_what_they_start_from() -> None:
    (block,) = ablations()
    length = Length(short=True, epochs=5, pretrain_epochs=30)
    found = {job.recipe.name: job for job in jobs(block, seeds=(1,), length=length)}
    epochs = {name: job.recipe.epochs for name, job in found.items()}
    fresh = {
        *("cifar10/resnet8-short", "cifar10/resnet14-short", "cifar10/resnet20-short"),
        "cifar10/resnet20-ensemble-short",
    }
    assert {name for name, each in epochs.items() if each == 30} == fresh
    assert {name for name, each in epochs.items() if each == 35} == {
        "cifar10/resnet20-gated-scratch-short"
    }
    assert set(epochs.values()) == {5, 30, 35}
    gated = found["cifar10/resnet20-gated-short"]
    assert gated.name == "cifar10-resnet20-gated-short-5ep-after-30-seed1"
    assert gated.command == (
        "gaternet train cifar10/resnet20-gated-short --epochs 5 --seed 1 "
        "--backbone runs/cifar10-resnet20-short-30ep-seed2001 "
        "--gater runs/cifar10-resnet20-short-30ep-seed1001"
    )
    assert [job.name for job in gated.parts.values()] == gated.command.replace("runs/", "").split()[
        -3::2
    ]


def test_smaller_networks_are_trained_for_as_long_as_others_before_and_with_gates() -> None:
    (block,) = efficient()
    length = Length(short=True, epochs=15, pretrain_epochs=30)
    found = {job.recipe.name: job for job in jobs(block, seeds=(1,), length=length)}
    by_epochs = {
        epochs: {name for name, job in found.items() if job.recipe.epochs == epochs}
        for epochs in (15, 30, 45)
    }
    assert by_epochs[30] == {"cifar10/resnet20-short", "cifar10/resnet8-narrow-short"}
    assert by_epochs[45] == {f"cifar10/resnet{name}-short" for name in ("8", "14", "20-narrow")}
    assert sum(map(len, by_epochs.values())) == len(found)
    assert block.short_only
    budgets = [
        (gating.gater, gating.budget)
        for row in block.rows
        if (gating := found[f"{row.recipe}-short"].recipe.gating)
    ]
    assert budgets == [
        (gater, budget) for gater in ("resnet8-narrow", "blind") for budget in (0.5, 0.35, 0.7)
    ]
    one_mask = found["cifar10/resnet20-efficient-fixed-budget-35-short"]
    assert set(one_mask.parts) == {"backbone"}


def test_networks_are_titled_as_in_the_paper() -> None:
    names = ("resnet20", "resnet20-se", "resnet20-narrow", "resnet20-identity", "shake-shake-26")
    assert [titled(name) for name in names] == [
        *("ResNet-20", "ResNet-20-SE", "ResNet-20-Narrow"),
        *("resnet20-identity", "shake-shake-26"),
    ]
