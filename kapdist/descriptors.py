"""The first three file descriptors: no file that a process opens may take the number of one that was closed."""

from __future__ import annotations

import os
import sys

STANDARD = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def open_standard_streams() -> None:
    """Give what is closed of standard input, output and error (`>&- 2>&-`) to /dev/null.

    Python has None for such a stream, and the next file that is opened would get what libraries print.
    """
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
