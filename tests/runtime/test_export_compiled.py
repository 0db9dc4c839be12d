"""A compiled model as a .pt2 file: it loads where the operator is, and says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import gaternet
from gaternet.backbones import BackboneConfig, create
from gaternet.errors import UsageError
from gaternet.gate_flow import follow
from gaternet.gate_points import GatePoint
from gaternet.graph import trace
from gaternet.runtime.export_formats import METADATA_FILE
from gaternet.runtime.lowering import lower
from gaternet.runtime.serving import OPEN_ONLY
from gaternet.runtime.units import find_units


@pytest.fixture
def model() -> gaternet.GaterNet:
    torch.manual_seed(0)
    backbone = create(BackboneConfig("resnet8", 10))
    points = gaternet.find_gate_points(gaternet.trace(backbone), "both", 8)
    gater = gaternet.Gater(create(BackboneConfig("resnet8-narrow", 0)), 8, input_size=16)
    return gaternet.GaterNet(backbone, gater, points).eval()


def test_a_compiled_model_is_exported_with_an_open_batch(
    model: gaternet.GaterNet, tmp_path: Path
) -> None:
    compiled = gaternet.runtime.compile(model)
    file = tmp_path / "model.pt2"
    result = gaternet.export(compiled, file, gaternet.Serving((3, 32, 32)))
    assert [check.batch for check in result.checks] == [1, 7]
    assert all(check.found.agrees(1e-6) for check in result.checks)
    extra = {METADATA_FILE: ""}
    program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra[METADATA_FILE])["speed"] == OPEN_ONLY
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    called = {str(node.target) for graph in graphs for node in graph.nodes}
    assert any("gated_conv2d" in name for name in called)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        logits, gates = program.module()(images)
        expected = model(images, gates=gates).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = program.module()(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, again, (logits, gates)))


@pytest.mark.parametrize("skipping", [True, False])
def test_linear_layers_are_exported_in_both_forms(skipping: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = (nn.Flatten(), nn.Linear(16 * 16, 40), nn.ReLU(), nn.Linear(40, 5))
    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), *classifier).eval()
    flow = follow(trace(backbone, (3, 8, 8)), [GatePoint("0", 16)])
    units = find_units(flow, backbone)
    body = lower(flow, backbone, units, dense=() if skipping else units)

    class Gated(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            gates = (images.mean((2, 3)) > 0).float().repeat(1, 6)[:, :16]
            logits: Tensor = body(images, gates)
            return logits

    file = tmp_path / "model.pt2"
    result = gaternet.export(Gated(), file, gaternet.Serving((3, 8, 8)))
    assert all(check.found.agrees(1e-6) for check in result.checks)
    nodes = torch.export.load(file).graph.nodes
    skips = [node for node in nodes if "gated_conv2d" in str(node.target)]
    assert len(skips) == (3 if skipping else 0)


def test_it_needs_the_operator(model: gaternet.GaterNet, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    gaternet.export(gaternet.runtime.compile(model), file, gaternet.Serving((3, 32, 32)))
    script = (
        "import sys, torch; {}torch.export.load(sys.argv[1]).module()(torch.zeros(2, 3, 32, 32))"
    )
    for first, succeeds in (("", False), ("import gaternet.runtime; ", True)):
        command = [sys.executable, "-c", script.format(first), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == succeeds, done.stderr


def test_only_pt2_can_hold_it(gated_run: Path, tmp_path: Path) -> None:
    from gaternet.commands import export_model

    with pytest.raises(UsageError, match=r"--compiled needs --out FILE\.pt2"):
        export_model(gated_run, tmp_path / "m.onnx", None, None, compiled=True)
