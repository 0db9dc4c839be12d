"""The README's code runs as it stands there; figures of pages are those of results/."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from gaternet.recipes.resnet import SPARSITY
from gaternet.reproduction.command import write_report
from gaternet.reproduction.report import FIGURES
from gaternet.reproduction.results import read_results

README = Path(__file__).parents[1] / "README.md"
RESULTS = README.parent / "results"
OFFLINE = {"pretrained": False}


def test_gating_a_timm_model_in_ones_own_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = timm.create_model
    # Without the network: fresh weights in place of the pre-trained ones.
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **given | OFFLINE))
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    setup, loop = code.split("for images, labels", 1)
    scope: dict[str, Any] = {"loader": [(torch.randn(2, 3, 64, 64), torch.tensor([3, 7]))]}
    exec(setup, scope)
    model = scope["model"]
    scope["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in model.named_parameters()}
    exec("for images, labels" + loop, scope)
    assert scope["gates"].shape == (2, 3776)
    assert scope["logits"].shape == (2, 1000)
    assert "3,776" in capsys.readouterr().out
    moved = [name for name, value in model.named_parameters() if not value.equal(before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert any(name.startswith("gater") for name in moved)


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(README.parent / "benchmarks"))
    return importlib.import_module("readme")


def test_tables_are_what_results_make(readme: ModuleType) -> None:
    text = README.read_text()
    assert readme.fill(text, read_results(RESULTS)) == text, "run make results"


def test_page_of_results_is_what_results_make(tmp_path: Path) -> None:
    docs = README.parent / "docs"
    written = tmp_path / "docs"
    (tmp_path / "results").symlink_to(RESULTS)
    write_report(tmp_path / "results", written / "results.md")
    assert (docs / "results.md").read_text() == (written / "results.md").read_text(), (
        "run make results"
    )
    figures = sorted(file.name for file in (written / FIGURES).iterdir())
    assert figures == sorted(file.name for file in (docs / FIGURES).iterdir())
    for name in figures:
        with Image.open(docs / FIGURES / name) as kept, Image.open(written / FIGURES / name) as new:
            assert kept.size == new.size, f"{name}: run make results"
            # Another matplotlib draws other pixels.
            if kept.info["Software"] == new.info["Software"]:
                assert kept.tobytes() == new.tobytes(), f"{name}: run make results"


def test_the_lambda_is_the_recipes_one() -> None:
    assert f"λ, which the paper prints nowhere, is {SPARSITY:g} here" in README.read_text()


def test_decoding_rates_are_the_measured_ones() -> None:
    rates = json.loads((RESULTS / "decoding.json").read_text())["images_per_second"]
    page = (README.parent / "docs" / "imagenet.md").read_text()
    for kind in ("training_crop", "evaluation_crop", "training_step"):
        assert f"{rates[kind]['median']:,.0f}" in page


def forms_of_resnet50(file: str) -> dict[tuple[str, float, int], dict[str, Any]]:
    """Return what was timed under each setting (layers, share, images), by form."""
    found: dict[tuple[str, float, int], dict[str, Any]] = {}
    for row in json.loads((RESULTS / file).read_text())["rows"]:
        found.setdefault((row["points"], row["share"], row["batch"]), {})[row["variant"]] = row
    return found


def saved_time(forms: dict[str, Any]) -> str:
    dense = min(forms[name]["median_ms"] for name in ("dense-compiled", "dense-onnxruntime"))
    return f"{dense / forms['runtime']['median_ms']:.2f} ×"


def test_the_latencies_are_the_measured_ones() -> None:
    settings = forms_of_resnet50("latency_resnet50.json")
    again = forms_of_resnet50("latency_resnet50_again.json")
    page = (README.parent / "docs" / "runtime.md").read_text().splitlines()
    table = [line for line in page if line.startswith(("| inner", "| inner and outer"))]
    assert len(table) == len(settings)
    for line, ((layers, share, images), forms) in zip(table, settings.items(), strict=True):
        ms = {name: row["median_ms"] for name, row in forms.items()}
        low, high = forms["runtime"]["interval_ms"]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == {"inner": "inner", "both": "inner and outer"}[layers]
        assert cells[1:3] == [f"{100 * share:.0f} %", str(images)]
        order = ("dense-compiled", "dense-onnxruntime", "masked")
        assert cells[3:6] == [f"{ms[variant]:.1f}" for variant in order]
        assert cells[6] == f"{ms['runtime']:.1f} ({low:.1f}-{high:.1f})"
        assert cells[7] == f"{ms['slim-compiled']:.1f}"
        assert cells[8] == saved_time(forms)
        assert cells[9] == saved_time(again[layers, share, images])
        assert cells[10] == f"{ms['runtime'] / ms['slim-compiled']:.2f}"


def test_the_compressed_run_is_the_measured_one() -> None:
    found = json.loads((RESULTS / "compression_resnet164.json").read_text())
    page = (README.parent / "docs" / "compress.md").read_text()
    for name, key in (("masked", "before"), ("compressed", "after")):
        size = found[key]
        cells = f"{size['gates']:,} | {size['parameters']:,} | {size['macs'] / 1e6:.1f} M |"
        assert f"| {name} | {cells}" in page
    assert f"{found['removed']} filters went and {found['always_on']} gates stay open" in page
    assert f"({found['run']['test_error_percent']:.0f} % error)" in page
    run = found["run"]
    assert (run["epochs"], run["pretrain_epochs"]) == (1, {"gater": 6, "backbone": 1})
    assert "its gater\ntrained for six epochs, its backbone for one, and both together" in page
    assert (found["verification"]["logit_error"], found["verification"]["flips"]) == (0, 0)
    unseen = found["unseen"]
    assert f"{unseen['images']:,} test images, {unseen['wanted_removed']} want" in " ".join(
        page.split()
    )
    assert unseen["same_class"] == unseen["images"]


def test_the_cost_of_an_analysis_is_the_measured_one() -> None:
    found = json.loads((RESULTS / "analysis_cost.json").read_text())
    page = " ".join((README.parent / "docs" / "analyze.md").read_text().split())
    run, generated = found["analysis"], found["generated"]
    assert f"takes {run['seconds']:.0f} seconds and {run['peak_bytes'] / 1e9:.1f} GB" in page
    assert f"the page has {run['page_bytes'] / 1e6:.1f} MB" in page
    assert f"the record takes {generated['record_bytes'] / 1e6:.0f} MB" in page
    seconds = sum(generated["seconds"].values())
    assert (
        f"all statistics {seconds:.0f} seconds and {generated['peak_bytes'] / 1e9:.1f} GB" in page
    )


def test_the_tests_behind_each_fault_are_there() -> None:
    page = (README.parent / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 18
    for row in rows:
        file = None
        for path, name in re.findall(r"\(\.\./(tests/[^)]+)\)|`(test_\w+)`", row):
            file = README.parent / path if path else file
            if name:
                assert file is not None
                assert f"def {name}(" in file.read_text(), name
        assert file is not None, row


@pytest.mark.parametrize(
    "file", ["training_pace_cifar10-resnet20-gated-short.json", "two_processes.json"]
)
def test_ratios_of_training_are_the_measured_ones(file: str) -> None:
    found = json.loads((RESULTS / file).read_text())
    page = (README.parent / "benchmarks" / "README.md").read_text().splitlines()
    rows = {row.split("`")[1]: row.split("|")[-3:-1] for row in page if row.startswith("| `")}
    names = [name for name in found if name.endswith(("_ratio", "_share"))]
    assert names
    for name in names:
        value = found[name]
        median = value["median"] if isinstance(value, dict) else value
        low, high = value["interval"] if isinstance(value, dict) else found[f"{name}_interval"]
        shown, interval = (cell.strip() for cell in rows[name])
        digits = len(shown.partition(".")[2])
        assert shown == f"{median:.{digits}f}"
        assert interval in (f"{low:.{digits}f}-{high:.{digits}f}", "counted")
