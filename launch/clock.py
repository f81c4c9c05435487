"""The time by the clock that stamps the files of a folder, so that ages are differences of one clock."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path


def now(folder: Path) -> float:
    """Return the time that a file written there at this moment bears, seconds since the epoch; none is left.

    The server of a shared file system may be minutes away from this host. Where nothing can be written, the time is
    this host's.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
