"""What a full disk does not take: kept in memory in its order, said once, written when there is room again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Later(Generic[T]):
    """Writes one thing after the other; none is written before the one that it follows.

    Args:
        what: its name in the log.
        write: writes one thing whole or, with an OSError, not at all.
        keep: how many things wait at most, the newest; None keeps all.
    """

    def __init__(self, what: str, write: Callable[[T], None], keep: int | None = None) -> None:
        self.what, self.write = what, write
        self.waiting: deque[T] = deque(maxlen=keep)
        self.error: OSError | None = None

    def add(self, thing: T) -> None:
        """Write a thing after those that wait."""
        self.waiting.append(thing)
        self.try_again()

    def try_again(self) -> None:
        """Write what waits, if there is room."""
        try:
            while self.waiting:
                self.write(self.waiting[0])
                self.waiting.popleft()
        except OSError as error:
            if self.error is None:
                log.warning("%s: %s; what is to be written is kept until it can be", self.what, error)
            self.error = error
            return
        if self.error is not None:
            log.info("%s: written again", self.what)
        self.error = None

    def finish(self) -> None:
        """Write what waits; raise the OSError that keeps it from being written."""
        self.try_again()
        if self.error is not None:
            raise self.error
