"""Flags that several commands have, and how optional values are read and shown in the help."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args

from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

Switch = FlagCreatePairsOff[bool]
"""On where it is typed."""

SplitName = Literal["test", "train", "validation"]
"""Images of a run's data set."""

RunPath = Annotated[
    Positional[Path], arg(metavar="RUN", help="Run directory, or a name from `gaternet models`.")
]
DataName = Annotated[
    str | None,
    arg(
        metavar="DATA",
        help="Folder or hub name of the images; none: the hub name of the run's data set.",
    ),
]
Threshold = Annotated[
    float | None,
    arg(help="Logit from which a gate is open; lower opens more; none: the run's."),
]
Threads = Annotated[int | None, arg(help="CPU threads; none: as many as PyTorch uses.")]
DeviceName = Annotated[str, arg(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[Switch, arg(help="Print JSON and nothing else.")]

NONE = "none"
"""What is typed for None."""

REGISTRY = ConstructorRegistry()
"""How the types of arguments are read, for `tyro.cli`."""


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read and show `X | None` as X or the word none; tyro's own rule shows {None}|X."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if info.type_origin not in (Union, UnionType) or len(kinds) != 1:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return None

    def read(words: list[str]) -> Any:
        return None if [word.lower() for word in words] == [NONE] else spec.instance_from_str(words)

    choices = (*spec.choices, NONE) if spec.choices else None
    return PrimitiveConstructorSpec(
        nargs=spec.nargs,
        metavar=f"{{{','.join(choices)}}}" if choices else f"{spec.metavar}|{NONE}",
        instance_from_str=read,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: [NONE] if value is None else spec.str_from_instance(value),
        choices=choices,
    )
