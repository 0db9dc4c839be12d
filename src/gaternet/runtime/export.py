"""Export: a model as a file that runs without this package, verified before it is there.

model.onnx    onnxruntime and every other ONNX runtime
model.pt2     torch.export.load
"""

import copy
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gaternet.errors import UsageError, UserError
from gaternet.model import GatedModel
from gaternet.rivals import RandomGates
from gaternet.runtime.export_formats import FORMATS, INPUT, ExportFormat, Runner, quiet
from gaternet.runtime.serving import Serving, describe_serving, metadata
from gaternet.verification import Verification, relative_error, verify

BATCHES = (1, 7)
"""Sizes of the batches that a file is verified on."""


class ExportError(UserError):
    """An exported file does not compute what the model does, and was not kept."""


@dataclass(frozen=True)
class Check:
    """One comparison of a file with its model.

    images: "random" or "given"
    batch: how many
    """

    images: str
    batch: int
    found: Verification


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    bytes: the file's size
    outputs: names of what it computes, `logits` and, where there are gates, `gates`
    verified_with: what ran the file for `checks`; None: nothing that does is installed, and the
        file is not verified
    about: what the file says about itself; "speed" is what its gates do for speed
    """

    path: str
    format: str
    bytes: int
    outputs: tuple[str, ...]
    verified_with: str | None
    checks: tuple[Check, ...]
    about: dict[str, Any]


def export(
    model: nn.Module,
    path: str | Path,
    serving: Serving | None = None,
    *,
    images: Tensor | None = None,
    tolerance: float = 1e-4,
) -> ExportResult:
    """Write a model as .onnx or .pt2: images (N, C, H, W) float32 → logits, and gates (N, G).

    N is open; images are normalised, as for the model itself. The model, gated or plain or any
    module that returns (logits, gates), is exported in evaluation mode and in float32, with the
    threshold that its gates have now, and stays as it is. The file is compared with it before it
    gets its name: on random images, one and seven, and on the first seven of `images`.

    serving: what the file says about images and classes; by default what the backbone says
    tolerance: largest max|Δ logits| / max|logits|

    Raises UsageError where `path` ends otherwise, UserError where it exists or cannot be written,
    where a package is missing or the model cannot be exported, ExportError where the file computes
    something else, ValueError where the input size is not known.
    """
    path = Path(path)
    chosen = _format(path)
    chosen.check_installed()
    reference = _reference(model)
    serving = describe_serving(model) if serving is None else serving
    program, outputs = _capture(reference, serving)
    about = metadata(reference, serving, outputs)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        chosen.write(program, partial, about)
        runtime = chosen.runtime()
        checks: tuple[Check, ...] = ()
        if runtime is not None:
            checks = _checks(reference, chosen.open(partial), serving.input_size, images)
            _refuse_difference(path, checks, tolerance)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where its name is too long, it never was
            partial.unlink()
    size = path.stat().st_size
    return ExportResult(str(path), chosen.name, size, outputs, runtime, checks, about)


def _format(path: Path) -> ExportFormat:
    if path.suffix not in FORMATS:
        raise UsageError(
            f"{path} ends in none of {', '.join(FORMATS)}: give a name that ends in one of them"
        )
    if os.path.exists(path):  # Path's own raises where a name is too long
        raise UserError(f"{path} exists already; choose another name or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: make it first")
    return FORMATS[path.suffix]


def _reference(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float32 and evaluation mode: what the file has to equal."""
    if isinstance(model, GatedModel) and isinstance(model.binarizer, RandomGates):
        raise UserError(
            "random gates are drawn anew for every image: a file of them could not be verified"
        )
    return copy.deepcopy(model).cpu().float().eval()


class _Served(nn.Module):
    """A model as a function of images alone that returns a plain tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return _flat(self.model(images))


def _flat(output: Any) -> tuple[Tensor, ...]:
    """Return what a model returned, logits or a list of feature maps, then gates, as one tuple."""
    if isinstance(output, Tensor):
        return (output,)
    return tuple(tensor for part in output for tensor in _flat(part))


def _output_names(output: Any) -> tuple[str, ...]:
    match output:
        case Tensor():
            return ("logits",)
        case list():  # a backbone used for its features
            return tuple(f"features_{number}" for number in range(len(output)))
        case (logits, Tensor()):
            return (*_output_names(logits), "gates")
    raise UserError(
        f"a {type(output).__name__} is neither logits nor (logits, gates): wrap the model in a "
        "module that returns those"
    )


def _capture(model: nn.Module, serving: Serving) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Return a model's program with an open batch size, and the names of its outputs."""
    images = torch.zeros(2, *serving.input_size)
    shapes = {INPUT: {0: Dim("batch", min=1)}}
    with torch.no_grad(), quiet():
        names = _check_output(model, images, serving)
        try:
            program = torch.export.export(_Served(model), (images,), dynamic_shapes=shapes)
        except Exception as error:  # the tracer's own kinds of failure are beyond listing
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{type(model).__name__} cannot be exported: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the file is not to tell paths of this machine
    return program, names


def _check_output(model: nn.Module, images: Tensor, serving: Serving) -> tuple[str, ...]:
    """Return the names of a model's outputs; raise UserError where images or classes do not fit."""
    try:
        output = model(images)
    except RuntimeError as error:
        size, reason = serving.input_size, str(error).splitlines()[0]
        raise UserError(f"{type(model).__name__} takes no images {size}: {reason}") from error
    names = _output_names(output)
    logits, classes = _flat(output)[0], len(serving.classes)
    if names[0] == "logits" and classes not in (0, logits.shape[1]):
        raise UserError(
            f"{classes} names of classes for {logits.shape[1]} logits: is --run another model's?"
        )
    return names


@torch.no_grad()
def _checks(
    model: nn.Module, run: Runner, input_size: tuple[int, int, int], images: Tensor | None
) -> tuple[Check, ...]:
    """Compare a file with its model on batches of each size, random and given."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(max(BATCHES), *input_size, generator=random)
    given = [] if images is None else [("given", images.cpu().float())]
    batches = {
        (name, len(some[:size])): some[:size]
        for name, some in [("random", noise), *given]
        for size in BATCHES
    }
    return tuple(
        Check(name, size, _compare(model, run, batch)) for (name, size), batch in batches.items()
    )


def _compare(model: nn.Module, run: Runner, images: Tensor) -> Verification:
    actual = run(images)
    if isinstance(model, GatedModel):
        logits = actual[0] if len(actual) == 2 else list(actual[:-1])
        return verify(model, lambda _: (logits, actual[-1]), images)
    output = model(images)
    expected = _flat(output)
    if "gates" not in _output_names(output):
        return Verification(relative_error(actual, expected), gates=0, flips=0, rounding_flips=0)
    gates = expected[-1]
    return Verification(
        relative_error(actual[:-1], expected[:-1]),
        gates=gates.numel(),
        flips=int((actual[-1] != gates).sum()),
        rounding_flips=0,
    )


def _refuse_difference(path: Path, checks: tuple[Check, ...], tolerance: float) -> None:
    for check in checks:
        found = check.found
        if not found.agrees(tolerance):
            unexplained = found.flips - found.rounding_flips
            raise ExportError(
                f"{path} was not written: on {check.batch} {check.images} images its logits are "
                f"{found.logit_error:.1e} off, relatively, where {tolerance:.0e} is allowed, and "
                f"{unexplained} of {found.gates} gates differ beyond rounding"
            )
