"""What benchmarks say of themselves, and what they refuse."""

import ast
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gaternet import backbones, saved_models
from gaternet.accounting import count_macs
from gaternet.backbones import BackboneConfig
from gaternet.bench.macs import count_run
from gaternet.commands import EvaluationRequest, evaluate_run, split_images
from gaternet.data.batches import normalised_batches
from gaternet.errors import UsageError, UserError
from gaternet.local import LocalGaterNet
from gaternet.model import GaterNet
from gaternet.reproduction.results import Results, read_results
from gaternet.right_images import Judged
from gaternet.training.compute import plan
from gaternet.training.config import Compute
from gaternet.training.lock import InUseError
from gaternet.training.run import open_run
from generated_results import BEHAVIOUR, FILES, write_results
from small_runs import few_digits
from terminal import Terminal

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMPORTED = ("report.py", "random_images.py")
"""By benchmarks; they run nothing."""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_published_command_is_the_one_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    publish = importlib.import_module("report").publish
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--data", "a folder"])
    publish({"ratio": 1.5}, torch.device("cpu"), tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["command"] == "python benchmarks/x.py --data 'a folder'"
    assert found["ratio"] == 1.5
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    publish({}, torch.device("cpu"), None)
    command = json.loads(capsys.readouterr().out)["command"]
    words = "torchrun --standalone --nproc-per-node 2 benchmarks/x.py --data 'a folder'"
    assert command == words


def test_mistake_is_reported_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = importlib.import_module("report")
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py"])
    with pytest.raises(SystemExit) as ended, report.mistakes_reported():
        raise UsageError("--data \x1b[31m is not a folder")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "x.py: --data \\x1b[31m is not a folder\n"


def test_folder_to_publish_in_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = importlib.import_module("report")
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py"])
    report.publish({"ratio": 1.5}, torch.device("cpu"), tmp_path / "new" / "x.json")
    assert json.loads((tmp_path / "new" / "x.json").read_text())["ratio"] == 1.5
    with pytest.raises(UserError, match=r"x\.json"):
        report.publish({}, torch.device("cpu"), tmp_path / "new" / "x.json" / "y.json")


def test_settings_are_timed_on_images_of_the_recipe_s_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("compute_settings")
    monkeypatch.setattr(sys, "argv", ["benchmarks/compute_settings.py"])
    monkeypatch.setattr(
        module, "plan", lambda compute, device: plan(Compute(compile="off"), device)
    )
    module.main(module.Settings("digits/resnet8-gated", rounds=1, warmup=0, device="cpu"))
    assert len(json.loads(capsys.readouterr().out)["median_ms"]) == 8


def test_what_cannot_be_decoded_is_reported(tmp_path: Path) -> None:
    module = importlib.import_module("decoding")
    with pytest.raises(UserError, match="nowhere"):
        module.main(module.Settings(tmp_path / "nowhere", device="cpu"))
    (tmp_path / "train-00000-of-00001.parquet").touch()
    with pytest.raises(UserError, match="is not a folder of images by class"):
        module.main(module.Settings(tmp_path, device="cpu"))


def test_trials_whose_start_another_process_trains_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = importlib.import_module("joint_trials")

    def held(run: Path) -> None:
        raise InUseError(f"{run} is in use")

    monkeypatch.setattr(trials, "check_free", held)
    trials.main(trials.Arguments("digits", tmp_path, recipe="digits/resnet8-gated", device="cpu"))
    assert capsys.readouterr().out == "trained by others still: backbone, gater\n"


@pytest.mark.parametrize(
    "name", sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in IMPORTED)
)
def test_every_benchmark_tells_mistakes_so(name: str) -> None:
    program = ast.parse((BENCHMARKS / name).read_text()).body[-1]
    assert isinstance(program, ast.If)
    (within,) = (each for each in program.body if not isinstance(each, ast.ImportFrom))
    assert ast.unparse(within).startswith("with mistakes_reported():")


def test_one_process_is_not_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    two_processes = importlib.import_module("two_processes")
    with pytest.raises(SystemExit, match="--nproc-per-node 2"):
        two_processes.main(two_processes.Settings("digits/resnet8-gated", "digits"))


