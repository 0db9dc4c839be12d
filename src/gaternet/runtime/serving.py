"""What an exported file says about itself, for whoever serves it without this package."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from torch import nn

from gaternet.graph import own_input_size
from gaternet.model import GatedModel
from gaternet.runtime.compiled import CompiledGaterNet

MASKED = (
    "masked: every filter is computed and what a closed gate makes is multiplied by 0, so this "
    "file is no faster than the same network without gates; only gaternet.runtime skips filters"
)
PLAIN = "plain: a network without gates"
OPEN_ONLY = (
    "compiled: only open filters are computed, by the operator gaternet::gated_conv2d; "
    "import gaternet.runtime before this file is loaded"
)
AS_GIVEN = "as the exported module computes it"


@dataclass(frozen=True)
class Serving:
    """How images become what the network takes, and what its logits mean.

    input_size: (C, H, W) of an image
    mean, std: of each channel, of values in [0, 1]; None: not known
    shorter_side: pixels that an image's shorter side is scaled to before the centre is cut out;
        None: the network's own size
    interpolation: "bilinear" or "bicubic", antialiased
    classes: names in the order of the logits; empty: not known

    Raises ValueError where mean or std have not one value for each channel.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    shorter_side: int | None = None
    interpolation: str = "bilinear"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.input_size[0]:
                raise ValueError(f"{name} is {values}; images have {self.input_size[0]} channels")


def describe_serving(model: nn.Module) -> Serving:
    """Return what a model's backbone says of itself; timm's say all but the classes' names.

    Raises ValueError where its input size is not known.
    """
    backbone = model.backbone if isinstance(model, GatedModel) else model
    size = model.input_size if isinstance(model, GatedModel) else own_input_size(backbone)
    timms: Mapping[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    known = {"mean", "std", "crop_pct", "interpolation"} <= timms.keys()
    if not known or len(timms["mean"]) != size[0]:  # timm's own are of three channels
        return Serving(size)
    return Serving(
        size,
        tuple(timms["mean"]),
        tuple(timms["std"]),
        int(size[1] / timms["crop_pct"]),
        timms["interpolation"],
    )


def metadata(model: nn.Module, serving: Serving, outputs: tuple[str, ...]) -> dict[str, Any]:
    """Return all that a file says about itself, as JSON's own types."""
    values = {
        "gaternet": version("gaternet"),
        "model": type(model).__name__,
        "input": "images: (batch, channels, height, width) float32, (pixels / 255 - mean) / std",
        "outputs": outputs,
        "speed": speed_label(model, outputs),
        **asdict(serving),
    }
    if isinstance(model, GatedModel):
        values["threshold"] = model.binarizer.threshold
        values["gate_form"] = model.binarizer.form.value
        values["gate_points"] = [
            {"name": point.name, "channels": point.channels, "gates": point.gates}
            for point in model.points
        ]
    return values


def speed_label(model: nn.Module, outputs: tuple[str, ...]) -> str:
    """Return what the gates of an exported file do for its speed, in words."""
    if isinstance(model, GatedModel):
        return MASKED
    if isinstance(model, CompiledGaterNet):
        return MASKED if model.report.masked_because else OPEN_ONLY
    return AS_GIVEN if "gates" in outputs else PLAIN
