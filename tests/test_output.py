"""What others read is what it says: no escapes that a terminal obeys, JSON that is JSON."""

import json
import shutil
from pathlib import Path

import pytest

from gaternet import presentation
from gaternet.output import json_text, printable
from terminal import Terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café 猫, a b", "café 猫, a b"),
        ("a\x1b[31mb\nc\td\r", r"a\x1b[31mb\nc\td\r"),
        ("\u202eabc\x9b", r"\u202eabc\x9b"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_names_of_classes_and_files_are_only_shown(
    plain_run: Path,
    digit: Path,
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["data"]["classes"] = [f"{name}\x1b[31m\n" for name in config["data"]["classes"]]
    (run / "config.json").write_text(json.dumps(config))
    image = digit.rename(digit.with_name("a\x1b]0;b.png"))
    shown = terminal.succeed("predict", run, image.name)
    assert "\x1b" not in shown
    assert r"a\x1b]0;b.png" in shown
    assert r"\x1b[31m\n" in shown
    assert r"no\x1b[31m\nrun" in terminal.fail(1, "evaluate", tmp_path / "no\x1b[31m\nrun")


def test_numbers_that_json_lacks_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    inf = float("inf")
    values = {"a": [float("nan"), 1.5], "b": {"c": (inf, -inf, 2)}, "d": "NaN", "e": None}
    plain = {"a": [None, 1.5], "b": {"c": [None, None, 2]}, "d": "NaN", "e": None}
    assert json.loads(json_text(values)) == plain
    presentation.environment(values, as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == plain