def test_curve_has_thresholds_and_the_mask_of_most_training_images(
    gated_run: Path, plain_run: Path
) -> None:
    curve = importlib.import_module("efficiency_curve")
    *thresholds, majority = curve.points_of(gated_run, "digits")
    (plain,) = curve.points_of(plain_run, "digits")
    assert [point.offset for point in thresholds] == [-1, -0.5, 0, 0.5, 1]
    assert (plain.goes_on, plain.offset, majority.offset) == (False, None, None)
    for point, path in ((thresholds[2], gated_run), (plain, plain_run)):
        result = json.loads((path / "result.json").read_text())
        assert point.error_percent == pytest.approx(result["test_error_percent"], abs=1e-3)
        assert point.macs == pytest.approx(result["macs_needed_per_image"])
        assert point.judged == Judged(**result["judged"])
    run, model = open_run(gated_run), saved_models.load(gated_run)
    assert isinstance(model, GaterNet)
    data = run.config.recipe.data
    train, test = (
        torch.cat(list(normalised_batches(split_images(run, "digits", split), data, "cpu")))
        for split in ("train", "test")
    )
    with torch.inference_mode():
        mask = (model.decide(train).gates.mean(dim=0) > 0.5).float()
        chosen = model(test, gates=mask.expand(len(test), -1)).logits.argmax(dim=1)
    assert 0 < mask.sum() < len(mask)
    labels = few_digits(len(test), "test").labels
    assert majority.error_percent == pytest.approx(100 * float((chosen != labels).double().mean()))
    counter = count_macs(model, data.input_size)
    needed = counter(torch.stack((mask, torch.ones_like(mask))).double()).sum(dim=1)
    assert majority.macs == float(needed[0] - (needed[1] - counter.backbone_macs))
    assert (majority.mask, majority.threshold) == ("majority", None)


def test_only_runs_that_have_ended_are_on_a_curve(
    gated_run: Path, tmp_path: Path, terminal: Terminal
) -> None:
    curve = importlib.import_module("efficiency_curve")
    left = tmp_path / "left"
    terminal.succeed("compress", gated_run, "--out", left, "--one-mask")
    with pytest.raises(UserError, match="has not ended, or is what"):
        next(curve.points_of(left, "digits"))


