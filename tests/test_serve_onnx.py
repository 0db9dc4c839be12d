"""examples/serve_onnx.py, run where neither PyTorch nor this package can be imported."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gaternet import cli, saved_models
from gaternet.commands import predict_images
from gaternet.runtime.export import export
from gaternet.runtime.serving import Serving
from small_runs import tiny_backbone
from terminal import Terminal

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_onnx.py"


@pytest.fixture(scope="module")
def exported(gated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    assert cli.main(["export", str(gated_run), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torch and gaternet raise ImportError."""
    blocked = tmp_path_factory.mktemp("blocked")
    for name in ("torch", "gaternet"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    return {**os.environ, "PYTHONPATH": str(blocked)}


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8)
    file = tmp_path / "photograph.png"
    Image.fromarray(pixels).resize((46, 74)).save(file)
    return file


def serve(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_it_says_what_predict_says(
    exported: Path, gated_run: Path, alone: dict[str, str], digit: Path, photograph: Path
) -> None:
    done = serve(alone, exported, digit, photograph)
    assert (done.returncode, done.stderr) == (0, "")
    parts = done.stdout.split(f"{photograph}\n")
    for part, predicted in zip(
        parts, predict_images(gated_run, (digit, photograph), "cpu"), strict=True
    ):
        shown = re.findall(r"^ +([\d.]+) %  (.+)$", part, re.MULTILINE)
        likeliest = list(zip(predicted.classes, predicted.probabilities, strict=True))[:5]
        assert [name for _, name in shown] == [name for name, _ in likeliest]
        for (percent, _), (_, probability) in zip(shown, likeliest, strict=True):
            assert float(percent) == pytest.approx(100 * probability, abs=0.1)
        gates = re.findall(r"^ +(\d+) of (\d+) +(\S+)$", part, re.MULTILINE)
        assert gates == [(str(x.open), str(x.total), x.name) for x in predicted.layers]


@pytest.fixture
def server(exported: Path, alone: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, str(EXAMPLE), str(exported), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=alone, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def post(url: str, content: bytes) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, content), timeout=30) as answer:
        return json.load(answer)


def test_it_answers_over_http(server: str, gated_run: Path, digit: Path) -> None:
    (predicted,) = predict_images(gated_run, (digit,), "cpu")
    found = post(server, digit.read_bytes())
    assert found["classes"][0]["name"] == predicted.classes[0]
    probability = pytest.approx(predicted.probabilities[0], abs=1e-4)
    assert found["classes"][0]["probability"] == probability
    with pytest.raises(urllib.error.HTTPError, match="400: no image") as refused:
        post(server, b"not an image")
    refused.value.close()
    assert post(server, digit.read_bytes()) == found


def test_a_file_that_does_not_say_how_images_are_scaled(
    alone: dict[str, str], digit: Path, tmp_path: Path
) -> None:
    export(tiny_backbone(), tmp_path / "model.onnx", Serving((1, 8, 8)))
    done = serve(alone, tmp_path / "model.onnx", digit)
    assert done.returncode == 1
    assert re.fullmatch(r"\S+ does not say how images are scaled: [^\n]+\n", done.stderr)


def test_the_command_line_exports_a_run(
    gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    out = tmp_path / "model.pt2"
    shown = terminal.succeed("export", gated_run, "--out", out, "--data", "digits")
    assert f"{out}: torch.export, " in shown
    for images in ("1 random image", "7 random images", "1 given image", "7 given images"):
        assert f"{images}: logits within 0.0e+00 of the model's" in shown
    assert "masked: every filter is computed" in shown
    assert "exists already" in terminal.fail(1, "export", gated_run, "--out", out)


def test_a_saved_model_takes_what_it_does_not_know_from_a_run(
    gated_run: Path, terminal: Terminal, tmp_path: Path
) -> None:
    saved, out = tmp_path / "saved", tmp_path / "a.pt2"
    saved_models.save(saved_models.load(gated_run), saved)
    output = json.loads(terminal.succeed("export", saved, "--out", out, "--json"))
    assert (output["about"]["mean"], output["about"]["classes"]) == (None, [])
    words = ("export", saved, "--out", tmp_path / "b.pt2", "--run", gated_run, "--json")
    output = json.loads(terminal.succeed(*words))
    assert output["about"]["mean"] == [0.3056]
    assert len(output["about"]["classes"]) == 10
    told_off = terminal.fail(2, "export", saved, "--out", tmp_path / "c.pt2", "--data", "digits")
    assert "--data needs --run" in told_off


def test_grey_of_16_bits_is_what_predict_sees(
    exported: Path, gated_run: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    file = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(file)
    done = serve(alone, exported, file)
    assert (done.returncode, done.stderr) == (0, "")
    (predicted,) = predict_images(gated_run, (file,), "cpu")
    shown = re.findall(r"^ +([\d.]+) %  (.+)$", done.stdout, re.MULTILINE)
    assert float(shown[0][0]) == pytest.approx(100 * predicted.probabilities[0], abs=0.1)
    assert shown[0][1] == predicted.classes[0]
