"""`gaternet bench macs`: the table, the JSON, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gaternet
from gaternet.accounting import count_macs
from gaternet.analysis import collect, report_macs
from gaternet.data.batches import normalised_batches
from gaternet.data.digits import load_digits
from gaternet.data.settings import DIGITS
from gaternet.model import GaterNet
from small_runs import few_digits, tiny_gated
from terminal import Terminal


def test_report_is_the_mean_and_percentiles_of_single_images() -> None:
    torch.manual_seed(0)
    model = tiny_gated().eval()
    images = torch.cat(list(normalised_batches(few_digits(70), DIGITS, "cpu")))
    counter = count_macs(model, DIGITS.input_size)
    with torch.no_grad():
        each = [counter(model(image[None]).gates.double())[0] for image in images]
    totals = [float(row.sum()) for row in each]
    found = report_macs(counter, collect(model, images.split(32)))
    assert found.images == 70
    assert found.mean == pytest.approx(sum(totals) / 70)
    assert found.median == pytest.approx(float(np.median(totals)))
    assert found.p95 == pytest.approx(float(np.percentile(totals, 95)))
    assert [layer.mean for layer in found.layers] == pytest.approx(
        torch.stack(each).mean(0).tolist()
    )
    assert sum(layer.dense for layer in found.layers) == found.backbone + found.deciding


def test_record_of_another_model_is_refused() -> None:
    model = tiny_gated().eval()
    record = collect(model, [torch.zeros(1, 1, 8, 8)])
    with pytest.raises(ValueError, match="the record has 20 gates, the counter's model 0"):
        report_macs(count_macs(model.backbone, DIGITS.input_size), record)


def test_run_is_counted_layer_by_layer(terminal: Terminal, gated_run: Path) -> None:
    output = json.loads(terminal.succeed("bench", "macs", gated_run, "--json", "--device", "cpu"))
    model = gaternet.load(gated_run)
    assert isinstance(model, GaterNet)
    images = normalised_batches(load_digits("test"), DIGITS, "cpu")
    with torch.no_grad():
        gates = torch.cat([model.decide(batch).gates for batch in images])
    needed = count_macs(model, DIGITS.input_size)(gates.double()).sum(dim=1)
    assert output["macs"]["images"] == len(needed)
    assert output["macs"]["mean"] == pytest.approx(needed.mean().item())
    assert output["share"] == pytest.approx(needed.mean().item() / output["macs"]["backbone"])
    result = json.loads((gated_run / "result.json").read_text())
    assert result["macs_needed_per_image"] == round(output["macs"]["mean"])
    assert result["macs_per_image"] == output["macs"]["backbone"] + output["macs"]["deciding"]
    shown = terminal.succeed("bench", "macs", gated_run, "--images", "7", "--device", "cpu")
    for words in ("stage3.block1.conv2", "gater.head.fc2", "plain backbone", "needed, p95"):
        assert words in shown
    assert "images" in shown
    assert " 7" in shown


def test_images_of_a_plain_run_need_all_its_filters(terminal: Terminal, plain_run: Path) -> None:
    output = json.loads(terminal.succeed("bench", "macs", plain_run, "--json", "--device", "cpu"))
    counted = output["macs"]
    result = json.loads((plain_run / "result.json").read_text())
    assert counted["mean"] == counted["p95"] == counted["backbone"] == result["macs_per_image"]
    assert counted["images"] == len(load_digits("test"))
    assert (output["share"], output["threshold"], counted["deciding"]) == (1, None, 0)
    shown = terminal.succeed("bench", "macs", plain_run, "--images", "7", "--device", "cpu")
    assert "gater or local heads" not in shown
    assert " 7" in shown
    refused = terminal.fail(2, "bench", "macs", plain_run, "--threshold", "1")
    assert "--threshold need gates" in refused


def test_evaluation_tells_what_an_image_needs(terminal: Terminal, gated_run: Path) -> None:
    shown = terminal.succeed("evaluate", gated_run, "--device", "cpu")
    assert "multiply-accumulates, mean" in shown


def test_group_shows_its_commands(terminal: Terminal) -> None:
    for words in (["bench"], ["bench", "--help"]):
        assert "macs  " in terminal.succeed(*words)
    assert "bench" in terminal.succeed("--help")
    assert "--images" in terminal.help("bench", "macs")


def test_mistakes_are_reported(terminal: Terminal, plain_run: Path, gated_run: Path) -> None:
    assert "did you mean macs" in terminal.fail(2, "bench", "mac", gated_run)
    assert "--images 0" in terminal.fail(2, "bench", "macs", gated_run, "--images", "0")
    assert "did you mean bench" in terminal.fail(2, "bensh")
