"""What the command line's verbs do, as functions that return plain data."""

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gaternet import model_config, saved_models
from gaternet.binarizers import GateForm
from gaternet.data.augmentation import normalise
from gaternet.data.batches import Images, normalised_batches
from gaternet.data.cache import cache_directory
from gaternet.data.decoding import decode_image, fit_to
from gaternet.data.image_set import split_validation
from gaternet.data.sources import load
from gaternet.errors import UsageError, UserError
from gaternet.evaluation_mode import exact_products
from gaternet.model import GatedModel
from gaternet.runtime.compiler import compile
from gaternet.runtime.export import BATCHES, ExportResult, export
from gaternet.runtime.serving import Serving
from gaternet.trained import located
from gaternet.training.compute import choose_device, hardware, plan
from gaternet.training.config import Compute
from gaternet.training.evaluation import Evaluation, evaluate
from gaternet.training.phases import VALIDATION_SEED
from gaternet.training.processes import ALONE, Processes
from gaternet.training.run import Run, open_run


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure a run on, and how."""

    data: str | None = None
    split: str = "test"
    gates: str | None = None
    """hard, soft or noisy; None: as the run's binarizer has them."""
    threshold: float | None = None
    device: str = "auto"


@dataclass(frozen=True)
class RunEvaluation:
    """A measurement and what it was made of."""

    run: str
    recipe: str
    data: str
    split: str
    threshold: float | None
    evaluation: Evaluation


@dataclass(frozen=True)
class LayerGates:
    """Open gates of one gate point."""

    name: str
    open: int
    total: int


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: classes by falling probability, gates by layer."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    layers: tuple[LayerGates, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """One image: what a model says of it, its gates (G,) uint8, 0 or 1, and what was looked at.

    label: the likeliest class
    pixels: (C, H, W) uint8
    """

    prediction: Prediction
    label: int
    gates: NDArray[np.uint8]
    pixels: torch.Tensor


def evaluate_run(
    path: Path, request: EvaluationRequest, processes: Processes = ALONE
) -> RunEvaluation:
    """Measure the newest checkpoint of a run; of several processes each measures its share.

    Raises UserError where there is none, or where data or flags do not go with it.
    """
    run = open_run(path)
    device = choose_device(request.device)
    model = load_model(path, request, device)
    check_classes(model, run)
    images = split_images(run, request.data, request.split)
    recipe = run.config.recipe
    compute = replace(recipe.compute, sync_batch_norm=False)  # it matters in training only
    measured = evaluate(
        model,
        images,
        recipe.data,
        plan(compute, device, processes),
        GateForm(request.gates) if request.gates else None,
    )
    return RunEvaluation(
        run=str(path),
        recipe=recipe.name,
        data=images.name,
        split=request.split,
        threshold=model.binarizer.threshold if isinstance(model, GatedModel) else None,
        evaluation=measured,
    )


def load_model(path: Path, request: EvaluationRequest, device: torch.device) -> torch.nn.Module:
    """Load a run's network, its threshold where the request has it."""
    if request.threshold is not None and not isfinite(request.threshold):
        raise UsageError(f"--threshold {request.threshold} is not a finite number")
    model = saved_models.load(path).to(device)
    if not isinstance(model, GatedModel) and (
        request.threshold is not None or request.gates is not None
    ):
        raise UsageError(f"{path} is a plain network: --gates and --threshold need gates")
    if isinstance(model, GatedModel) and request.threshold is not None:
        model.binarizer.threshold = request.threshold
    return model


def split_images(run: Run, data: str | None, split: str) -> Images:
    """Load the test, train or validation images of a run, from `data` or from its own hub name.

    Raises UserError where they have other classes than the run's or there is no such split.
    """
    recipe = run.config.recipe
    where = data or recipe.data.hub
    part = recipe.data.test_split if split == "test" else "train"
    if split == "validation":
        _check_held_out(run)
    if where is None:
        raise UsageError(f"{recipe.name} has no hub name: say where its images are with --data")
    images = load(where, recipe.data, part, recipe.data.image_size)
    if images.classes != run.config.classes:
        raise UserError(
            f"{where} has other classes than {run.path} was trained on: "
            f"{_differing(images, run)}; give --data with the same classes"
        )
    if split in ("test", "train"):
        return images
    return split_validation(images, recipe.validation, VALIDATION_SEED)[1]


def _check_held_out(run: Run) -> None:
    if (run.result or {}).get("imported_from"):
        raise UsageError(f"{run.path} was not trained here: which images it held out is not known")
    if not run.config.recipe.validation:
        raise UsageError(f"{run.path} was trained on all images: it has no validation split")


