"""What a run asks Slurm itself, on a node or on a login node: whether a start of a job still runs."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

SECONDS = 20.0  # for each answer: a controller that hangs is as good as none
RUNS = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
RUNS |= {"POWER_UP_NODE"}
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}
ENDED |= {"DEADLINE"}
FORGOTTEN = "Invalid job id"
LARGEST_STEP = 2**31  # above are Slurm's own numbers: a batch script, an interactive step

# A user's wishes for what these print: SQUEUE_PARTITION, say, leaves jobs of other partitions out without a word.
WISHES = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
WIDER = "_FEDERATION"  # these leave nothing out


def start_lives(job: str, restart: int, step: str | None, own: bool) -> bool | None:
    """Return whether a start of a job, or a step of it, may still have processes; None where Slurm does not say.

    Args:
        restart: SLURM_RESTART_COUNT of the start.
        step: its number; a step that has ended leaves its job running.
        own: whether the job is this user's; of others' Slurm may deny that there are any.
    """
    # All: of jobs in hidden partitions, and of their steps, it says nothing otherwise.
    wanted = ("--states=all", f"--jobs={job}", "--Format=JobID:40,State:40,RestartCnt:20")
    words = ("squeue", "--noheader", "--all", *wanted)
    done = answer(*words)
    if done is None or done.returncode:
        forgotten = done is not None and FORGOTTEN in done.stderr
        return False if (forgotten and own) or ended_by_accounts(job) else None
    rows = re.findall(rf"^ *{re.escape(job)} +(\S+) +(\d+) *$", done.stdout, re.MULTILINE)  # whatever else is said
    states = [(state, int(count)) for state, count in rows]
    if not states:  # left out, whyever: only a job that is spoken of is known
        return False if ended_by_accounts(job) else None
    if any(state in RUNS - {"RUNNING"} for state, _ in states):
        return True  # its processes may be about to end, or to wake up
    if ("RUNNING", restart) not in states:
        return False
    return step_lives(job, step) if step and int(step) < LARGEST_STEP else True


def step_lives(job: str, step: str) -> bool | None:
    done = answer("squeue", "--noheader", "--steps", "--all", f"--jobs={job}", "--format=%i")
    if done is None or done.returncode:
        return None
    return any(line.strip().rpartition(".")[2] == step for line in done.stdout.splitlines())


def ended_by_accounts(job: str) -> bool:
    """Return whether the accounts, which need no controller, say that a job has ended."""
    done = answer("sacct", "-X", "-n", "-P", "-j", job, "-o", "State")
    said = done.stdout.splitlines() if done and not done.returncode else []
    states = [words[0] for line in said if (words := line.split())]
    return bool(states) and ENDED.issuperset(states)


def cluster_name() -> str | None:
    """Return the name of the cluster whose commands these are: another one has jobs of the same numbers."""
    if name := os.environ.get("SLURM_CLUSTER_NAME"):
        return name
    done = answer("scontrol", "show", "config")
    found = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE) if done else None
    return found[1] if found else None


def answer(*words: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str] | None:
    """Run a command of Slurm without the user's wishes; None where it takes too long or is not there."""
    kept = {key: it for key, it in os.environ.items() if not key.startswith(WISHES) or key.endswith(WIDER)}
    # Lists of an array's elements are cut after 64 characters unless told otherwise; comments may have any bytes.
    how: dict[str, Any] = {"env": kept | {"SLURM_BITSTR_LEN": "0"}, "text": True, "errors": "replace"}
    try:
        return subprocess.run(words, **how, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
