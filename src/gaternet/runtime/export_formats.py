"""The two kinds of file that a model is exported to: how each is written, and run to verify it."""

import io
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gaternet.errors import UserError

Runner = Callable[[Tensor], tuple[Tensor, ...]]
"""Images (N, C, H, W) to a file's outputs."""

INPUT = "images"
METADATA_FILE = "metadata.json"
_ONE_FILE = 2**31  # protobuf's limit


class ExportFormat(ABC):
    """A kind of file: what it takes to write one, and what runs it."""

    name: str

    @abstractmethod
    def check_installed(self) -> None:
        """Raise UserError where something is missing that writing takes."""

    @abstractmethod
    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        """Write `program`, whose outputs `about` names, into a new file."""

    @abstractmethod
    def runtime(self) -> str | None:
        """Return what runs such files here and its version; None: nothing does."""

    @abstractmethod
    def open(self, path: Path) -> Runner:
        """Return a function that runs a written file on the CPU."""


class Onnx(ExportFormat):
    """One self-contained .onnx file; its metadata are JSON values by name."""

    name = "ONNX"

    def check_installed(self) -> None:
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        if missing:
            raise UserError(
                f"ONNX files need {' and '.join(missing)}: pip install 'gaternet[export]'"
            )

    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        weights = sum(tensor.nbytes for tensor in program.state_dict.values())
        if weights >= _ONE_FILE:
            raise UserError(
                f"{weights / 2**30:.1f} GiB of weights do not fit into one ONNX file, which ends "
                "at 2 GiB: export to .pt2"
            )
        with quiet():
            converted = _to_onnx(program, about["outputs"])
            properties = {name: json.dumps(value) for name, value in about.items()}
            converted.model.metadata_props.update(properties)
            converted.model.doc_string = about["speed"]
            converted.save(path, external_data=False)

    def runtime(self) -> str | None:
        # Not by the name of a distribution: there are several, onnxruntime-gpu for one.
        onnxruntime = _onnxruntime()
        return None if onnxruntime is None else f"onnxruntime {onnxruntime.__version__}"

    def open(self, path: Path) -> Runner:
        onnxruntime = _onnxruntime()
        assert onnxruntime is not None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait for work without sleeping take it from whoever runs next here.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> tuple[Tensor, ...]:
            outputs = session.run(None, {INPUT: images.numpy()})
            return tuple(torch.from_numpy(output) for output in outputs)

        return run


class TorchExport(ExportFormat):
    """A .pt2 file of torch.export; its metadata are the extra file metadata.json."""

    name = "torch.export"

    def check_installed(self) -> None:
        pass

    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        # In memory first: on a full disk torch's writer ends the process.
        content = io.BytesIO()
        with quiet():
            torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(about)})
        path.write_bytes(content.getbuffer())

    def runtime(self) -> str | None:
        return f"torch {torch.__version__}"

    def open(self, path: Path) -> Runner:
        with quiet():
            return torch.export.load(path).module()


FORMATS: Mapping[str, ExportFormat] = {".onnx": Onnx(), ".pt2": TorchExport()}
"""By the end of a file's name."""


def _to_onnx(program: ExportedProgram, outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    try:
        converted = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes={INPUT: {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"the model has no ONNX form: {cause}; export to .pt2") from error
    assert converted is not None
    return converted


def _onnxruntime() -> ModuleType | None:
    try:
        return import_module("onnxruntime")
    except ImportError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' warnings, of their own inner matters, from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
