"""Models, runs and plans that were made to do harm: told in one line, in little memory and time."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bounded
import gaternet
from bounded import HUGE, Outcome, a_pipe, assert_refused, open_each, plan_of, sparse
from gaternet.backbones.resnet_cifar import CifarResNet
from small_runs import sign_again


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change model.json's values, and sign it again."""

    def harm(model: Path) -> None:
        bounded.edited("model.json", change)(model)
        sign_again(model)

    return harm


def backbone(**values: object) -> Callable[[Path], None]:
    return edited(lambda model: model["backbone"].update(values))


def gater(**values: object) -> Callable[[Path], None]:
    return edited(lambda model: model["gater"].update(values))


def point(**values: object) -> Callable[[Path], None]:
    return edited(lambda model: model["points"][0].update(values))


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        (model / name).write_bytes(content)
        if name != "manifest.json":
            sign_again(model)

    return harm


def listed(name: str, entry: object) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        file = model / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: entry}))

    return harm


def linked(model: Path) -> None:
    outside = model.parent / "outside.json"
    shutil.move(model / "model.json", outside)
    (model / "model.json").symlink_to(outside)


def header(tensors: object, size: int = 0) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def weights(content: bytes) -> Callable[[Path], None]:
    return replaced("model.safetensors", content)


def long_header(model: Path) -> None:
    """A header of a gigabyte, in a file that is as large and takes no room."""
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**30))
    os.truncate(file, 2**30 + 8)
    sign_again(model)


def wide_heads(model: Path) -> None:
    """Local gates of wide heads, stored as if each saw one channel."""
    values = json.loads((model / "model.json").read_text())
    values |= {"gater": None, "local": {"granularity": "branches", "bottleneck": WIDE}}
    head = {"fc1.weight": [WIDE, 1], "fc1.bias": [WIDE], "fc2.weight": [1, WIDE], "fc2.bias": [1]}
    points = range(len(values["points"]))
    described(model, values, {f"heads.{i}.{k}": shape for i in points for k, shape in head.items()})


def wide_gater(model: Path) -> None:
    """A wide gater that does not say how much it sees, stored as if it were one number."""
    values = json.loads((model / "model.json").read_text())
    values["gater"] |= {"features": None, "bottleneck": WIDE}
    values["points"] = values["points"][:1]
    gates = values["points"][0]["channels"]
    head = {"fc1.weight": [WIDE, 1], "fc1.bias": [WIDE], "fc2.weight": [gates, WIDE]}
    described(model, values, {f"gater.head.{name}": shape for name, shape in head.items()})


def described(model: Path, values: dict[str, Any], heads: dict[str, list[int]]) -> None:
    """Store other values, and of the weights the networks' own and zeros for some heads."""
    weights = load_file(model / "model.safetensors")
    weights = {name: t for name, t in weights.items() if not name.startswith("gater.head")}
    weights |= {name: torch.zeros(shape) for name, shape in heads.items()}
    (model / "model.json").write_text(json.dumps(values))
    save_file(weights, model / "model.safetensors")
    sign_again(model)


def one_more(entry: dict[str, Any]) -> Callable[[Path], None]:
    """Put a tensor without numbers behind the others."""

    def harm(model: Path) -> None:
        file = model / "model.safetensors"
        content = file.read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        start = len(content) - end
        tensors = json.loads(content[8:end]) | {"more": entry | {"data_offsets": [start, start]}}
        file.write_bytes(header(tensors) + content[end:])
        sign_again(model)

    return harm


def other_numbers(dtype: torch.dtype) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        network = gaternet.load(model).state_dict()
        save_file({k: t.to(dtype) for k, t in network.items()}, model / "model.safetensors")
        sign_again(model)

    return harm


def larger_before(model: dict[str, Any]) -> None:
    model["backbone"]["name"] = "shake-shake-26-2x9998d"
    model["plan"] = plan_of("stage1.block1.bn2", 4, 4)


WIDE = 2**20
MANY = {f"t{i}": tensor([0], 0, 0) for i in range(40_000)}
SOME = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'

MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "depth": (backbone(name=f"resnet{HUGE + 4}"), r"unknown network 'resnet10*4'"),
    "four digits": (backbone(name="resnet9998"), "layers of resnet9998"),
    "width": (backbone(name="shake-shake-26-2x999998d"), "unknown network"),
    "hub": (backbone(name="timm/hf-hub:someone/model"), "timm .* knows no model"),
    "folder": (backbone(name="timm/local-dir:/tmp"), "timm .* knows no model"),
    "large": (backbone(name="timm/resnetv2_152x4_bit"), "weights of another model"),
    "long name": (backbone(name="r" * 2**20), "a text in it has 1,048,576 characters"),
    "classes": (backbone(classes=HUGE), r"fc\.bias is \(10,\) there and \(1000000000,\) here"),
    "no classes": (backbone(classes=-1), "-1 classes: there is no such network"),
    "channels": (backbone(channels=HUGE), r"conv\.weight .* and \(\d+, 1000000000, 3, 3\) here"),
    "no channels": (backbone(channels=0), "0 channels"),
    "side": (backbone(image_size=HUGE), "images of 1000000000 pixels"),
    "bottleneck": (gater(bottleneck=HUGE), r"gater\.head\.fc1\.weight .* here"),
    "features": (gater(features=HUGE), r"gater\.head\.fc1\.weight .* here"),
    "wide heads": (wide_heads, r"heads\.0\.fc1\.weight is \(1048576, 1\) there"),
    "wide gater": (wide_gater, r"gater\.head\.fc1\.weight is \(1048576, 1\) there"),
    "glance": (gater(input_size=HUGE), "images of 1000000000 pixels"),
    "no extractor": (edited(lambda m: m["gater"].pop("extractor")), "Field required"),
    "neither": (edited(lambda m: m.update(gater=None)), "weights of another model"),
    "point": (point(channels=HUGE), r"gater\.head\.fc2\.weight .* here"),
    "block": (point(block=-1), "not a multiple of blocks of -1"),
    "number of a gate": (point(channels=1, gate_of=[10**12]), "gate_of numbers the gates"),
    "points": (
        edited(lambda m: m.update(points=[{"name": "a", "channels": 1}] * 100_000)),
        "weights of another model|no such model",
    ),
    "ten million points": (
        replaced("model.json", b'{"points":[' + b'{"name":"a","channels":1},' * 10**7 + b"0]}"),
        "such a file has at most",
    ),
    "digits": (backbone(classes=10**400), "no such model can be built"),
    "more digits": (replaced("model.json", b"1" * 10_000), "model.json is damaged"),
    "exponent": (replaced("model.json", b'{"threshold": 1e999}'), "1e999 is too large"),
    "endless": (
        edited(lambda m: m.update(threshold=float("-inf"))),
        "-Infinity is not allowed in JSON",
    ),
    "no number": (edited(lambda m: m.update(threshold=float("nan"))), "NaN is not allowed in JSON"),
    "text for a number": (backbone(classes="10"), "backbone.classes: .* valid integer"),
    "true for a number": (backbone(channels=True), "backbone.channels: .* valid integer"),
    "nothing for a number": (backbone(classes=None), "backbone.classes: .* valid integer"),
    "unknown value": (backbone(code="import os"), "backbone.code: Unexpected"),
    "a list": (replaced("model.json", b"[]"), "not a model of this version"),
    "depth of lists": (replaced("model.json", b"[" * 10**5), "more than 32 levels"),
    "depth of objects": (replaced("model.json", b'{"a":' * 10**5), "more than 32 levels"),
    "lists": (replaced("model.json", b"[" + b"[]," * 1_390_000 + b"[]]"), "131,072 objects"),
    "a key twice": (replaced("model.json", b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "bytes": (replaced("model.json", b"\xff\xfe{}"), "not text in UTF-8"),
    "2 GB of JSON": (sparse("model.json", 2**31), r"model\.json has 2,147,483,648 bytes"),
    "plan": (edited(lambda m: m.update(plan=plan_of("a", 10**12, 0))), "plan.points.0"),
    "backbone of a plan": (edited(larger_before), "before compression"),
    "escape": (listed("../../etc/passwd", {"sha256": "0"}), r"names '\.\./\.\./etc/passwd'"),
    "absolute": (listed("/etc/passwd", {"sha256": "0"}), "names '/etc/passwd'"),
    "parent": (listed("..", {"sha256": "0"}), "is missing"),
    "link": (linked, r"model\.json is a link out of its checkpoint"),
    "pipe": (a_pipe("model.json"), r"model\.json is missing"),
    "pipe for a manifest": (a_pipe("manifest.json"), r"manifest\.json is not a file but a pipe"),
    "2 GB of manifest": (sparse("manifest.json", 2**31), "has 2,147,483,648 bytes"),
    "manifest of numbers": (listed("a", 3), "manifest.json is damaged: a: "),
    "sizes as text": (listed("a", {"sha256": "0", "bytes": "3"}), "damaged: a.bytes"),
    "manifest in depth": (replaced("manifest.json", b"[" * 10**5), "more than 32 levels"),
    "header": (weights(struct.pack("<Q", 2**63) + b"{}"), "is not a safetensors file"),
    "half a header": (weights(b"\1\0"), "is not a safetensors file"),
    "1 GB of header": (long_header, "and a header of 1,073,741,824"),
    "entries": (weights(header(MANY)), "weights of another model"),
    "beyond the file": (weights(header({"a": tensor([HUGE], 0, 4 * HUGE)})), "cannot be read"),
    "shape": (weights(header({"a": tensor([HUGE], 0, 8)}, 8)), "cannot be read"),
    "beyond 64 bits": (one_more(tensor([0, 2**64 - 1], 0, 0)), "'more' has a side of more than"),
    "overflow": (weights(header({"a": tensor([2**62, 4], 0, 8)}, 8)), "cannot be read"),
    "overlap": (
        weights(header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, 12)),
        "cannot be read.*offset",
    ),
    "hole": (
        weights(header({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, 12)),
        "cannot be read.*offset",
    ),
    "a tensor twice": (
        weights(header(b'{"a":' + SOME + b',"a":' + SOME + b"}")),
        "in its header, 'a' is there twice",
    ),
    "header in depth": (weights(header(b"[" * 10**5)), "in its header, .* 32 levels"),
    "integers": (other_numbers(torch.int32), "is torch.int32 there and torch.float32 here"),
    "complex numbers": (other_numbers(torch.complex64), "is torch.complex64 there"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    network = gaternet.GaterNet(
        CifarResNet(8, classes=10), gaternet.Gater(CifarResNet(8, classes=0), bottleneck=4)
    )
    gaternet.save(network, folder / "sound")
    for name, (harm, _) in MODELS.items():
        shutil.copytree(folder / "sound", folder / name)
        harm(folder / name)
    setup = f"import timm, gaternet; read = gaternet.load; read({str(folder / 'sound')!r})"
    return open_each(setup, {name: folder / name for name in MODELS})


@pytest.mark.parametrize("name", MODELS)
def test_hostile_model_is_refused_in_little_memory(name: str, outcomes: dict[str, Outcome]) -> None:
    assert_refused(outcomes[name], MODELS[name][1])
