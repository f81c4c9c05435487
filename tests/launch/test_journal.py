"""The journal of submissions: what is known of one that was cut off, and that it is made once."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from queued import Queue

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.errors import InputError, TransientError
from kapdist.run.files import append_line, lines_in
from kapdist.run.paths import RunDir
from launch import jobs, journal, slurm, train
from launch.call import Call
from launch.cluster import ClusterConfig
from launch.command import submit
from launch.submission import Submission, submission, token_in
from launch.train import TrainCommand


def two(folder: Path) -> Submission:
    return submission("x", folder, ClusterConfig(), Path("/code"), "launch.after", elements=2, kind="train")


def lines(folder: Path) -> list[dict[str, Any]]:
    return lines_in(folder / journal.JOURNAL)


class Killed(BaseException):
    """Nothing of the launcher's runs after it."""


def kill(what: Submission, calls: Any) -> str:
    raise Killed


@pytest.fixture
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an array of two runs whose launcher died while sbatch was at work."""
    monkeypatch.setattr(slurm, "submit", kill)
    with pytest.raises(Killed):
        journal.queue(two(tmp_path / "a"), [], [tmp_path / "run0", tmp_path / "run1"])
    monkeypatch.undo()
    return tmp_path / "a"


def answer(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
    """Have Slurm say, one after the other, which number the one open submission has; "" if it knows none."""
    left = list(answers)

    def submitted_as(tokens: Any, users: Any, since: float) -> dict[str, str] | None:
        job = left.pop(0)
        return None if job is None else {token: job for token in tokens if job}

    monkeypatch.setattr(slurm, "submitted_as", submitted_as)


def test_the_intent_is_written_before_slurm_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(what: Submission, calls: Any) -> str:
        (line,) = lines(what.folder)
        assert line["token"] == what.token
        assert (line["intent"]["kind"], line["intent"]["elements"]) == ("train", 2)
        assert jobs.remembered(what.folder) == []
        return "7"

    monkeypatch.setattr(slurm, "submit", look)
    assert journal.queue(two(tmp_path / "a"), [], [tmp_path / "run0", tmp_path / "run1"]) == "7"
    assert [line["job"] for line in jobs.remembered(tmp_path / "a")] == ["7"]
    (of_run,) = jobs.remembered(tmp_path / "run1")
    assert (of_run["job"], of_run["elements"], of_run["logs"]) == ("7_1", 0, str(tmp_path / "a"))
    assert journal.unanswered(tmp_path / "a") == []
    assert journal.last_trouble(tmp_path / "a") == ""


def test_a_job_whose_number_was_lost_is_found_by_its_token(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cut off" in journal.last_trouble(cut_off)
    answer(monkeypatch, "9")
    for _ in range(2):  # the second time there is nothing to ask
        journal.settle(cut_off)
    (line,) = jobs.remembered(cut_off)
    assert (line["job"], line["elements"]) == ("9", 2)
    assert [jobs.remembered(cut_off.parent / f"run{n}")[0]["job"] for n in (0, 1)] == ["9_0", "9_1"]


def test_a_number_that_was_noted_in_part_is_noted_once(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died between the lines of two folders."""
    token = lines(cut_off)[0]["token"]
    append_line(jobs.record(cut_off.parent / "run0"), {"job": "9_0", "token": token})
    answer(monkeypatch, "9")
    journal.settle(cut_off)
    assert [len(jobs.remembered(cut_off.parent / name)) for name in ("run0", "run1", "a")] == [1, 1, 1]