def test_local_gates_are_on_no_curve(gated_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = importlib.import_module("efficiency_curve")
    local = LocalGaterNet(backbones.create(BackboneConfig("resnet8", 10, 1, 8)))
    monkeypatch.setattr(saved_models, "load", lambda path: local)
    with pytest.raises(UserError, match="has no gater"):
        next(curve.points_of(gated_run, "digits"))


def test_a_run_s_gates_are_kept_for_the_page(
    gated_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    findings = importlib.import_module("findings")
    monkeypatch.setattr(sys, "argv", ["benchmarks/findings.py", "run"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    findings.main(findings.Arguments(gated_run, device="cpu"))
    (measured,) = read_results(tmp_path / "results").behaviours
    assert measured.file == f"findings_{gated_run.name}.json"
    result = json.loads((gated_run / "result.json").read_text())
    found, gates = measured.found, result["gates"]
    assert found.gates == gates["total"]
    assert sum(found.open) == pytest.approx(gates["mean_open"])
    for kind in ("always_on", "always_off", "input_dependent"):
        assert sum(getattr(layer, kind) for layer in found.layers) == gates[kind]
    opened = np.arange(len(found.opened)) + found.open_gates.least
    assert np.average(opened, weights=found.opened) == pytest.approx(gates["mean_open"])
    assert 100 * (1 - found.accuracy) == pytest.approx(result["test_error_percent"], abs=1e-3)
    assert found.all_open is not None
    everything = found.opened[-1] if found.open_gates.most == found.gates else 0
    assert sum(found.all_open.values()) == everything
    assert len(found.agreement) == 10
    assert len(found.swaps) == 5


def test_trials_are_trained_once_and_compared_with_the_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials = importlib.import_module("joint_trials")
    monkeypatch.setattr(sys, "argv", ["benchmarks/joint_trials.py"])
    given = trials.Arguments(
        data="digits",
        runs=tmp_path / "runs",
        recipe="digits/resnet8-gated",
        epochs=1,
        validation=300,
        device="cpu",
        out=tmp_path / "trials_x.json",
        changes=("gating.sparsity=0 optimizer.lr=0.01",),
    )
    trials.main(given)
    (found,) = read_results(tmp_path).trials
    recipe, changed, control = found.found.rows
    assert [row.changes for row in (changed, control)] == [*given.changes, "control"]
    config = open_run(tmp_path / "runs" / "gating.sparsity=0,optimizer.lr=0.01").config.recipe
    assert config.gating is not None
    assert (config.gating.sparsity, config.optimizer.lr) == (0, 0.01)
    for row, name in ((recipe, "as-it-is"), (control, "control")):
        request = EvaluationRequest("digits", "validation", device="cpu")
        error = evaluate_run(tmp_path / "runs" / name, request).evaluation.error_percent
        assert row.validation_error_percent == pytest.approx(error)
    request = EvaluationRequest("digits", "validation", threshold=-1e9, device="cpu")
    opened = evaluate_run(tmp_path / "runs" / "as-it-is", request).evaluation
    assert recipe.all_open_error_percent == pytest.approx(opened.error_percent)
    assert control.all_open_error_percent is None
    counted = count_run(
        tmp_path / "runs" / "as-it-is",
        EvaluationRequest("digits", "validation", device="cpu"),
        None,
    )
    assert recipe.needed_share == pytest.approx(counted.macs.share)
    before = (tmp_path / "trials_x.json").read_text()
    trials.main(given)
    assert (tmp_path / "trials_x.json").read_text() == before
    with pytest.raises(UserError, match="holds a run with other settings"):
        trials.main(replace(given, epochs=2))
    for change in ("gating.sparsity=1", "from-scratch", "validation=200"):
        with pytest.raises(UserError, match="changes nothing of the joint phase"):
            trials.main(replace(given, changes=(change,)))


def test_gained_images_are_those_that_only_the_changed_run_classifies_rightly() -> None:
    compared = importlib.import_module("joint_trials").compared
    right, others = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 0]]).bool()
    found = compared(right, others)
    assert found == {"validation_error_percent": 40, "gained": 2, "lost": 1}


def test_marked_parts_of_a_page_are_written_and_the_rest_is_left(tmp_path: Path) -> None:
    readme = importlib.import_module("readme")
    worse = BEHAVIOUR | {"recipe": "cifar10/resnet20-efficient-short", "accuracy": 0.8}
    found = read_results(
        write_results(tmp_path / "results", FILES | {"findings_a.json": worse})  # read first
    )
    page = "# A page\n<!-- errors -->\nstale\n<!-- end -->\nbetween\n<!-- gates -->\n<!-- end -->\n"
    page += "<!-- costs -->\n<!-- end -->\n"
    written = readme.fill(page, found)
    assert readme.fill(written, found) == written
    assert written.startswith("# A page\n<!-- errors -->\n")
    assert "stale" not in written
    assert "<!-- end -->\nbetween\n<!-- gates -->" in written
    row = "| ResNet-20-Gated | 0.55 M | 81.6 M |  | 30 + 30, gater 30 + 30 | 6.88 % | 8.00 % | [0]("
    assert row in written
    assert "`cifar10/resnet20-gated-short`, 30 epochs ([numbers](" in written
    # 8 + 36 of 8 × 16 gates.
    assert (
        "128 gates 8 are open for all of 1,000 test images,\n36 for none, and 84 depend" in written
    )
    assert "| open for most images | 1,000 | 80.0 % | -10.0 ± 2.0 |  |" in written
    assert "| 60.0 % | -30.0 ± 2.0 | 30.0 % |" in written
    assert "(docs/figures/efficiency_resnet20.png)" in written
    assert "| ResNet-8 | 17.00 % |  | 12.5 M | 0.30 |\n" in written
    # Of two thresholds the one without an offset is that which it was trained for.
    assert (
        "| ResNet-20, budget 0.5 | 14.00 % | -1.6 ± 2.5 | 20.4 M | 1.50 |\n\nOne run and 12"
        in written
    )
    with pytest.raises(UserError, match="there is no <!-- gates -->"):
        readme.fill(page.replace("gates", "bars"), found)
    with pytest.raises(UserError, match="no two runs"):
        readme.fill(page, Results())
    with pytest.raises(UserError, match=r"no findings_\*.json"):
        readme.fill(page, Results(found.runs))
    with pytest.raises(UserError, match=r"no efficiency_\*.json"):
        readme.fill(page, Results(found.runs, behaviours=found.behaviours))
