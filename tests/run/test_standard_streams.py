"""A process without standard streams, and a user whom the system does not know."""

import getpass
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kapdist import cli, report
from kapdist.environment import cache_root, user_name
from kapdist.run.standard_output import sentence

CLOSED = """
import os
from kapdist.run.standard_output import open_standard_streams

open_standard_streams()
kept = open("file", "w")
print("printed")
os.write(2, b"written by a library")
kept.write(str(kept.fileno()))
"""


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    words = f"exec {shlex.quote(sys.executable)} -c '{CLOSED}' <&- >&- 2>&-"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["bash", "-c", words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, timeout=240
    )
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_the_command_line_without_standard_streams(tmp_path: Path) -> None:
    """The exit code says it alone; there is no bar to show and nowhere to say why."""
    words = f"exec {shlex.quote(sys.executable)} -m kapdist.cli data check absent.beton >&- 2>&-"
    assert subprocess.run(["bash", "-c", words], cwd=tmp_path, timeout=240).returncode == 2


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b"\\u03c3 caf\\xe9 \xff"),
        ("ascii:surrogateescape", b"\\u03c3 caf\\xe9 \xff"),
        ("latin-1", b"\\u03c3 caf\xe9 \xff"),
        ("utf-8", "\u03c3 caf\u00e9 ".encode() + b"\xff"),
    ],
)
def test_what_an_encoding_lacks_is_printed_all_the_same(encoding: str, printed: bytes) -> None:
    """And a file's name as the bytes that it has on disk, so that another program finds it."""
    words = "from kapdist.run.standard_output import open_standard_streams as opened; opened(); "
    words += r"print('\u03c3 caf\xe9 \udcff')"
    environ = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, env=environ, timeout=90)
    assert done.stdout.strip() == printed, done.stderr


def test_a_user_without_a_name_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_root() == Path("/elsewhere/kapdist")

    def unknown(*_: object) -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert cache_root() is None
    assert user_name() == str(os.getuid())


@pytest.mark.parametrize(("is_terminal", "lines"), [(False, 1), (True, 4)])
def test_a_log_keeps_a_sentence_whole_and_a_terminal_breaks_it_between_words(is_terminal: bool, lines: int) -> None:
    words = "[red]no[/red] markup " * 5
    written = io.StringIO()
    sentence(Console(file=written, width=40, force_terminal=is_terminal), words)
    found = written.getvalue().splitlines()
    assert len(found) == lines
    assert " ".join(found).split() == words.split()


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "write_report", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "argv", ["kapdist", "report", "run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capfd.readouterr().err.strip() == (
        "kapdist: stopped by Ctrl-C; the same command again goes on from what is done"
    )
