"""What is said of a user's own images, against the model's own gates and the analyzed images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gaternet import cli, saved_models
from gaternet.analysis.saved import read_record
from gaternet.data.augmentation import normalise
from gaternet.data.decoding import decode_image, fit_to
from gaternet.data.settings import DIGITS
from gaternet.explanation import ClassMeans, _dependent, _rated, explain_images
from gaternet.explanation_terminal import cells
from gaternet.model import GaterNet
from terminal import Terminal


@pytest.fixture(scope="module")
def analyzed_run(gated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run whose test images were analyzed."""
    path = tmp_path_factory.mktemp("analyzed") / "run"
    shutil.copytree(gated_run, path)
    assert cli.main(["analyze", str(path), "--data", "digits", "--device", "cpu", "--no-tsne"]) == 0
    return path


def gates_of(run: Path, image: Path) -> np.ndarray:
    model = saved_models.load(run)
    assert isinstance(model, GaterNet)
    pixels = fit_to(decode_image(image), 8, 1)
    with torch.no_grad():
        gates: np.ndarray = model(normalise(pixels[None], DIGITS.mean, DIGITS.std)).gates[0].numpy()
    return gates


def test_gates_are_the_model_s(gated_run: Path, digit: Path) -> None:
    found = explain_images(gated_run, (digit, digit), "cpu")
    assert found.compared is None
    for view in found.images:
        gates = [gate for layer in view.layers for gate in layer.gates]
        assert gates == gates_of(gated_run, digit).tolist()
        assert all(layer.distance is None for layer in view.layers)
    assert found.page.shown_gates().tolist() == list(range(len(gates)))
    assert found.page.images.shape == (2, 8, 8, 3)


def test_distance_is_from_the_mean_of_the_class_predicted(analyzed_run: Path, digit: Path) -> None:
    (view,) = explain_images(analyzed_run, (digit,), "cpu").images
    record = read_record(analyzed_run / "analysis" / "test" / "gates")
    label = record.classes.index(view.prediction.classes[0])
    members = record.gates.gates()[record.labels == label].astype(float)
    start = 0
    for layer in view.layers:
        columns = slice(start, start + len(layer.gates))
        mean = members[:, columns].mean(axis=0)
        away = np.abs(gates_of(analyzed_run, digit)[columns] - mean).sum()
        assert layer.distance == pytest.approx(away, abs=1e-4)
        usual = np.abs(members[:, columns] - mean).sum(axis=1).mean()
        assert layer.usual == pytest.approx(usual, abs=1e-4)
        start += len(layer.gates)


def test_gates_that_depend_on_the_input_are_shown(analyzed_run: Path, digit: Path) -> None:
    """Of one image all gates are the same: what depends on the input is what many images say."""
    record = read_record(analyzed_run / "analysis" / "test" / "gates")
    page = explain_images(analyzed_run, (digit,), "cpu").page
    own = gates_of(analyzed_run, digit).astype(np.int8)
    seen = np.concatenate((record.gates.gates().astype(np.int8), own[None]))
    assert page.shown_gates().tolist() == np.flatnonzero(np.ptp(seen, axis=0)).tolist()
    assert page.rates is not None
    assert page.rated is not None
    assert page.rates.shape == (1, len(own))
    members = record.gates.gates()[record.labels == page.rated[0]]
    assert page.rates[0] == pytest.approx(members.mean(axis=0))


def test_classes_without_images_have_no_mean() -> None:
    rates = np.array([[0, 1, 1, 0.5], [0, 1, 0.2, 1], [np.nan] * 4], dtype=np.float32)
    means = ClassMeans(rates, "images")
    labels = np.array([2, 0, 2])
    rated = _rated(means, labels)
    assert rated is not None
    assert rated.tolist() == [0]
    assert _dependent(np.array([[0, 1, 1, 1]]), rates).tolist() == [2, 3]
    assert _dependent(np.array([[1, 0, 1, 1]]), rates).tolist() == [0, 1, 2, 3]


def test_means_of_another_network_are_not_taken(
    analyzed_run: Path, digit: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(analyzed_run, tmp_path / "run")
    assert explain_images(path, (digit,), "cpu").compared == "500 test images"
    for file in path.glob("analysis/*/gates/gates.json"):
        about = json.loads(file.read_text())
        about["source"]["weights"] = "of another one"
        file.write_text(json.dumps(about))
    assert explain_images(path, (digit,), "cpu").compared is None


def test_command(terminal: Terminal, analyzed_run: Path, digit: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "why.html"
    output = terminal.succeed("predict", analyzed_run, digit, "--explain", page)
    assert "stage3" in output
    assert "▇" in output
    assert "test images" in output
    assert page.read_text().startswith("<!DOCTYPE html>")
    (found,) = json.loads(terminal.succeed("predict", analyzed_run, digit, "--explain", "--json"))
    assert found["layers"][0]["open"] == sum(found["layers"][0]["gates"])


def test_mistakes(terminal: Terminal, gated_run: Path, plain_run: Path, digit: Path) -> None:
    assert "plain network" in terminal.fail(2, "predict", plain_run, digit, "--explain")
    assert "ends in .html" in terminal.fail(2, "predict", gated_run, digit, "--explain", digit)
    assert "one FILE.html" in terminal.fail(
        2, "predict", gated_run, digit, "--explain", "a.html", "b.html"
    )
    for page in (digit / "why.html", digit.with_name("n" * 248 + ".html")):
        assert "cannot write" in terminal.fail(1, "predict", gated_run, digit, "--explain", page)
    output = terminal.succeed("predict", gated_run, digit, "--explain")
    assert "gaternet analyze" in output


def test_cells() -> None:
    assert cells((1, 0, 1)) == "▇·▇"
    assert cells((0,) * 8 + (1,) * 8 + (1, 0, 0, 0, 0, 0, 0, 0) + (1, 0) * 4, 4) == "·█▁▄"
    assert len(cells((1, 0, 0) * 67)) == 32
