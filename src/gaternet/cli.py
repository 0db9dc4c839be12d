"""The command line: the first words find a command, mistakes end in a line, not in a traceback."""

import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import tyro

from gaternet.errors import DamagedCheckpointWarning, UsageError, UserError
from gaternet.flags import REGISTRY
from gaternet.output import printable
from gaternet.spelling import did_you_mean
from gaternet.subcommands import COMMANDS, GROUPS
from gaternet.train_command import train_recipe

_HELP = ("-h", "--help")


def _run(words: Sequence[str]) -> None:
    """Run the command that the first word names; with none, or --help, show them all."""
    name, *rest = words or ["--help"]
    if name in _HELP:
        print(_overview())
    elif name == "--version":
        print(f"gaternet {version('gaternet')}")
    elif name in GROUPS:
        _run_in_group(name, rest)
    elif name not in COMMANDS:
        known = [*COMMANDS, *GROUPS]
        raise UsageError(
            f"there is no command {name!r}; {did_you_mean(name, known, 'see gaternet --help')}"
        )
    elif name == "train" and rest and rest not in ([word] for word in _HELP):
        if rest[0] in _HELP:
            rest = [*rest[1:], rest[0]]
        train_recipe(rest[0], rest[1:])
    else:
        _call(COMMANDS[name], f"gaternet {name}", rest)


def _run_in_group(group: str, words: Sequence[str]) -> None:
    """Run a command of two words; with the first alone, or --help, show all that begin with it."""
    purpose, commands = GROUPS[group]
    name, *rest = words or ["--help"]
    if name in _HELP:
        purposes = {name: _first_line(command) for name, command in commands.items()}
        usage = f"usage: gaternet {group} COMMAND …"
        print("\n".join((usage, "", purpose, "", *_columns(purposes))))
    elif name not in commands:
        hint = did_you_mean(name, commands, f"see gaternet {group} --help")
        raise UsageError(f"there is no command '{group} {name}'; {hint}")
    else:
        _call(commands[name], f"gaternet {group} {name}", rest)


def _call(command: Callable[..., Any], typed: str, words: Sequence[str]) -> None:
    """Call a command with its arguments; typed: its name on the command line."""
    # Where the docstring goes on in a new line, tyro's help would begin a new one too.
    command.__doc__ = re.sub(r"\n {12,}", " ", command.__doc__ or "")
    tyro.cli(command, prog=typed, args=words, registry=REGISTRY)


def _first_line(command: Callable[..., Any]) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _columns(purposes: Mapping[str, str]) -> list[str]:
    """Return names and what is said of each, in two columns."""
    indent = max(len(name) for name in purposes) + 4
    return [
        textwrap.fill(
            text,
            width=80,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
        )
        for name, text in purposes.items()
    ]


def _overview() -> str:
    purposes = {name: _first_line(command) for name, command in COMMANDS.items()}
    purposes |= {name: purpose for name, (purpose, _) in GROUPS.items()}
    lines = _columns(purposes)
    return "\n".join(
        (
            "usage: gaternet COMMAND …",
            "",
            "CNNs that choose their filters per input.",
            "",
            *lines,
            "",
            "gaternet COMMAND --help shows its arguments; gaternet --version, the version.",
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 for a mistake in files, 2 in arguments."""
    try:
        with _warnings_in_a_line():
            _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"gaternet: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has had enough, as `head` has; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"gaternet: {printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("gaternet: interrupted; a training run goes on with --resume", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Tell a damaged checkpoint in a line of its own, without the code that noticed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DamagedCheckpointWarning)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DamagedCheckpointWarning):
                print(f"gaternet: warning: {printable(str(message))}", file=sys.stderr)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell
        yield
