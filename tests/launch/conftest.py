"""What tests of submissions share: a queue that is a list."""

from __future__ import annotations

import pytest
from queued import Queue

from launch import slurm


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(slurm, "submit", queue.submit)
    monkeypatch.setattr(slurm, "cancel_and_wait", queue.cancel)
    monkeypatch.setattr(slurm, "alive", lambda jobs, *_: list(jobs))
    return queue
