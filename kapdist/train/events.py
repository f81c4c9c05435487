"""TensorBoard's event file, appended to record by record.

torch's SummaryWriter writes in a thread that dies of the first full disk, and whoever uses it later dies with it.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from kapdist.run.files import append_whole

NUMBERS = itertools.count()
PREFIX = "events.out.tfevents."


class Scalars(NamedTuple):
    """The numbers of a step, by their names."""

    step: int
    values: dict[str, float]


class Events:
    """One file of events in a folder; TensorBoard forgets, of the folder's earlier ones, what lies after `step`."""

    def __init__(self, folder: Path, step: int) -> None:
        # TensorBoard reads a folder's files by name: one must come behind those of nodes whose clocks are ahead.
        began = max(int(time.time()), 1 + last_begun(folder))
        name = f"{PREFIX}{began:010d}.{socket.gethostname()}.{os.getpid()}.{next(NUMBERS)}"
        self.path = folder / name
        self.step = step
        self.file: IO[bytes] | None = None

    def append(self, scalars: Scalars) -> None:
        """Write the numbers of a step, all of them or, with an OSError, none."""
        file = self.opened()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.values.items()]
        append_whole(file, record(Event(step=scalars.step, summary=Summary(value=values))))

    def opened(self) -> IO[bytes]:
        """Return the file, begun as TensorBoard wants it."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab", buffering=0)
            version = Event(file_version="brain.Event:2")
            start = Event(step=self.step + 1, session_log=SessionLog(status=SessionLog.START))
            try:
                append_whole(file, record(version) + record(start))
            except OSError:
                file.close()
                raise
            self.file = file
        return self.file

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def last_begun(folder: Path) -> int:
    """Return when the newest file of events was begun, by its name; 0 where there is none."""
    words = [path.name.removeprefix(PREFIX).partition(".")[0] for path in folder.glob(f"{PREFIX}*")]
    return max((int(word) for word in words if word.isdecimal()), default=0)


def record(event: Event) -> bytes:
    """Return an event as it lies in a file: its length, its bytes, a checksum of each."""
    event.wall_time = time.time()
    buffer = BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
