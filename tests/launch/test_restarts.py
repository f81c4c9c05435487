"""The rule of restarts, on histories whose verdict is known."""

from __future__ import annotations

import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.after import fate_of
from launch.cluster import ClusterConfig
from launch.restarts import End, Restarts, verdict

CLUSTER = ClusterConfig(max_failures=3, max_idle_restarts=5)


def ends(*pairs: tuple[int, int]) -> list[End]:
    """(exit code, progress) of one start after the other."""
    return [End(code, progress) for code, progress in pairs]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (ends((0, 0)), "again"),
        (ends((1, 0)), "again"),
        (ends((1, 0), (1, 0)), "again"),
        (ends((1, 0), (1, 0), (1, 0)), "give up"),
        (ends((1, 10), (1, 10), (1, 10)), "again"),  # the first of them made the progress
        (ends((1, 10), (1, 10), (1, 10), (1, 10)), "give up"),
        (ends((1, 0), (1, 0), (1, 10), (1, 10), (1, 10)), "again"),
        (ends((1, 0), (0, 0), (137, 0), (0, 0), (143, 0)), "give up"),  # stops in between are no progress
        (ends(*[(0, 0)] * 5), "again"),
        (ends(*[(0, 0)] * 6), "give up"),
        (ends((2, 50)), "give up"),
        (ends((0, 1), (0, 2), (2, 2)), "give up"),
    ],
)
def test_failures_without_progress_are_limited(history: list[End], expected: str) -> None:
    assert verdict(history, False, CLUSTER)[0] == expected


@given(st.lists(st.tuples(st.sampled_from([0, 1, 137, 143]), st.integers(1, 3)), min_size=1, max_size=50))
def test_restarts_with_progress_are_not(steps: list[tuple[int, int]]) -> None:
    progress, history = 0, []
    for code, more in steps:
        progress += more
        history.append(End(code, progress))
        assert verdict(history, False, CLUSTER)[0] == "again"
    assert verdict(history, True, CLUSTER)[0] == "done"


def test_ends_are_kept_and_a_torn_last_line_is_passed_over(tmp_path) -> None:
    kept = Restarts(tmp_path / "slurm" / "ends.jsonl")
    assert kept.read() == []
    kept.add(End(1, 5, "17", "why"))
    with kept.path.open("a") as file:
        file.write('{"code": 1, "pro')
    assert [(end.code, end.progress, end.job, end.reason) for end in kept.read()] == [(1, 5, "17", "why")]
    kept.add(End(0, 6, "17"))  # on a line of its own
    assert [end.progress for end in kept.read()] == [5, 6]
    kept.forget()
    assert kept.read() == []


def test_an_end_is_noted_whole_or_not_at_all(tmp_path) -> None:
    """The disk is full in the middle of a line."""
    kept = Restarts(tmp_path / "ends.jsonl")
    kept.add(End(1, 5))
    before = kept.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            kept.add(End(1, 6))
        assert kept.add(End(0, 6)) == [*kept.read(), End(0, 6)]  # a stop is no reason to end a training
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert kept.path.read_bytes() == before


NOT_REQUEUED = {"JobState": "COMPLETING", "Reason": "None", "Restarts": "0", "EndTime": "2026-11-27T14:04:21"}


@pytest.mark.parametrize(
    ("facts", "restarts", "expected"),
    [
        # As `scontrol show job` was seen from the last lines of batch scripts: docs/slurm.md.
        ({"JobState": "RUNNING", "Reason": "None", "Restarts": "0"}, "0", "ended"),
        ({"JobState": "RUNNING", "Reason": "None", "Restarts": "2"}, "2", "ended"),
        ({"JobState": "COMPLETING", "Reason": "TimeLimit", "Restarts": "0"}, "0", "ended"),
        ({"JobState": "COMPLETING", "Reason": "None", "Restarts": "1"}, "0", "restarted"),
        ({"JobState": "PENDING", "Reason": "BeginTime", "Restarts": "3"}, "2", "restarted"),
        ({"JobState": "COMPLETING", "Reason": "None", "Restarts": "0"}, "0", "cancelled"),
        (NOT_REQUEUED | {"PreemptTime": "2026-11-27T14:04:21"}, "0", "ended"),  # PreemptMode=CANCEL
        (NOT_REQUEUED | {"PreemptTime": "2026-11-27T14:04:20"}, "0", "ended"),
        (NOT_REQUEUED | {"PreemptTime": "2026-11-27T14:04:15"}, "0", "cancelled"),  # in the grace
        (NOT_REQUEUED | {"PreemptTime": "None"}, "0", "cancelled"),
        (NOT_REQUEUED | {"PreemptTime": "2026-11-27T14:04:21", "Restarts": "1"}, "0", "restarted"),
        ({"JobState": "CANCELLED", "Reason": "None", "Restarts": "1"}, "1", "cancelled"),
        ({}, "1", "ended"),  # no answer: better to ask for a start too many than to lose the run
    ],
)
def test_what_became_of_a_job(facts: dict[str, str], restarts: str, expected: str) -> None:
    assert fate_of(facts, restarts) == expected
