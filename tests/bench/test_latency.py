"""`gaternet bench latency`: what it compares, how it measures, what it refuses."""

import copy
import json
import time
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import binom

import gaternet
from gaternet import saved_models
from gaternet.accounting import MacCounter
from gaternet.backbones import BackboneConfig, create
from gaternet.bench import latency, latency_figure
from gaternet.bench.latency import (
    Latencies,
    LatencyRequest,
    RandomGatesRequest,
    random_gates,
    time_network,
    timed_batches,
)
from gaternet.data.augmentation import normalise
from gaternet.data.digits import load_digits
from gaternet.gate_flow import follow
from gaternet.gate_points import GatePoint, attach
from gaternet.local import LocalGaterNet
from gaternet.model import GaterNet
from gaternet.runtime import forms
from gaternet.runtime.compiled import CompiledBackbone, Report
from gaternet.runtime.compiler import masked_backbone
from gaternet.runtime.forms import Form, Forms, slimmed, under_mask
from gaternet.runtime.latency import ROUNDS, LatencyRow, measure, median_ranks
from gaternet.training.run import open_run
from small_runs import tiny_gated
from terminal import Terminal

VARIANTS = {
    *("dense-eager", "dense-compiled", "dense-onnxruntime", "masked", "runtime", "slim-compiled"),
}


def no_compiler(*_: object) -> None:
    raise RuntimeError("no compiler is here\nand more")


def test_random_gates_open_as_many_in_every_layer() -> None:
    points = (GatePoint("a", 32, 8), GatePoint("b", 20))
    gates = random_gates(points, 0.25, 50, torch.Generator().manual_seed(0))
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert (gates[:, :4].sum(dim=1) == 1).all()
    assert (gates[:, 4:].sum(dim=1) == 5).all()
    assert len(gates.unique(dim=0)) > 40  # each image its own


@pytest.mark.parametrize("count", [6, 7, 8, 11, 16, 24, 25, 60, 400])
def test_the_interval_holds_the_median(count: int) -> None:
    """Against the binomial itself: how many of `count` values lie below the median."""
    low, high = median_ranks(count)
    assert low + high == count - 1

    def confidence(low: int) -> float:
        return 1 - 2 * float(binom.cdf(low, count, 0.5))

    assert confidence(low) >= 0.95 > confidence(low + 1)


def test_too_few_values_hold_no_median() -> None:
    with pytest.raises(ValueError, match="5 values enclose no median with 95 % confidence: 6 do"):
        median_ranks(5)


def test_forms_are_timed_in_turns() -> None:
    order = []

    def form(name: str, seconds: float) -> Form:
        def run() -> None:
            order.append(name)
            time.sleep(seconds)

        return Form(name, run, 0.5, 7.0)

    rows = measure(
        Forms((form("quick", 0.001), form("slow", 0.06)), {}, 1), 3, 0.0, torch.device("cpu")
    )
    quick, slow = rows
    assert order[:3] == ["quick", "quick", "slow"]  # what is quick warms up first
    assert order[-3:] == ["quick", "quick", "slow"]
    assert quick.runs == slow.runs == ROUNDS
    assert 1 <= quick.median_ms < 40 < slow.median_ms
    assert slow.interval_ms[0] <= slow.median_ms <= slow.interval_ms[1]
    assert slow.median_ms <= slow.p95_ms
    assert (slow.batch, slow.open_share, slow.macs_per_image) == (3, 0.5, 7.0)


def test_every_batch_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_frozen", "_exported"):
        monkeypatch.setattr(forms, name, no_compiler)
    seen: list[torch.Tensor] = []
    backbone = create(BackboneConfig("resnet8", 10)).eval()
    batches = torch.randn(6, 3, 32, 32).split(2)
    backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    (eager,) = forms.dense_forms(backbone, batches).ready
    seen.clear()
    for _ in range(4):
        eager.run()
    # The first one was computed when the form was made.
    for found, batch in zip(seen, (batches[i] for i in (1, 2, 0, 1)), strict=True):
        assert torch.equal(found, batch)


