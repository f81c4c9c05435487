"""The last word of a batch script where Slurm, or somebody else, is in its way; Slurm's commands are made up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kapdist.config.file import dump_config
from kapdist.errors import InputError, LockedError
from kapdist.run.files import write_atomic
from kapdist.run.lock import this_process
from kapdist.run.paths import AttackDir, RunDir
from launch import after
from launch.call import run_as_command
from launch.cluster import ClusterConfig
from launch.restarts import HELD, End, Restarts, verdict

CLUSTER = ClusterConfig(max_failures=3)
KNOWN = "if test $1 = show; then echo JobState=RUNNING Reason=None Restarts=0; exit 0; fi"
AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """The directory of a run whose only attempt has ended."""
    run = RunDir(tmp_path / "run")
    write_atomic(run.slurm / after.CLUSTER, dump_config(CLUSTER))
    (run.attempts / "1").mkdir(parents=True)
    return run


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be in job 7 and have this scontrol alone; none unless it is called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(after, "RETRY_SECONDS", 0.01)

    def write(lines: str) -> None:
        (folder / "scontrol").write_text(f"#!/bin/sh\ncd {folder}\n{lines}\n")
        (folder / "scontrol").chmod(0o755)

    return write


def last_word(run: RunDir, code: int) -> int:
    return after.main(["train", str(run.root), str(code)])


@pytest.mark.parametrize("code", [0, 1])
def test_without_scontrol_the_run_says_why_it_does_not_go_on(run: RunDir, scontrol, code: int) -> None:
    if code:
        write_atomic(run.failed, "rank 3, attempt 1\nValueError: the reason\n")
    assert last_word(run, code) == 1
    first, *rest = run.failed.read_text().splitlines()
    assert first == "not started again: no scontrol on this node; submit it again to continue"
    assert rest == (["rank 3, attempt 1", "ValueError: the reason"] if code else [])


def test_ranks_that_a_signal_ended_before_their_first_attempt_start_again(run: RunDir, scontrol) -> None:
    """A time limit's signal may come while python still starts."""
    (run.attempts / "1").rmdir()
    run.attempts.rmdir()
    scontrol(f"{KNOWN}\necho $* >> asked")
    code = 128 + signal.SIGUSR2
    assert last_word(run, code) == 0
    assert not run.failed.exists()
    assert (run.attempts / "0" / "FAILED").read_text() == f"a rank died of SIGUSR2 (exit code {code})\n"
    assert run.last_attempt() == 0


def test_a_shard_without_scontrol_says_so(tmp_path: Path, run: RunDir, scontrol) -> None:
    attack = AttackDir(run.root)
    write_atomic(attack.plan, json.dumps({"images": [1, 2], "chunk_size": 1}))
    assert after.main(["shard", str(attack.root), "0", "1", "1"]) == 1
    assert after.shard_failed(attack, 0).read_text().startswith("not started again: no scontrol")


