"""What tests type and what they read then."""

import re
from pathlib import Path

import pytest

from gaternet import cli

QUICK = ["--epochs", "1", "--schedule.batch-size", "128", "--device", "cpu"]
PLAIN = ["train", "digits/resnet8", *QUICK]
GATED = ["train", "digits/resnet8-gated", *QUICK, "--from-scratch"]


class Terminal:
    """Runs commands and keeps what they wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def succeed(self, *words: str | Path) -> str:
        self.capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 0
        return self.capsys.readouterr().out

    def fail(self, code: int, *words: str | Path) -> str:
        """Return the one line that a mistake is told in."""
        self.capsys.readouterr()
        assert cli.main([str(word) for word in words]) == code
        out, err = self.capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"gaternet: [^\n]+\n", err)
        return err

    def help(self, *words: str) -> str:
        """Return what --help shows, in one line of words."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([*words, *([] if "--help" in words else ["--help"])])
        assert stopped.value.code == 0
        return _words(self.capsys.readouterr().out)

    def misuse(self, *words: str | Path) -> str:
        """Return what the parser of arguments says, in one line of words."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        assert stopped.value.code == 2
        out, err = self.capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return _words(err)


def _words(boxes: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", boxes).split())
