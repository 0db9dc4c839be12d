"""The ledger: every row of the paper, what it counts, and measured runs beside it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gaternet import cli, ledger, paper, recipes
from gaternet.errors import UserError

KEYS = [
    *("table", "model", "dataset", "gated_filters", "paper_gated_filters", "params"),
    *("paper_params", "agrees", "note", "paper_error", "paper_top5_error", "measured"),
]
# The rows whose printed parameters are not to be had.
DISAGREEING = {
    ("ResNet-20-Gated", "cifar100"),
    ("ResNet-152-Wider", "imagenet"),
    ("Inception-v4", "imagenet"),
    ("Inception-v4-Gated", "imagenet"),
}
RUN = {
    "recipe": "cifar10/resnet20-gated",
    "epochs": 164,
    "pretrain_epochs": {"backbone": 164, "gater": 164},
    "seed": 3,
    "hardware": "an abacus",
    "test_error_percent": 7.01,
    "test_top5_error_percent": 0.2,
    "settings": {},
}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows, a plain, a gated and a disagreeing one: the others take their time."""
    chosen = ("ResNet-20", "ResNet-20-Gated")
    monkeypatch.setattr(paper, "ROWS", [row for row in paper.ROWS if row.model in chosen])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with three runs and a benchmark."""
    runs: dict[str, Any] = {
        "a": RUN
        | {"recipe": "cifar10/resnet20-gated-short", "epochs": 16, "seed": 0}
        | {"settings": {"gating": {"sparsity": 0.3, "bottleneck": 8}, "validation": 5000}},
        "b": RUN,
        "c": RUN | {"recipe": "cifar10/resnet20-gated-soft"},
        "d": RUN | {"recipe": "cifar10/resnet20", "epochs": 3, "pretrain_epochs": None},
        "benchmark": {"recipe": "cifar10/resnet20", "median_ms": 3.5},
        "list": [1, 2, 3],
    }
    for name, values in runs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return tmp_path


def test_every_row_of_the_tables_has_a_recipe() -> None:
    assert len(paper.ROWS) == 24 + 10 + 14
    assert len({(row.model, row.dataset) for row in paper.ROWS}) == 48
    for row in paper.ROWS:
        recipe = recipes.get(ledger.recipe_name(row))
        assert recipe.data.name == row.dataset
        assert (recipe.gating is None) == (row.gated_filters is None)


def test_every_note_is_of_a_row_that_there_is() -> None:
    assert paper.NOTES.keys() == DISAGREEING
    assert {(row.model, row.dataset) for row in paper.ROWS} >= DISAGREEING


@pytest.mark.usefixtures("few")
def test_rows_stand_beside_the_paper_s() -> None:
    rows = ledger.rows()
    assert [list(asdict(row)) for row in rows] == [KEYS] * 4
    assert [(row.model, row.dataset, row.agrees) for row in rows] == [
        ("ResNet-20", "cifar10", True),
        ("ResNet-20-Gated", "cifar10", True),
        ("ResNet-20", "cifar100", True),
        ("ResNet-20-Gated", "cifar100", False),
    ]
    plain, gated, _, odd = rows
    assert (plain.gated_filters, plain.paper_gated_filters, plain.note) == (None, None, "")
    assert (gated.gated_filters, gated.paper_gated_filters) == (336, 336)
    # By hand: the backbone's 272,474 twice, but for one of its classifiers, and D.
    assert gated.params == 2 * 272_474 - 650 + (64 * 8 + 8) + 16 + (8 * 336 + 336)
    assert (gated.paper_params, gated.paper_error, gated.paper_top5_error) == (0.55, 6.88, None)
    assert "0.55 M" in odd.note
    assert all(row.measured is None for row in rows)


@pytest.mark.usefixtures("few")
def test_row_with_other_gates_or_parameters_does_not_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gated = next(row for row in paper.ROWS if row.model == "ResNet-20-Gated")
    for change in ({"gated_filters": 337}, {"gated_filters": None}, {"params": 0.56}):
        monkeypatch.setattr(paper, "ROWS", [paper.PaperRow(**(asdict(gated) | change))])
        assert [row.agrees for row in ledger.rows()] == [False]


@pytest.mark.usefixtures("few")
def test_measured_runs_stand_in_the_row_of_their_recipe(results: Path) -> None:
    plain, gated, *others = ledger.rows(results)
    assert all(row.measured is None for row in others)
    assert gated.measured is not None
    short, full = gated.measured
    assert (short.file, short.shortened, short.epochs, short.seed) == ("a.json", True, 16, 0)
    assert short.differs == ["gating.sparsity 0.3", "validation 5000"]
    assert asdict(full) == {
        "recipe": "cifar10/resnet20-gated",
        "shortened": False,
        "error": 7.01,
        "top5_error": 0.2,
        "epochs": 164,
        "pretrain_epochs": {"backbone": 164, "gater": 164},
        "seed": 3,
        "hardware": "an abacus",
        "differs": [],
        "file": "b.json",
        "params": None,
        "macs": None,
        "needed_macs": None,
        "gates": None,
        "open_gates": None,
        "averaged": 0,
        "precision": None,
        "wall_seconds": None,
        "date": None,
        "training_error": None,
        "torch": None,
        "judged": None,
    }
    assert plain.measured is not None
    assert [(run.file, run.shortened) for run in plain.measured] == [("d.json", True)]


@pytest.mark.usefixtures("few")
def test_json_is_the_list_of_rows_and_nothing_else(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ledger", "--json", "--results", str(results)]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = [asdict(row) for row in ledger.rows(results)]
    for run in (run for row in rows for run in row["measured"] or ()):
        del run["judged"]  # a bit for each image, which the run's own file has
    assert printed == rows


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("given", [True, False])
def test_terminal_shows_what_was_measured_and_why_a_row_differs(
    given: bool,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if not given:  # ./results is looked for
        (tmp_path / "elsewhere" / "results").symlink_to(results)
    assert cli.main(["ledger", *(["--results", str(results)] if given else [])]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("ResNet-20-Gated"))
    assert row.split() == ["ResNet-20-Gated", "336", "0.55", "M", "0.55", "=", "6.88", "7.01", "*"]
    assert (
        "7.01: cifar10/resnet20-gated, 164 epochs after 164 of its backbone and 164 of its gater, "
        "seed 3, an abacus, b.json" in shown
    )
    assert "≠ ResNet-20-Gated: the arithmetic" in shown
    assert "3 of 4 rows agree" in shown
    table = [line for line in shown.splitlines() if line.startswith(("ResNet", "Table"))]
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"recipe": ', r"a\.json is damaged"),
        (json.dumps({k: v for k, v in RUN.items() if k != "seed"}), r"a\.json has no 'se"),
        (None, r"there is no folder .*: give --results"),
    ],
)
def test_results_that_cannot_be_read_are_named(
    content: str | None, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    if content is not None:
        folder.mkdir()
        (folder / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        ledger.rows(folder)


@pytest.mark.slow
def test_all_rows_agree_but_those_that_cannot() -> None:
    rows = ledger.rows()
    assert len(rows) == 48
    assert {(row.model, row.dataset) for row in rows if not row.agrees} == DISAGREEING
    assert {(row.model, row.dataset) for row in rows if row.note} == DISAGREEING
    assert all(row.gated_filters == row.paper_gated_filters for row in rows)