def test_a_refusal_of_slurm_s_is_its_last(run: RunDir, scontrol) -> None:
    scontrol(f"{KNOWN}; echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    assert last_word(run, 0) == 1
    assert "Requested operation is presently disabled for job 7; submit it again" in run.failed.read_text()


def test_a_controller_that_is_away_is_waited_for(run: RunDir, scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is back at the tenth request; until then, should the job's time be over, FAILED says how things stand."""
    scontrol(
        f"echo >> asked; n=0; while read _; do n=$((n + 1)); done < asked; test $n -ge 10 || {{ {AWAY}; }}\n{KNOWN}"
    )
    before_each: list[str] = []
    ask = after.start_again
    monkeypatch.setattr(after, "start_again", lambda job: before_each.append(words(run)) or ask(job))
    assert last_word(run, 0) == 0
    assert len(before_each) == 10
    assert all(word.startswith("not started again: Slurm does not answer") for word in before_each[1:])
    assert not run.failed.exists()


def test_a_controller_that_stays_away_ends_the_run(run: RunDir, scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10**6, 600))
    monkeypatch.setattr(after.time, "monotonic", lambda: next(now))
    scontrol(AWAY)
    assert last_word(run, 0) == 1
    assert words(run).startswith("not started again: Slurm does not answer")


def words(run: RunDir) -> str:
    return run.failed.read_text() if run.failed.exists() else ""


@pytest.mark.parametrize("code", [1, 2, HELD, 137])
def test_what_somebody_else_works_on_is_not_given_up(run: RunDir, scontrol, code: int) -> None:
    """Of three starts that find another job's rank at work two try again, the last leaves the run to it."""
    scontrol(KNOWN)
    write_atomic(run.lock, json.dumps(asdict(replace(this_process(), job="8"))))
    write_atomic(run.failed, "theirs\n")
    assert [last_word(run, code) for _ in range(3)] == [0, 0, HELD]
    assert run.failed.read_text() == "theirs\n"
    run.lock.unlink()
    assert last_word(run, 2) == 2
    assert run.failed.read_text().startswith("given up: wrong input")


def test_the_last_word_removes_a_lock_of_which_ranks_could_not_see_that_its_holder_is_gone(
    run: RunDir, scontrol
) -> None:
    """In a container nobody answers for another job; outside, on the same node, one can look."""
    scontrol(KNOWN)
    write_atomic(run.lock, json.dumps(asdict(replace(this_process(), pid=4194000, job="8"))))
    assert last_word(run, HELD) == 0
    assert not run.lock.exists()


def test_a_start_whose_node_was_lost_has_no_say_in_the_next_one(
    run: RunDir, scontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranks fail when the job runs elsewhere already: no failure is counted, and FAILED is not written."""
    scontrol("echo JobState=RUNNING Reason=None Restarts=1")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    write_atomic(run.lock, json.dumps(asdict(replace(this_process(), restart=1))))
    (run.attempts / "1" / "fatal-0.txt").touch()  # of the rank that is at work
    assert [last_word(run, 1) for _ in range(2)] == [0, 0]
    assert [end.code for end in Restarts(run.slurm / "ends.jsonl").read()] == [HELD, HELD]
    assert not run.failed.exists()
    assert not (run.attempts / "1" / "FAILED").exists()


def test_the_lock_of_the_job_s_own_rank_is_nobody_else_s(run: RunDir, scontrol) -> None:
    write_atomic(run.lock, json.dumps(asdict(replace(this_process(), host="n2", boot="2", job="7"))))
    os.environ["SLURMD_NODENAME"] = "n1"
    try:
        assert last_word(run, 2) == 2
    finally:
        del os.environ["SLURMD_NODENAME"]
    assert run.failed.read_text().startswith("given up: wrong input")


def test_what_a_killed_writer_left_aside_is_no_progress(run: RunDir) -> None:
    """A job that makes some is started again however often it fails."""
    attack = run.attack("a")
    write_atomic(attack.chunk(0), "")
    write_atomic(attack.plan, "{}")
    before = after.progress_of_model(after.Start("model", run.root))
    for path in (attack.chunk(1), attack.summary):
        path.with_name(f".{path.name}.0123abcd.tmp").touch()
    assert after.progress_of_model(after.Start("model", run.root)) == before == (2, False, "model: ")


def test_starts_that_found_somebody_else_at_work_count_for_nothing() -> None:
    held = [End(HELD, step, "8", "process 1") for step in (5, 5, 6)]
    own = [End(1, 5, "7"), End(1, 5, "7"), End(1, 5, "7")]
    assert verdict([*own, *held], False, CLUSTER)[0] == "leave"
    assert verdict([*own, *held], True, CLUSTER)[0] == "done"
    assert verdict([*held, *own], False, CLUSTER)[0] == "again"  # the first of its own made the progress
    assert verdict([*held, *own, End(HELD, 6, "7"), End(1, 5, "7")], False, CLUSTER)[0] == "give up"


def test_held_ends_are_counted_for_each_job(tmp_path: Path) -> None:
    ends = Restarts(tmp_path / "ends.jsonl")
    for job in ("8", "8", "9"):
        found = ends.add(End(HELD, 0, job, "process 1"))
    assert verdict(found, False, CLUSTER)[0] == "again"


@pytest.fixture
def own_signals() -> Iterator[None]:
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("error", "code"), [(LockedError, HELD), (InputError, 2)])
def test_a_rank_that_finds_somebody_at_work_is_told_from_wrong_input(own_signals, error, code: int) -> None:
    def work() -> None:
        raise error("LOCK", "nobody else at work here", "process 1")

    with pytest.raises(SystemExit) as left:
        run_as_command(work)
    assert left.value.code == code
