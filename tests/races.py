"""Several processes in one: threads that take turns, by chance, at every operation on a file."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


class Baton:
    """Lets one thread run at a time, and passes on by chance at every operation on a file."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.moved = chance, threading.Condition()
        self.threads: list[int] = []
        self.errors: list[BaseException] = []
        self.holder = 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Pass on at what looks at files and what changes them."""
        for place, names in ((os, "link replace"), (Path, "exists rename unlink read_bytes read_text")):
            for name in names.split():
                patch.setattr(place, name, self.passed_on(getattr(place, name)))

    def run(self, works: Sequence[Callable[[], object]]) -> list[BaseException]:
        """Do all of this, and return what was raised."""
        self.errors.clear()
        started = [threading.Thread(target=self.turn, args=(number, work)) for number, work in enumerate(works)]
        self.threads = list(range(len(works)))
        self.holder = self.chance.choice(self.threads)
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(60)
            assert not thread.is_alive()
        return self.errors

    def turn(self, number: int, work: Callable[[], object]) -> None:
        threading.current_thread().name = str(number)
        with self.moved:
            self.moved.wait_for(lambda: self.holder == number)
        try:
            work()
        except BaseException as error:
            self.errors.append(error)
        finally:
            with self.moved:
                self.threads.remove(number)
                self.holder = self.chance.choice(self.threads or [-1])
                self.moved.notify_all()

    def passed_on(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            me = threading.current_thread().name
            if not me.isdecimal():  # of the test itself, or a thread that one of these started
                return operation(*args, **named)
            with self.moved:
                self.holder = self.chance.choice(self.threads)
                self.moved.notify_all()
                self.moved.wait_for(lambda: self.holder == int(me))
            return operation(*args, **named)

        return call
