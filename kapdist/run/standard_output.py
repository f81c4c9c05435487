"""Standard output, which carries the result of a command and nothing else, so that another program can read it."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # takes longer to load than all else that --help needs
    from rich.console import Console
    from rich.text import Text

RESULT, NOTES = 1, 2  # file descriptors
LOG_WIDTH = 110  # columns, where there is no terminal that says how wide it is


@contextlib.contextmanager
def work(place: Path) -> Iterator[None]:
    """Do the work of a command, before its result is printed.

    Args:
        place: where the command writes, named if an error does not tell where it was.

    Raises:
        InputError: what is written cannot be, see `run.files.output`.
    """
    from kapdist.run.files import output  # where it is used: --help is quick

    with output(place), kept_for_the_result():
        yield


@contextlib.contextmanager
def kept_for_the_result() -> Iterator[None]:
    """Send to standard error what is printed meanwhile, by code in C and by child processes too."""
    flush()
    try:
        kept = os.dup(RESULT)
    except OSError:  # there is no standard output to keep
        kept = None
    try:
        redirect(NOTES, RESULT)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        flush()
        if kept is not None:
            redirect(kept, RESULT)
            os.close(kept)


def redirect(source: int, target: int) -> None:
    """Let one descriptor mean what another does; nothing at all, where that one is closed."""
    with contextlib.suppress(OSError):
        os.dup2(source, target)
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != target:
        os.dup2(nowhere, target)
        os.close(nowhere)


def flush() -> None:
    """Write out what Python and C hold back for standard output; what does not go there is given up."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:
            sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def result() -> Iterator[None]:
    """Print a result; a reader that has gone away ends the process without a word.

    Raises:
        InputError: standard output takes none, as where its disk is full.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        give_up()
        raise SystemExit(1) from None
    except OSError:
        give_up()
        from kapdist.run.files import NO_ROOM, output

        with output(Path("standard output"), NO_ROOM):
            raise


def screen(width: int = LOG_WIDTH) -> Console:
    """Return where tables are printed: a terminal is as wide as it is, anything else has `width` columns."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=width, highlight=False)


def sentence(console: Console, line: str | Text, style: str = "") -> None:
    """Print a sentence: a terminal breaks it between words, a log keeps it whole to be searched."""
    from rich.text import Text

    console.print(Text(line, style) if isinstance(line, str) else line, soft_wrap=not console.is_terminal)


def say(value: Any) -> None:
    """Print a JSON value as the result."""
    from kapdist.run.files import to_json

    with result():
        print(to_json(value, indent=2))


def give_up() -> None:
    """Let the rest of standard output go nowhere: the interpreter would fail on it again as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, RESULT)
    os.close(nowhere)


WRITTEN = "kapdist-written"  # how codecs know `as_it_can_be_written`
STANDARD = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def open_standard_streams() -> None:
    """Give what is closed of standard input, output and error (`>&- 2>&-`) to /dev/null.

    Python has None for such a stream, and the next file that is opened would get what libraries print. What an
    encoding lacks, in a locale that is not UTF-8's, keeps no line from being printed (`as_it_can_be_written`).
    """
    codecs.register_error(WRITTEN, as_it_can_be_written)
    for number, name, mode in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        stream = getattr(sys, name)
        if mode == "w" and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # a file when it was opened, a pipe by now: set all the same
                stream.reconfigure(errors=WRITTEN)


def as_it_can_be_written(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return a file's name as the bytes that it has on disk, and any other letter as Python writes it."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)
