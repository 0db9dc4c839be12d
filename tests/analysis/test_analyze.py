"""`gaternet analyze`, the whole way: files, numbers, saved gates, mistakes, two processes."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gaternet import cli, load
from gaternet.accounting import count_macs
from gaternet.analysis import command, extreme_images, labelled_batches, read_record
from gaternet.analysis.drawing import FIGURES
from gaternet.analysis.missing import NO_PAGE
from gaternet.analysis.swaps import OWN, SAME_CLASS, Swap
from gaternet.analysis.terminal import swap_table
from gaternet.data.batches import Loading
from gaternet.data.digits import load_digits
from gaternet.data.settings import DIGITS
from gaternet.data.streams import HubStream
from gaternet.model import GaterNet
from gaternet.training.processes import ALONE, Processes
from small_runs import few_digits, sign_again, tiny_gated, tree
from terminal import Terminal


def analyze(run: Path, out: Path, *words: str | Path) -> list[str | Path]:
    return ["analyze", run, "--out", out, "--device", "cpu", *words]


@pytest.fixture(scope="module")
def analyzed(gated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis")
    assert cli.main([str(word) for word in analyze(gated_run, out)]) == 0
    return out


def numbers(out: Path, split: str = "test") -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((out / split / "numbers.json").read_text(), parse_constant=refuse)


def test_figures_and_numbers_are_there(analyzed: Path) -> None:
    for name in FIGURES:
        with Image.open(analyzed / "test" / f"{name}.png") as image:
            assert image.width > 900
        assert "<svg" in (analyzed / "test" / f"{name}.svg").read_text()
    found = numbers(analyzed)
    assert found["missing"] == {}
    assert found["images"] == 500
    assert found["agreement"]["images"] == 100
    assert sum(found["rates"]) == found["kinds"]["input_dependent"]
    assert len(found["swaps"]) == 5
    assert len(found["special"]) == 50
    assert found["components"] <= found["kinds"]["input_dependent"]


def test_numbers_are_those_of_other_commands(
    analyzed: Path, gated_run: Path, terminal: Terminal
) -> None:
    found = numbers(analyzed)
    evaluated = json.loads(terminal.succeed("evaluate", gated_run, "--device", "cpu", "--json"))
    measured = evaluated["evaluation"]
    assert 100 * (1 - found["accuracy"]) == pytest.approx(measured["error_percent"])
    assert found["swaps"][0]["accuracy"] == pytest.approx(found["accuracy"])
    for name in ("total", "always_on", "always_off", "input_dependent"):
        assert found["kinds"][name] == measured["gates"][name]
    assert found["open_gates"]["mean"] == pytest.approx(measured["gates"]["mean_open"])
    assert found["costs"]["mean"] == pytest.approx(measured["gates"]["needed_macs"])


def test_every_process_says_whether_it_has_the_gates(
    gated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has none as well: the others wait for it."""
    asked = []

    class Observed(Exception):
        pass

    def total(self: Processes, tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return tensor

    def observe(*_: object) -> None:
        raise Observed

    monkeypatch.setattr(Processes, "total", total)
    monkeypatch.setattr(command, "observe", observe)
    request = command.AnalysisRequest("digits", "test", tmp_path / "new", device="cpu")
    with pytest.raises(Observed):
        command.analyze_run(gated_run, request)
    assert [float(have) for have in asked] == [0.0]


def test_costs_vary_as_those_of_single_images(analyzed: Path, gated_run: Path) -> None:
    found, model = numbers(analyzed)["costs"], load(gated_run)
    assert isinstance(model, GaterNet)
    counter = count_macs(model, model.input_size)
    gates = read_record(analyzed / "test" / "gates").gates.gates()
    needed = [float(counter(torch.tensor(row[None]).double()).sum()) for row in gates]
    assert found["deviation"] == pytest.approx(statistics.pstdev(needed))
    assert found["deviation"] > 0


def test_saved_gates_serve_later_questions(
    analyzed: Path, gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    record = read_record(analyzed / "test" / "gates")
    assert record.labels.tolist() == load_digits("test").labels.tolist()
    assert len(read_record(analyzed / "validation" / "gates")) == 100
    out = tmp_path / "out"
    shutil.copytree(analyzed, out)
    before = {name: data for name, data in tree(out).items() if "/gates/" in name}
    terminal.succeed(*analyze(gated_run, out, "--no-tsne"))
    after = tree(out)
    assert all(after[name] == data for name, data in before.items())
    # The embedding was left out, so its old picture is gone; the numbers are the same.
    assert "test/embedding.png" not in after
    assert numbers(out) == numbers(analyzed) | {"components": None, "explained": None}


def test_every_gate_is_a_row_with_the_images_that_most_open_and_close_it(analyzed: Path) -> None:
    record = read_record(analyzed / "test" / "gates")
    table = pd.read_csv(analyzed / "test" / "gates.csv")
    assert table["gate"].tolist() == list(range(record.gates.gate_count))
    assert table["rate"].to_numpy() == pytest.approx(record.gates.gates().mean(axis=0))
    for gate in range(record.gates.gate_count):
        images = [*table["most_open"][gate].split(), *table["most_closed"][gate].split()]
        expected = extreme_images(record, gate)["image"].tolist()
        assert [int(image) for image in images] == expected


def test_a_page_that_would_show_other_images_is_not_left(
    gated_run: Path, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "report.html").write_text("of an earlier analysis")
    monkeypatch.setattr(command, "loses_places", lambda images, processes: True)
    shown = terminal.succeed(*analyze(gated_run, tmp_path, "--no-tsne"))
    assert not (tmp_path / "test" / "report.html").exists()
    assert numbers(tmp_path)["missing"]["page"] == NO_PAGE
    assert f"not found out: page: {NO_PAGE}" in shown
    assert "for a browser" not in shown


def test_places_in_a_stream_are_those_of_who_reads_it() -> None:
    stream = object.__new__(HubStream)
    for count, images, lost in ((2, stream, True), (1, stream, False), (2, few_digits(2), False)):
        assert command.loses_places(images, replace(ALONE, count=count)) == lost


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["weights", "bits"])
def test_stale_and_damaged_gates_are_made_anew(
    harm: str, analyzed: Path, gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(analyzed, out)
    gates = out / "test" / "gates"
    whole = tree(gates)
    if harm == "weights":
        about = json.loads((gates / "gates.json").read_text())
        about["source"]["weights"] = "another checkpoint's"
        (gates / "gates.json").write_text(json.dumps(about))
        sign_again(gates)
    else:
        file = gates / "gates.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    terminal.succeed(*analyze(gated_run, out, "--no-tsne"))
    assert tree(gates) == whole


def test_json_is_all_that_is_printed(
    gated_run: Path, terminal: Terminal, analyzed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shown = terminal.succeed(*analyze(gated_run, out, "--no-tsne", "--json"))
    assert json.loads(shown) == numbers(out)


def test_report_is_readable(gated_run: Path, terminal: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = terminal.succeed(*analyze(gated_run, out, "--split", "validation", "--no-tsne"))
    assert "validation images" in shown
    assert "input-dependent" in shown
    assert "another image's, same class" in shown
    assert "not found out: agreement: no images to compare with: give --against SPLIT" in shown
    assert f"numbers.json and gates.csv: {out / 'validation'}\n" in shown
    assert f"for a browser: {out / 'validation' / 'report.html'}\n" in shown
    assert "nan" not in shown.lower().replace("gaternet", "")


def test_a_change_of_exactly_nothing_has_an_interval() -> None:
    swaps = (Swap(OWN, 9, 0.5, 0.0, 0.0), Swap(SAME_CLASS, 9, 0.5, 0.0, 0.02))
    assert [*swap_table(swaps).columns[3].cells] == ["", "+0.00 ± 2.00"]


@pytest.mark.slow
def test_another_split_to_compare_with(gated_run: Path, terminal: Terminal, tmp_path: Path) -> None:
    terminal.succeed(*analyze(gated_run, tmp_path, "--against", "train", "--no-tsne"))
    assert numbers(tmp_path)["against"] == "train"
    assert numbers(tmp_path)["agreement"]["images"] == 1297


@pytest.mark.slow
def test_by_default_the_run_s_own_directory_is_written_to(
    gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(gated_run, run)
    terminal.succeed("analyze", run, "--device", "cpu", "--no-tsne")
    assert read_record(run / "analysis" / "test" / "gates").classes[3] == "3"


def test_mistakes_are_reported_in_a_line(
    plain_run: Path, gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = terminal.fail(1, *analyze(plain_run, out))
    assert "plain network: it has no gates to analyze" in said
    assert "no such run directory" in terminal.fail(1, *analyze(tmp_path / "absent", out))
    said = terminal.fail(2, *analyze(gated_run, out, "--against", "test"))
    assert "--against test is the split that is analyzed" in said
    assert not out.exists()
    out.write_text("a file")
    assert "cannot write" in terminal.fail(1, *analyze(gated_run, out))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_folder_of_the_user_s_own_stays(
    split: str, gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    images = tmp_path / "data" / split / "gates"  # a class of that name
    images.mkdir(parents=True)
    for names in ([], ["1.png"], ["1.png", "manifest.json", "gates.json"]):
        for name in names:
            (images / name).write_bytes(b"mine")
        before = tree(tmp_path)
        said = terminal.fail(1, *analyze(gated_run, tmp_path / "data"))
        assert f"{images} is where gates are recorded, and holds something else" in said
        assert tree(tmp_path) == before


def test_a_link_to_a_record_is_not_followed(
    analyzed: Path, gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "out" / "test").mkdir(parents=True)
    (tmp_path / "out" / "test" / "gates").symlink_to(analyzed / "test" / "gates")
    assert "holds something else" in terminal.fail(1, *analyze(gated_run, tmp_path / "out"))


def test_a_run_with_another_run_s_model_is_reported(
    gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    run = shutil.copytree(gated_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["classes"] = [f"kind {number}" for number in range(7)]
    config["recipe"]["data"]["classes"] = 7
    (run / "config.json").write_text(json.dumps(config))
    said = terminal.fail(1, *analyze(run, tmp_path / "out"))
    assert "its config.json has 7 classes" in said
    assert "a file of it is another run's" in said


def test_gates_that_are_all_open_are_reported(
    gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(gated_run, run)
    (newest,) = sorted((run / "checkpoints").iterdir())[-1:]
    model = json.loads((newest / "model.json").read_text())
    (newest / "model.json").write_text(json.dumps(model | {"threshold": -1000.0}))
    sign_again(newest)
    shown = terminal.succeed("analyze", run, "--device", "cpu")
    found = numbers(run / "analysis")
    assert found["kinds"]["always_on"] == found["kinds"]["total"]
    assert found["missing"] == {
        "embedding": "no input-dependent gates: t-SNE needs two",
        "probes": "no gate depends on the input",
        "similar": "no gate depends on the input",
        "class-agreement": "no gate depends on the input",
        "open_gates.distance": "every image opens the same number of gates",
    }
    assert "not found out: embedding: no input-dependent gates" in shown
    assert found["open_gates"]["distance"] is None
    assert found["distinct"] == 1
    assert not (run / "analysis" / "test" / "embedding.png").exists()


def test_page_s_python_runs_as_it_stands_there(analyzed: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "analyze.md"
    asked, own = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    path = "runs/r56-gated/analysis/test/gates"
    assert path in asked
    scope: dict[str, Any] = {}
    exec(asked.replace(path, str(analyzed / "test" / "gates")), scope)
    assert scope["table"]["information"].max() > 0
    torch.manual_seed(0)
    images = few_digits(40)
    loading = Loading(torch.device("cpu"))
    scope["batches"] = list(labelled_batches(images, DIGITS, loading))
    scope |= {"model": tiny_gated().eval(), "classes": images.classes}
    exec(own.replace('"gates"', repr(str(analyzed / "own"))), scope)
    assert len(read_record(analyzed / "own")) == 40


@pytest.mark.slow
def test_two_processes_record_what_one_does(
    analyzed: Path, gated_run: Path, tmp_path: Path
) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(word) for word in analyze(gated_run, tmp_path, "--no-tsne", "--json")]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "gaternet", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, alone = json.loads(done.stdout), numbers(analyzed)
    assert found["swaps"] == alone["swaps"]
    assert found["kinds"] == alone["kinds"]
    records = [read_record(out / "test" / "gates") for out in (tmp_path, analyzed)]
    first, second = ({**vars(r.extremes), "bits": r.gates.bits, "i": r.index} for r in records)
    for name in ("bits", "i", "opening", "closing"):
        assert np.array_equal(first[name], second[name]), name
