"""Locks under every order of file operations that chance finds: one process at a time inside, and nothing left."""

import json
import os
import random
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from races import Baton

from kapdist.errors import LockedError
from kapdist.run import lock as lock_module
from kapdist.run.lock import Holder, locked, this_process

ME = this_process()
DEAD = json.dumps(asdict(replace(ME, pid=4194000, token="dead")))


class Killed(BaseException):
    """Ends a process between two operations, and keeps it from any further one."""


@pytest.mark.parametrize("left", [None, DEAD, "{"], ids=["free", "dead", "damaged"])
@pytest.mark.parametrize("deaths", [0, 2])
def test_one_at_a_time_is_inside_whatever_the_order(left, deaths, tmp_path, monkeypatch) -> None:
    for seed in range(25):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if left:
            (folder / "LOCK").write_text(left)
        with monkeypatch.context() as patch:
            a_race(folder / "LOCK", deaths, random.Random(seed), patch)


def a_race(path: Path, deaths: int, chance: random.Random, patch: pytest.MonkeyPatch) -> None:
    """Let four processes take a lock three times each; some may die of it, and those that live must get through."""
    baton, dead, inside = Baton(chance), set[str](), list[str]()
    may_die = [str(number) for number in range(deaths)]

    def killed(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            me = threading.current_thread().name
            if me in may_die and chance.randrange(15) == 0:
                dead.add(me)
                inside[:] = [name for name in inside if name != me]
            if me in dead:
                raise Killed
            return operation(*args, **named)

        return call

    def work() -> None:
        me, got = threading.current_thread().name, 0
        for _ in range(1000):
            try:
                with locked(path):
                    inside.append(me)
                    path.with_name("seen").read_bytes()
                    assert inside == [me]
                    inside.remove(me)
                    got += 1
            except LockedError:
                pass
            if got == 3:
                return
        raise AssertionError("nobody else is alive, and the lock is held")

    path.with_name("seen").write_text("")
    patch.setattr(lock_module, "is_alive", lambda found: found.token != "dead" and found.since not in dead)
    patch.setattr(lock_module, "this_process", named)
    for place, name in ((os, "link"), (os, "rename"), (os, "replace"), (Path, "unlink"), (Path, "read_bytes")):
        patch.setattr(place, name, baton.passed_on(killed(getattr(place, name))))
    errors = baton.run([work] * 4)
    assert not [error for error in errors if not isinstance(error, Killed)]
    left = {name for name in os.listdir(path.parent) if not (dead and name.endswith((".tmp", ".heir")))}
    assert left == {"seen"} or json.load(path.open())["since"] in dead  # the last of all died


def named(token: str = "") -> Holder:
    return replace(ME, since=threading.current_thread().name, token=token)
