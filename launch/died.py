"""FAILED where no rank could write it: what ranks died of, or the wrong input that they met."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kapdist.run.ends import deaths, end_of, killed_by
from kapdist.run.files import write_atomic
from kapdist.run.paths import RunDir
from launch.restarts import WRONG_INPUT


def tell_deaths(run: RunDir, code: int) -> None:
    """Write down why ranks ended with this exit code, if they left a sign of it and nobody has said it yet."""
    if code and not run.failed.exists() and not run.done.exists() and (cause := cause_of(run, code)):
        write_atomic(run.failed, f"{cause}\n")


def cause_of(run: RunDir, code: int) -> str:
    folder = run.rank_log(run.last_attempt(), 0).parent
    end, died = end_of(folder), deaths(folder)
    if code == WRONG_INPUT:
        return end if end.startswith("wrong input") else ""
    if died:
        return "; ".join(died)
    return f"a rank died of {killed_by(code)} (exit code {code})" if killed_by(code) else ""


def say_deaths(codes: Sequence[int | None]) -> None:
    """Name the ranks on this machine that a signal ended."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            print(f"kapdist: rank {rank} died of {killed_by(code)}", file=sys.stderr, flush=True)
