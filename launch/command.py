"""How the three commands of launch/ end: 0 done, 2 wrong input in one line, 1 all else with a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from kapdist.errors import InputError
from kapdist.run.standard_output import open_standard_streams


def command_line(main: Callable[[], None]) -> None:
    """Run a command and leave with its exit code."""
    open_standard_streams()
    try:
        main()
    except InputError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read has read enough: ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        print(f"kapdist: {error.filename}: expected a place to write, found: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
