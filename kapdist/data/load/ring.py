"""Rings of buffers that decoders fill ahead, kept from one pass to the next: pinned memory is dear to get."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch


class Ring:
    """Memory of some slots, and for each the event (CUDA) after which it may be written again."""

    def __init__(self, memory: Any, num_slots: int) -> None:
        self.memory = memory
        self.events: list[torch.cuda.Event | None] = [None] * num_slots

    def wait(self, slot: int) -> None:
        """Wait until the device has read what a slot held."""
        event, self.events[slot] = self.events[slot], None
        if event is not None:
            event.synchronize()


class Rings:
    """As many rings as passes have been open at once; one that nobody has is taken before another is made."""

    def __init__(self, make: Callable[[], Ring]) -> None:
        self.make = make
        self.lock = threading.Lock()
        self.idle: list[Ring] = []

    def take(self) -> Ring:
        with self.lock:
            if self.idle:
                return self.idle.pop()
        return self.make()

    def give_back(self, ring: Ring) -> None:
        with self.lock:
            self.idle.append(ring)
