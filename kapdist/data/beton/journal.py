"""What a writer has done, on disk, so that the next one goes on where it was killed."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.beton.container import RECORD
from kapdist.run.files import write_atomic


class Journal:
    """A file of lines: what is written and how, then one line for every part that is in its place."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.first = path, json.dumps(identity, sort_keys=True)

    def read(self) -> dict[int, tuple[int, np.ndarray]]:
        """Return {part: (where it begins, its records)}; nothing of another source, or written otherwise."""
        try:
            first, *lines = self.path.read_text().split("\n")
        except (OSError, ValueError):
            return {}
        parts = {}
        for line in lines if first == self.first else []:
            try:
                part, begin, records = json.loads(line)
                content = np.frombuffer(base64.b64decode(records, validate=True), RECORD)
                parts[int(part)] = int(begin), content.copy()  # of bytes, which cannot be written
            except (ValueError, TypeError, binascii.Error):
                continue  # the last line of a writer that was killed
        return parts

    def begin(self, parts: dict[int, tuple[int, np.ndarray]]) -> None:
        """Start the file afresh with what is still valid."""
        lines = [self.first, *(line(part, *value) for part, value in parts.items())]
        write_atomic(self.path, "\n".join(lines) + "\n")

    def note(self, part: int, begin: int, records: np.ndarray) -> None:
        with self.path.open("a") as file:
            file.write(line(part, begin, records) + "\n")


def line(part: int, begin: int, records: np.ndarray) -> str:
    return json.dumps([part, begin, base64.b64encode(records.tobytes()).decode()])