def test_a_model_is_timed_under_the_gates_of_every_batch(
    gated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_add_dense", "_add_slim"):
        monkeypatch.setattr(forms, name, lambda *_: None)
    model = saved_models.load(gated_run)
    assert isinstance(model, GaterNet)
    batches = timed_batches(open_run(gated_run), "digits", 2, torch.device("cpu"))
    found = forms.own_gates(model, None, batches)
    masked = next(one for one in found.ready if one.variant == "masked")
    with torch.no_grad():
        gates = torch.cat([model(images).gates for images in batches])
    assert masked.open_share == pytest.approx(float(gates.mean()))
    needed = gaternet.count_macs(model, model.input_size)(gates.double()).sum(dim=1).mean()
    for one in found.ready:
        if one.variant == "runtime":
            assert one.macs == pytest.approx(float(needed))
            assert one.open_share == masked.open_share


@pytest.mark.parametrize(("batch", "turns"), [(1, 31), (2, 15), (3, 9), (16, 1), (40, 1)])
def test_small_batches_are_of_many_test_images(gated_run: Path, batch: int, turns: int) -> None:
    """An odd number of them: every other run is untimed, and all are to be timed."""
    run, whole = open_run(gated_run), load_digits("test")
    found = timed_batches(run, "digits", batch, torch.device("cpu"))
    assert [len(images) for images in found] == [batch] * turns
    count = batch * turns
    places = [place * (len(whole) - 1) // (count - 1) for place in range(count)]
    data = run.config.recipe.data
    torch.testing.assert_close(
        torch.cat(found), normalise(whole.images[places], data.mean, data.std)
    )


def test_every_form_is_timed_on_every_batch() -> None:
    rows = measure(
        Forms((Form("one", lambda: None, 1.0, 1.0),), {}, 31), 1, 0.0, torch.device("cpu")
    )
    assert rows[0].runs == 31


def test_what_was_not_measured_at_some_batch_size_says_at_which() -> None:
    missing = {1: {"slim": "no compiler"}, 128: {"slim": "no compiler", "masked": "no memory"}}
    assert latency._not_measured(missing) == {
        "slim": "no compiler",
        "masked (128 at once)": "no memory",
    }


def test_medians_stand_beside_their_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a form is missing at some batch size."""
    drawn: list[Figure] = []
    monkeypatch.setattr(latency_figure, "FigureCanvasAgg", drawn.append)

    def row(variant: str, batch: int, median: float) -> LatencyRow:
        return LatencyRow(variant, batch, median, median, (median, median), 7, 1.0, 1.0, 1)

    rows = (row("dense", 1, 3.0), row("runtime", 1, 2.0), row("slim", 1, 1.0), row("slim", 2, 8.0))
    latency_figure.latency_figure(Latencies("net", "cpu", rows, {}), tmp_path / "a.png")
    for axes, wanted in zip(
        drawn[0].axes, ({"dense": 3.0, "runtime": 2.0, "slim": 1.0}, {"slim": 4.0}), strict=True
    ):
        shown = {text.get_position()[1]: float(text.get_text()) for text in axes.texts}
        assert shown == wanted
        places = {axes.yaxis.convert_units(name) for name in wanted}
        bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
        assert places == {bar.get_y() + bar.get_height() / 2 for bar in bars}


def test_the_slim_network_is_the_backbone_with_the_open_filters() -> None:
    torch.manual_seed(0)
    backbone = create(BackboneConfig("resnet8", 10)).double().eval()
    points = gaternet.find_gate_points(gaternet.trace(backbone), "both", 4)
    gates = random_gates(points, 0.5, 1, torch.Generator().manual_seed(0)).double()
    slim = slimmed(backbone, points, gates, (3, 32, 32))
    masked = copy.deepcopy(backbone)
    attach(masked, points).arm(gates.expand(2, -1))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(slim(images), masked(images))
    macs = gaternet.trace(slim, (3, 32, 32)).total_macs
    counter = gaternet.count_macs(backbone, (3, 32, 32))
    assert macs < 0.6 * counter.backbone_macs


def test_under_a_mask_whole_layers_may_be_closed() -> None:
    torch.manual_seed(0)
    backbone = create(BackboneConfig("resnet8", 10)).double().eval()
    points = gaternet.find_gate_points(gaternet.trace(backbone), "both", 8)
    mask = torch.ones(sum(point.gates for point in points), dtype=torch.float64)
    mask[: points[0].gates] = mask[-1] = 0
    small = under_mask(backbone, points, mask, (3, 32, 32))
    masked = copy.deepcopy(backbone)
    attach(masked, points).arm(mask.expand(2, -1))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(small(images), masked(images))
    counter = MacCounter(follow(gaternet.trace(backbone), points))
    macs = gaternet.trace(small, (3, 32, 32)).total_macs
    assert macs == counter(mask[None]).sum()


def test_a_runtime_that_skips_no_filter_is_not_timed_as_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = create(BackboneConfig("resnet8", 10)).eval()
    points = gaternet.find_gate_points(gaternet.trace(backbone), "both", 8)
    gates = random_gates(points, 0.5, 1, torch.Generator().manual_seed(0))
    plain = CompiledBackbone(masked_backbone(backbone, points), Report(slow_because="no compiler"))
    monkeypatch.setattr(forms, "compile_backbone", lambda *_: plain)
    for name in ("_add_dense", "_add_slim"):
        monkeypatch.setattr(forms, name, lambda *_: None)
    found = forms.given_gates(backbone, points, [torch.randn(1, 3, 32, 32)], [gates])
    assert found.missing == {"runtime": "no filter is skipped: no compiler"}
    assert [one.variant for one in found.ready] == ["masked"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a run directory, or --model"),
        (["--model", "resnet8", "--open-share", "1.5"], "--open-share 1.5 is not a share"),
        (["--model", "resnet8", "--batches", "0"], "--batches: each must be at least 1"),
        (["--model", "resnet8", "--threads", "0"], "--threads 0: at least 1"),
        (["--model", "resnet8", "--block", "7"], "7"),
        (["--model", "timm/vgg11_bn", "--batches", "1"], "no residual branch"),
        (["--model", "resnet8", "--data", "digits"], "--data goes with a run"),
        (["run", "--open-share", "0.5"], "--open-share goes with --model"),
        (["run", "--points", "both"], "--points goes with --model"),
        (["run", "--block", "8"], "--block goes with --model"),
        (["run", "--image-size", "32"], "--image-size goes with --model"),
        (["run", "--figure", "x.txt"], "--figure x.txt: a figure ends in .png or .svg"),
        (["run", "--figure", "not-there/x.png"], "there is no folder not-there"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, terminal: Terminal) -> None:
    assert message in terminal.fail(2, "bench", "latency", *words)


def test_an_unknown_network_is_named(terminal: Terminal) -> None:
    assert "resnet7" in terminal.fail(1, "bench", "latency", "--model", "resnet7")


def test_what_a_compression_leaves_without_a_gater_is_timed_as_it_is(
    gated_run: Path, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_frozen", no_compiler)
    left = tmp_path / "left"
    terminal.succeed("compress", gated_run, "--out", left, "--one-mask")
    words = ("bench", "latency", left, "--batches", "1", "2", "--seconds", "0")
    found = json.loads(terminal.succeed(*words, "--json"))
    assert found["missing"]["dense-compiled"] == "no compiler is here"
    rows = found["rows"]
    eager = [row for row in rows if row["variant"] == "dense-eager"]
    assert [row["batch"] for row in eager] == [1, 2]
    assert {row["variant"] for row in rows} <= {"dense-eager", "dense-onnxruntime"}
    whole = json.loads((gated_run / "result.json").read_text())["macs_per_image"]
    report = json.loads((left / "report.json").read_text())
    assert eager[0]["macs_per_image"] == report["after"]["macs"] < whole
    assert "not measured: dense-compiled: no compiler is here" in terminal.succeed(*words)


def test_images_are_taken_from_all_over_a_split(gated_run: Path) -> None:
    run, whole = open_run(gated_run), load_digits("train")
    found = torch.cat(list(latency._images(run, "train", "digits", 300, torch.device("cpu"))))
    places = [place * (len(whole) - 1) // 299 for place in range(300)]
    data = run.config.recipe.data
    torch.testing.assert_close(found, normalise(whole.images[places], data.mean, data.std))
    few = list(latency._images(run, "test", "digits", 7, torch.device("cpu")))
    assert [len(batch) for batch in few] == [7]


def test_more_images_at_once_than_there_are(gated_run: Path, terminal: Terminal) -> None:
    words = ("bench", "latency", gated_run, "--batches", "1", "4000")
    assert "--batches 4000: there are only 500 test images" in terminal.fail(2, *words)


def test_soft_gates_skip_nothing(
    gated_run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = tiny_gated()
    soft.binarizer = gaternet.make_binarizer("soft")
    monkeypatch.setattr(saved_models, "load", lambda path: soft)
    assert "has gates between 0 and 1" in terminal.fail(2, "bench", "latency", gated_run)


def test_local_gates_skip_nothing(
    gated_run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalGaterNet(create(BackboneConfig("resnet8", 10, 1, 8)))
    monkeypatch.setattr(saved_models, "load", lambda path: local)
    assert "has local gates" in terminal.fail(2, "bench", "latency", gated_run)


@pytest.mark.slow
def test_every_form_of_a_network_is_there(kernels: None) -> None:
    pytest.importorskip("onnxruntime")
    wanted = RandomGatesRequest("resnet8", 0.5, "inner", 8, None)
    found = time_network(wanted, LatencyRequest((1, 3), 0.0, None, "cpu"))
    assert not found.missing
    assert {row.variant for row in found.rows} == VARIANTS
    assert {row.batch for row in found.rows} == {1, 3}
    rows = {row.variant: row for row in found.rows if row.batch == 3}
    assert rows["runtime"].open_share == rows["masked"].open_share == 0.5
    assert rows["runtime"].macs_per_image == rows["slim-compiled"].macs_per_image
    assert rows["masked"].macs_per_image == rows["dense-eager"].macs_per_image


@pytest.mark.slow
def test_a_run_is_timed_with_its_gater(
    gated_run: Path, terminal: Terminal, tmp_path: Path, kernels: None
) -> None:
    figure = tmp_path / "latency.png"
    words = (str(gated_run), "--batches", "2", "--seconds", "0", "--figure", str(figure))
    rows = json.loads(terminal.succeed("bench", "latency", *words, "--json"))["rows"]
    macs = {row["variant"]: row["macs_per_image"] for row in rows}
    assert macs["masked"] > macs["dense-eager"]
    assert macs["runtime"] < macs["masked"]
    assert figure.stat().st_size > 1000
