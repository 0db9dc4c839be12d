"""A folder of measurements: what is read of it, what is passed over, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from gaternet.errors import UserError
from gaternet.reproduction.command import write_report
from gaternet.reproduction.results import Results, read_results
from generated_results import BEHAVIOUR, CURVE, FILES, RUN, TRIALS, write_results
from terminal import Terminal


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_each_file_is_taken_for_what_it_is(tmp_path: Path) -> None:
    found = read_results(write_results(tmp_path / "results"))
    assert [run.error for run in found.runs] == [8.0, 9.0]
    (trials,), (curve,), (behaviour,) = found.trials, found.curves, found.behaviours
    assert [row.changes for row in trials.found.rows] == ["", "gating.sparsity=0", "control"]
    assert [point.budget for point in curve.found.rows] == [None, None, None, 0.5, 0.5]
    assert behaviour.found.open_gates.mean == 72
    for measured in (trials, curve, behaviour):
        assert (measured.command, measured.hardware) == ("python x.py", "an abacus")
        assert measured.date == "2026-01-02"
    assert (curve.file, curve.name) == ("efficiency_resnet20.json", "efficiency_resnet20")
    assert read_results(tmp_path / "nothing") == Results()


@pytest.mark.parametrize(("form", "opened"), [("hard", 267.6), ("soft", None)])
def test_soft_gates_are_open_in_part_and_not_counted(
    tmp_path: Path, form: str, opened: float | None
) -> None:
    gates = {"total": 336, "mean_open": 267.6}
    write_results(tmp_path, {"a.json": RUN | {"gate_form": form, "gates": gates}})
    (run,) = read_results(tmp_path).runs
    assert (run.gates, run.open_gates) == (336, opened)


def test_curve_of_another_version_is_not_misread(tmp_path: Path) -> None:
    rows = [{**row, "one_mask": True} for row in CURVE["rows"]]
    write_results(tmp_path, {"efficiency_x.json": CURVE | {"rows": rows}})
    with pytest.raises(UserError, match="one_mask"):
        read_results(tmp_path)


def test_files_of_others_change_nothing(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results")
    write_report(folder, tmp_path / "docs" / "results.md")
    before = tree(tmp_path / "docs")
    write_results(folder, {"latency.json": {"rows": []}, "list.json": [1, 2], "text.json": "a"})
    (folder / "notes.txt").write_text("{")
    write_report(folder, tmp_path / "docs" / "results.md")
    assert tree(tmp_path / "docs") == before
    assert len(before) == 6  # the page, the curve, four figures of gates


def test_every_target_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results")
    written = []
    for target in ("table1", "ablations", "table1"):
        terminal.succeed("reproduce", target, "--budget", "0")
        written.append(tree(tmp_path / "docs"))
    assert written[0] == written[1] == written[2]


def changed(values: dict[str, Any], **others: object) -> dict[str, Any]:
    return {**values, **others}


def with_row(**others: object) -> dict[str, Any]:
    first, second, *rest = TRIALS["rows"]
    return {**TRIALS, "rows": [first, {**second, **others}, *rest]}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("trials_x.json", CURVE, "is called trials_*.json and is none: data"),
        ("trials_x.json", changed(TRIALS, rows=[]), "one is the recipe as it is"),
        ("trials_x.json", changed(TRIALS, validation=0), "there is at least one image"),
        ("trials_x.json", changed(TRIALS, validation=99), "there are 99 images"),
        ("trials_x.json", with_row(gained=-1), "gained, lost: there are 5000 images"),
        ("trials_x.json", with_row(gained=0), "their difference is that of the errors"),
        ("trials_x.json", with_row(total=None), "gated runs have them"),
        ("trials_x.json", with_row(gated=False), "gated runs have them"),
        ("trials_x.json", changed(TRIALS, date=None), "date: "),
        ("efficiency_x.json", TRIALS, "is called efficiency_*.json and is none: batch"),
        ("efficiency_x.json", changed(CURVE, rows=[]), "there is at least one"),
        ("findings_x.json", [], "is called findings_*.json and is none"),
        ("findings_x.json", RUN, "is called findings_*.json and is none: data"),
        ("findings_x.json", changed(BEHAVIOUR, layers=[]), "layers: "),
        ("findings_x.json", changed(BEHAVIOUR, open=[1.0]), "open, entropy: of 8 layers"),
        ("findings_x.json", changed(BEHAVIOUR, all_open={"cat": 1}), "0 images open every gate"),
        ("findings_x.json", changed(BEHAVIOUR, opened=[999]), "opened: there are 1000 images"),
        ("findings_x.json", changed(BEHAVIOUR, agreement=[[1.0]]), "there are 3 classes"),
        ("a.json", changed(RUN, seed="0"), "is not a run's result.json: seed"),
    ],
)
def test_foreign_files_are_named_and_nothing_is_written(
    name: str,
    values: object,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminal: Terminal,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results", FILES | {name: values})
    output = terminal.fail(1, "reproduce", "table1", "--budget", "0")
    assert str(Path("results", name)) in output
    assert message in output
    assert not (tmp_path / "docs").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name in FILES:
        folder = write_results(tmp_path / name)
        (folder / name).write_text('{"rows": [')
        with pytest.raises(UserError, match=f"{name} is damaged"):
            read_results(folder)
