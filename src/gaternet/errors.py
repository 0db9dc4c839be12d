"""What a user did that cannot work, told in one line."""


class UserError(Exception):
    """A mistake in what was asked or given; the message names it and says what to do."""

    exit_code = 1


class UsageError(UserError):
    """A name or flag that does not exist, or does not go with another."""

    exit_code = 2