def _differing(images: Images, run: Run) -> str:
    pairs = zip_longest(images.classes, run.config.classes, fillvalue="none")
    number, (here, there) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    return f"class {number} is {here}, not {there}"


def predict_images(path: Path, images: tuple[Path, ...], device: str = "auto") -> list[Prediction]:
    """Classify image files, each scaled and cropped to the size that the run was trained on.

    Raises UserError where a file is no image.
    """
    return [seen.prediction for seen in see_images(path, images, device)[1]]


def see_images(
    path: Path, images: tuple[Path, ...], device: str = "auto"
) -> tuple[torch.nn.Module, list[Seen]]:
    """Return a run's network and what it says of image files; raises as `predict_images` does."""
    run = open_run(path)
    data = run.config.recipe.data
    model = saved_models.load(path).to(choose_device(device))
    check_classes(model, run)
    where = next(model.parameters()).device
    seen = []
    for file in images:
        pixels = fit_to(decode_image(file), data.image_size, data.channels, data.shorter_side)
        seen.append(_see(model, pixels.to(where), run, file))
    return model, seen


def check_classes(model: torch.nn.Module, run: Run) -> None:
    """Raise UserError where a run's own files contradict each other."""
    network = model_config.describe(model).backbone
    named, channels = len(run.config.classes), run.config.recipe.data.channels
    if (network.classes, network.channels) != (named, channels):
        raise UserError(
            f"{run.path}: its config.json has {named} classes and images of {channels} channels, "
            f"its model {network.classes} and {network.channels}: a file of it is another run's"
        )


@torch.inference_mode()
@exact_products()
def _see(model: torch.nn.Module, pixels: torch.Tensor, run: Run, file: Path) -> Seen:
    data = run.config.recipe.data
    output = model(normalise(pixels[None], data.mean, data.std))
    layers: tuple[LayerGates, ...] = ()
    opened = torch.empty(0)
    logits = output
    if isinstance(model, GatedModel):
        logits = output.logits
        opened = output.gates[0]
        layers = tuple(
            LayerGates(name, int((opened[columns] > 0).sum()), columns.stop - columns.start)
            for name, columns in model.slices.items()
        )
    probabilities, order = logits[0].softmax(dim=0).sort(descending=True)
    prediction = Prediction(
        str(file),
        tuple(run.config.classes[i] for i in order.tolist()),
        tuple(probabilities.tolist()),
        layers,
    )
    return Seen(prediction, int(order[0]), (opened > 0).cpu().numpy().astype(np.uint8), pixels)


def export_model(
    path: Path, out: Path, run: Path | None, data: str | None, *, compiled: bool = False
) -> ExportResult:
    """Write the model of a run, or one that was saved, as a file that runs without this package.

    run: the run that says what images and classes are, where `path` is a model that was saved
    compiled: by `gaternet.runtime.compile`; such a file needs the operator of that package

    Raises UserError where there is no model, `export` has something against it, or the images of
    `data` are not of the run's classes.
    """
    model = saved_models.load(path)
    if compiled:
        if out.suffix != ".pt2":
            raise UsageError(
                f"--compiled needs --out FILE.pt2: {out} has no operator that skips filters"
            )
        if not isinstance(model, GatedModel):
            raise UsageError(f"{path} is a plain network: --compiled needs gates")
        model = compile(model)
    if run is None and (located(path) / "config.json").is_file():
        run = path
    if run is None:
        if data is not None:
            raise UsageError(
                f"{path} is not a run: --data needs --run, which says how to scale images"
            )
        return export(model, out)
    opened = open_run(run)
    images = None
    if data is not None:
        found = split_images(opened, data, "test")
        batches = normalised_batches(found, opened.config.recipe.data, "cpu", max(BATCHES))
        images = next(batches)
    return export(model, out, _serving(opened), images=images)


def _serving(run: Run) -> Serving:
    data = run.config.recipe.data
    size = (data.channels, data.image_size, data.image_size)
    return Serving(size, data.mean, data.std, data.shorter_side, classes=run.config.classes)


def environment() -> dict[str, Any]:
    """Return versions, the device, and what `auto` settings come to on it."""
    device = choose_device("auto")
    chosen = plan(Compute(), device)
    return {
        "gaternet": version("gaternet"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "datasets")},
        "device": str(device),
        "hardware": hardware(device),
        "precision": str(chosen.dtype).removeprefix("torch."),
        "compile": chosen.note or chosen.compile,
        "channels_last": chosen.memory_format == torch.channels_last,
        "cache": str(cache_directory()),
    }
