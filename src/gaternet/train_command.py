"""`gaternet train`, whose flags are its recipe's, and how a training that is stopped ends."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gaternet.errors import Interrupted, UsageError, UserError

if TYPE_CHECKING:
    from gaternet.training.interruption import Interruption


def train_recipe(name: str, words: Sequence[str]) -> None:
    """Train the recipe `name` as the words behind it say; raise UserError for a mistake in them."""
    from gaternet.arguments import applied, lasting, parse, resumption, sources
    from gaternet.recipes import get

    if name.startswith("-"):
        raise UsageError(f"the recipe comes first: gaternet train RECIPE {name} …")
    recipe = get(name)
    arguments = parse(recipe, words)
    recipe = applied(recipe, arguments)
    resuming = resumption(arguments)
    if arguments.seeds:
        from gaternet.training.seeds import Several, train_several

        typed = (name, *words)
        several = Several(
            arguments.seeds, arguments.out, typed, arguments.device, arguments.at_once
        )
        train_several(recipe, sources(arguments), several)
        return
    if arguments.at_once is not None:
        raise UsageError("--at-once goes with --seeds")

    from gaternet.training.compute import choose_device
    from gaternet.training.phases import Options, train
    from gaternet.training.processes import begun_before, joined
    from gaternet.training.run import open_run

    command = shlex.join(["gaternet", "train", name, *lasting(words)])
    with (
        interruptible(arguments.out, f"{command} --resume") as interruption,
        joined(choose_device(arguments.device)) as processes,
    ):
        options = Options(
            arguments.device,
            command,
            processes=processes,
            checkpoint_minutes=arguments.checkpoint_minutes,
            interruption=interruption,
            resumption=resuming,
        )
        again = begun_before(arguments.out, processes)
        if again and (ended := open_run(arguments.out)).result:
            if ended.config.recipe != recipe:
                raise UserError(
                    f"{arguments.out} holds a run with other settings; choose another --out"
                )
            return  # a process was lost when all had been written
        resume = arguments.resume or again
        train(recipe, sources(arguments), arguments.out, options, resume=resume)


@contextmanager
def interruptible(out: Path, again: str) -> Iterator["Interruption"]:
    """Let SIGTERM and Ctrl-C end a training into `out`, saved, with a line that says how to go on.

    again: the command that goes on with it
    """
    from gaternet.training.interruption import Interruption

    with Interruption().listening() as interruption:
        try:
            yield interruption
        except Interrupted as stopped:
            if int(os.environ.get("RANK", "0")):
                sys.exit(stopped.exit_code)  # the first process says it
            begun = any(any(out.glob(file)) for file in ("config.json", "*/config.json"))
            hint = f"go on with: {again}" if begun else "nothing was written yet"
            print(f"gaternet: {stopped}; {hint}", file=sys.stderr)
            sys.exit(stopped.exit_code)
