"""An offline store of Weights & Biases, read back: LevelDB's log format behind seven bytes, of protobufs."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def contents(path: Path) -> Iterator[bytes]:
    data, place, parts = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # no room for a header: padding
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + HEADER : place + HEADER + length]
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind]))), "a damaged record"
        place += HEADER + length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield parts


class Offline:
    """What one offline run says."""

    def __init__(self, path: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.run: Any = None
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, dict[str, Path]] = {}
        self.exit_code: int | None = None
        self.preempting = False
        for content in contents(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            self.take(record.WhichOneof("record_type"), record)

    def take(self, kind: str, record: Any) -> None:
        if kind == "run":
            self.run = record.run
            self.config |= values(record.run.config.update)
        elif kind == "config":
            self.config |= values(record.config.update)
        elif kind == "history":
            self.history.append((record.history.step.num, values(record.history.item)))
        elif kind == "summary":
            self.summary |= values(record.summary.update)
        elif kind == "artifact":
            found = record.artifact
            self.artifacts[found.type] = {entry.path: Path(entry.local_path) for entry in found.manifest.contents}
        elif kind == "exit":
            self.exit_code = record.exit.exit_code
        elif kind == "preempting":
            self.preempting = True

    @property
    def series(self) -> dict[int, dict[str, Any]]:
        """{step: numbers}, each step once."""
        found = {step: {key: value for key, value in row.items() if key[0] != "_"} for step, row in self.history}
        assert len(found) == len(self.history), "a step twice"
        return found


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_offline(folder: Path) -> Offline:
    """Read the only offline run in the folder of a run."""
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return Offline(path)