def test_a_command_for_one_of_the_runs_finds_the_job_too(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cut_off.parent / "run1"
    assert "cut off" in journal.last_trouble(run)
    answer(monkeypatch, "9", "9")
    for folder in (run, run, cut_off):
        journal.settle(folder)
    assert [line["job"] for line in jobs.remembered(run)] == ["9_1"]
    assert jobs.remembered(run)[0]["logs"] == str(cut_off)
    assert [line["job"] for line in jobs.remembered(cut_off)] == ["9"]


def test_what_slurm_never_got_is_done_with(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ON_ITS_WAY_SECONDS", -60.0)  # clocks of files are coarse
    answer(monkeypatch, "")
    journal.settle(cut_off)
    assert jobs.remembered(cut_off) == []
    assert journal.unanswered(cut_off) == []


def test_an_sbatch_that_outlives_its_caller_is_waited_for(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "", "9")
    journal.settle(cut_off)
    assert [line["job"] for line in jobs.remembered(cut_off)] == ["9"]


def test_a_clock_that_was_set_back_is_not_waited_for(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submission seems to have been made an hour from now."""
    monkeypatch.setattr(journal, "ON_ITS_WAY_SECONDS", 0.6)
    monkeypatch.setattr(jobs, "time_in", lambda folder: time.time() - 3600)
    answer(monkeypatch, *[""] * 5)
    journal.settle(cut_off)
    assert journal.unanswered(cut_off) == []


def test_without_slurm_s_answer_nothing_is_submitted_again(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, None)
    with pytest.raises(TransientError, match="a submission was cut off here, and may be a job"):
        journal.settle(cut_off)
    assert len(journal.unanswered(cut_off)) == 1


def test_a_refusal_is_noted_and_shown_until_the_next_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(what: Submission, calls: Any) -> str:
        raise slurm.RefusedError("sbatch", "a job that this cluster takes", "Invalid account")

    monkeypatch.setattr(slurm, "submit", refuse)
    with pytest.raises(InputError):
        journal.queue(two(tmp_path), [], [tmp_path / "run0"])
    for folder in (tmp_path, tmp_path / "run0"):
        assert lines(folder)[-1]["refused"].endswith("found Invalid account")
        assert journal.unanswered(folder) == []
        assert journal.last_trouble(folder).endswith("found Invalid account")
    monkeypatch.setattr(slurm, "submit", lambda *_: "7")
    journal.queue(two(tmp_path), [])
    assert journal.last_trouble(tmp_path) == ""


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path, line = tmp_path / "x.jsonl", '{"job": "2", "intent": {"kind": "train"}, "runs": []}'
    for cut in range(1, len(line)):  # also where what is left ends like a whole one
        path.write_text('{"job": "1"}\n' + line[:cut])
        append_line(path, {"job": "3"})
        assert [found["job"] for found in lines_in(path)] == ["1", "3"]


def test_a_launch_after_one_that_was_cut_off_queues_nothing(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    command = TrainCommand(run, load_config(Config, tiny_config), ClusterConfig())
    monkeypatch.setattr(train, "snapshot", lambda *_: Path("/code"))
    how = argparse.Namespace(dry_run=False, force=False)
    monkeypatch.setattr(slurm, "submit", kill)
    with pytest.raises(Killed):
        submit(command, how)
    monkeypatch.setattr(slurm, "submit", queue.submit)
    answer(monkeypatch, "9")
    assert not submit(command, how)
    assert queue.taken == []
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{run.root}: job 9 was queued by a command that was cut off"
    assert said[1].startswith(f"{run.root}: job 9 waits or runs")


def test_a_launch_that_is_ended_leaves_nobody_before_a_closed_door(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a terminal that is closed; on the nodes nothing says whether a process of the login node lives."""
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    command = TrainCommand(run, load_config(Config, tiny_config), ClusterConfig())
    monkeypatch.setattr(train, "snapshot", lambda *_: Path("/code"))
    monkeypatch.setattr(slurm, "submit", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        submit(command, argparse.Namespace(dry_run=False, force=False))
    assert left.value.code == 128 + signal.SIGTERM
    assert not [path for path in run.slurm.iterdir() if "SUBMITTING" in path.name]


# What Slurm is given, and what it says


def test_tokens_are_found_in_the_queue_and_in_the_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "squeue": "12|my project kapdist:aaa\n12|my project kapdist:aaa\n13|(null)\n14|kapdist:other\n",
        "sacct": "7|kapdist:bbb\n8_0|kapdist:ccc\n9|\n",
    }
    monkeypatch.setattr(slurm, "ask", lambda word, *_, **__: said[word])
    found = slurm.submitted_as(["aaa", "bbb", "ccc", "ddd"], ["me"], 0.0)
    assert found == {"aaa": "12", "bbb": "7", "ccc": "8"}
    monkeypatch.setattr(slurm, "ask", lambda *_, **__: None)
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/usr/bin/squeue")
    assert slurm.submitted_as(["aaa"], ["me"], 0.0) is None


@pytest.mark.parametrize(
    ("code", "said", "refused"),
    [
        (1, "sbatch: error: Batch job submission failed: Invalid account", True),
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", False),
        (1, "sbatch: error: Unable to contact slurm controller (connect failure)", False),
        (0, "what a site's own sbatch says", False),
        (None, "", False),  # nothing within the time limit
    ],
)
def test_what_slurm_may_have_taken_all_the_same_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, said: str, refused: bool
) -> None:
    done = None if code is None else subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(slurm, "answer", lambda *_, **__: done)
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/usr/bin/sbatch")
    with pytest.raises(slurm.RefusedError if refused else TransientError) as error:
        journal.queue(two(tmp_path), [Call("a:b", ())])
    assert len(list(tmp_path.glob("call-*"))) == (not refused)
    assert (said.rpartition(": ")[2] or "none in 60 s") in str(error.value)
    assert len(journal.unanswered(tmp_path)) == (not refused)


def test_sbatch_hears_the_script_and_not_the_user_s_variables_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch believes a variable more than the script; what the script leaves open stays theirs."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nenv | grep -E '^(SBATCH|SLURM)_' > {tmp_path}/heard\necho batch job 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    hidden = ["TIMELIMIT", "NO_REQUEUE", "PARTITION", "OUTPUT", "ERROR", "ARRAY_INX", "WAIT", "CLUSTERS", "SIGNAL"]
    hidden += ["MEM_PER_CPU", "JOB_NAME", "OPEN_MODE"]
    for name in (*hidden, "ACCOUNT"):
        monkeypatch.setenv(f"SBATCH_{name}", "theirs")
    cluster = ClusterConfig(partition="gpu", memory_gb=1.0)
    what = submission("x", tmp_path / "a", cluster, Path("/code"), "launch.after", kind="train")
    what.folder.mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert slurm.submit(what, [Call("a:b", ())]) == "7"
    heard = (tmp_path / "heard").read_text().split()
    assert [line for line in heard if not line.startswith(("SLURM_CONF", "SLURM_BITSTR"))] == [
        "SBATCH_ACCOUNT=theirs"
    ]
    assert all(os.environ[f"SBATCH_{name}"] == "theirs" for name in hidden)


def test_a_colleague_s_job_is_seen_and_not_taken_for_cancelled(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people work in one folder of runs; Slurm refuses to cancel others' jobs."""
    for name, text in (
        ("squeue", 'case "$*" in *--user=colleague*) echo "7|7";; esac'),
        ("scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "SECONDS", 1.0)
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    command = TrainCommand(run, load_config(Config, tiny_config), ClusterConfig())
    append_line(jobs.record(run.slurm), {"job": "7", "kind": "train", "by": "colleague@login"})
    assert not command.is_needed(force=False)
    assert "job 7 waits or runs" in capsys.readouterr().out
    with pytest.raises(TransientError, match="Slurm has not ended job 7"):
        command.is_needed(force=True)


def test_jobs_in_hidden_partitions_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these squeue speaks to whom asks for all (man squeue, --all)."""
    fake = tmp_path / "squeue"
    fake.write_text('#!/bin/sh\ncase "$*" in *--all*) echo "7|7|x kapdist:aaa";; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.alive(["7", "8"]) == ["7"]
    assert slurm.queued(["7"]) == {"7": ("7", "x kapdist:aaa")}
    assert slurm.submitted_as(["aaa"], [], 0.0) == {"aaa": "7"}


def test_jobs_that_slurm_does_not_end_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that is down: nothing else is submitted."""
    monkeypatch.setattr(slurm, "SECONDS", 0.0)
    monkeypatch.setattr(slurm, "ask", lambda word, *_, **__: "7|7\n" if word == "squeue" else "")
    with pytest.raises(TransientError, match="Slurm has not ended job 7"):
        slurm.cancel_and_wait(["7"])


def test_the_comment_is_the_user_s_and_then_the_token() -> None:
    what = submission(
        "x", Path("/f"), ClusterConfig(comment="it's mine"), Path("/code"), "launch.after", kind="train"
    )
    (option,) = [line for line in what.script().splitlines() if line.startswith("#SBATCH --comment=")]
    assert token_in(option) == what.token
    assert token_in("it's mine") == ""


@pytest.mark.parametrize(
    ("variables", "number", "taken_as"),
    [({}, 0, "7"), ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1"}, 1, "5_1")],
)
def test_a_start_takes_its_call_itself(
    tmp_path: Path, variables: dict[str, str], number: int, taken_as: str
) -> None:
    what = two(tmp_path / "it's a folder")
    what.folder.mkdir()
    for n in (0, 1):
        what.call(n).write_text(str(n))
    environment = os.environ | {"SLURM_JOB_ID": "7"} | variables
    for _ in range(2):  # another start of the job finds it taken
        subprocess.run(["bash", "-ec", what.take_call()], env=environment, check=True)
    assert (what.folder / f"{taken_as}_submitted.pkl").read_text() == str(number)
    assert [path.name for path in what.folder.glob("call-*")] == [what.call(1 - number).name]
