"""How words become values: one parser of typed arguments for every command."""

from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

NONE = "none"
"""What is typed for None."""

T = TypeVar("T")
_REGISTRY = ConstructorRegistry()


def parse(
    target: Callable[..., T],
    prog: str,
    words: Sequence[str],
    *,
    default: T | None = None,
    description: str | None = None,
) -> T:
    """Call `target`, a function or a dataclass, with what `words` say; a wrong word ends the process.

    prog: the command, for its help
    default: a dataclass's values where nothing is said
    description: of the help; None: the docstring's
    """
    given = {} if default is None else {"default": default}
    return tyro.cli(
        target, prog=prog, args=list(words), description=description, registry=_REGISTRY, **given
    )


@_REGISTRY.primitive_rule
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
