"""Files and directories where the disk has something against them: a line, and nothing is left."""

import subprocess
import sys
from pathlib import Path

import pytest

from gaternet.disk import make_directory, write_file
from gaternet.errors import UserError


def test_files_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    for file in (tmp_path / "file" / "new", tmp_path / ("n" * 253), tmp_path / "absent" / "new"):
        with pytest.raises(UserError, match=f"cannot write {file}"):
            write_file(file, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    write_file(file, "before")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(file, "behind")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "before"


def test_directories_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    with pytest.raises(UserError, match=r"cannot write into .*file: it is a file"):
        make_directory(tmp_path / "file")
    for name in (Path("file", "new"), "n" * 300):
        with pytest.raises(UserError, match="cannot write into"):
            make_directory(tmp_path / name)
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_processes_that_write_one_file(tmp_path: Path) -> None:
    """Two that measure for one table may write a result at one time; neither is stopped by it."""
    file = tmp_path / "result.json"
    texts = ["first\n" * 500, "second\n" * 900]
    program = (
        "import sys; from pathlib import Path; from gaternet.disk import write_file\n"
        "for _ in range(300): write_file(Path(sys.argv[1]), sys.argv[2])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, file, text]) for text in texts]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert file.read_text() in texts
    assert list(tmp_path.iterdir()) == [file]
