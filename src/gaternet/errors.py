"""What a user did that cannot work, said in one line, and what ended or misled a run."""

import signal


class UserError(Exception):
    """A mistake in what was asked or given; the message names it and says what to do."""

    exit_code = 1


class UsageError(UserError):
    """A name or flag that does not exist, or does not go with another."""

    exit_code = 2


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint was passed over for the one before it."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ended the training; no `Exception`, so that nobody takes it for a fault."""

    def __init__(self, number: int, detail: str = "") -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}{detail}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 143 or 130."""
        return 128 + self.number
