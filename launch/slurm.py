"""What Slurm is told and asked: submit, requeue, cancel, the state of jobs. Every call has a time limit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from kapdist.environment import user_name
from kapdist.errors import InputError, TransientError
from kapdist.run.files import write_atomic
from kapdist.run.lock import locked_in_turn
from kapdist.run.slurm import answer
from launch.call import Call
from launch.submission import Submission, token_in

SECONDS = 60.0
# Of what sbatch says where it fails: the controller may have the job all the same.
UNSURE = re.compile("timed out|unable to contact|zero bytes|connection|transport", re.IGNORECASE)
TIMEOUTS = 3  # that submitit counts and nobody here asks for
# Jobs of hidden partitions are left out otherwise.
EVERY = ("--all", "--noheader")
# What sbatch's variables are called behind SBATCH_, where not as the option is.
VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
}
# What would change what a submission is, or how sbatch answers, where the script does not speak of it.
OURS_ALONE = {"ARRAY_INX", "CLUSTERS", "ERROR", "WAIT"}


def submit(what: Submission, calls: Sequence[Call]) -> str:
    """Queue a job that calls the first of `calls` on every rank, or an array with an element for each of them.

    Returns the job's number.

    Raises:
        RefusedError: Slurm refuses it, in Slurm's own words, or is not there: nothing was queued.
        TransientError: Slurm does not say whether it was.
    """
    if shutil.which("sbatch") is None:
        raise RefusedError("sbatch", "Slurm on this machine (or --local)", "nothing")
    from submitit.core.utils import DelayedSubmission  # of the extra `cluster`: looking at what runs does without

    for number, call in enumerate(calls):
        given = DelayedSubmission(call)
        given.set_timeout(what.parameters["time"], TIMEOUTS)
        given.dump(what.call(number))
    script = what.folder / f"submission-{what.token}.sh"
    text = what.script()
    write_atomic(script, text)
    with as_said_in(text):
        done = answer("sbatch", str(script), seconds=SECONDS)
    said = own_words(done.stderr or done.stdout) if done else f"none in {SECONDS:g} s"
    if done and done.returncode == 0 and (job := re.search(r"batch job (\d+)", done.stdout)):
        return job[1]
    if done is None or done.returncode == 0 or UNSURE.search(said):
        raise TransientError(f"sbatch: no job's number but {said}; run it again, it looks for the job first")
    for number in range(len(calls)):
        what.call(number).unlink()
    raise RefusedError("sbatch", "a job that this cluster takes", said)


class RefusedError(InputError):
    """Slurm does not take a job."""


def submitted_as(tokens: Iterable[str], users: Iterable[str], since: float) -> dict[str, str] | None:
    """Return {token: job} of those submissions that became jobs; None if Slurm does not answer.

    Args:
        users: who submitted them.
        since: when the first of them was, seconds since the epoch.
    """
    wanted, users = set(tokens), set(users)
    queue = ask("squeue", whose(users), *EVERY, "--states=all", "--format=%F|%k")
    if queue is None and shutil.which("squeue"):
        return None
    # The accounts have those that the controller has forgotten, where the cluster keeps comments.
    began = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 3600))  # another clock
    theirs = [whose(users)] if users - {user_name()} else []
    accounts = ask("sacct", "-X", "-n", "-P", f"--starttime={began}", *theirs, "-o", "JobID,Comment")
    rows = [line.partition("|") for text in (accounts, queue) for line in (text or "").splitlines()]
    found = {token_in(comment): job.partition("_")[0] for job, _, comment in rows}
    return {token: found[token] for token in wanted & found.keys()}


def whose(users: Iterable[str]) -> str:
    """Return squeue's word for the jobs of some users; this one's number is known without a look at any name."""
    named = {*users}
    return "--user=" + ",".join(sorted(named)) if named - {user_name()} else "--me"


@contextlib.contextmanager
def as_said_in(script: str) -> Iterator[None]:
    """Hide what sbatch would read beside a script: the job that this process belongs to, which it hands down and a
    job takes for its own, and the user's variables for what the script says, which it would believe more.
    """
    said = re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE)
    names = {name for option in said for name in VARIABLES.get(option, (option.replace("-", "_").upper(),))}
    theirs = {f"SBATCH_{name}" for name in names | OURS_ALONE}
    own = {key for key in os.environ if key.startswith("SLURM_") and key != "SLURM_CONF"}
    kept = {key: os.environ.pop(key) for key in own | theirs if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def submitting(folder: Path) -> AbstractContextManager[None]:
    """Hold the right to submit what has its jobs in `folder`: who comes second then sees the first one's job.

    Raises:
        LockedError: somebody else has it for minutes.
    """
    return locked_in_turn(folder / "SUBMITTING", 2 * SECONDS)


def own_words(text: str) -> str:
    """Return what Slurm's tool said, in one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "no reason given"


def ask(*words: str, seconds: float = SECONDS) -> str | None:
    """Return what a command of Slurm prints, None where it fails, takes too long or is not there."""
    done = answer(*words, seconds=seconds)
    return done.stdout if done and done.returncode == 0 else None


def job_facts(job: str) -> dict[str, str]:
    """Return `scontrol show job` as a mapping; empty when Slurm does not know the job, or does not answer."""
    text = ask("scontrol", "show", "job", "-o", job) or ""
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", text))


def queued(
    jobs: Iterable[str], users: Iterable[str] = (), seconds: float = SECONDS
) -> dict[str, tuple[str, str]] | None:
    """Return {job or array element: (state, reason)} of the jobs that are in the queue; None if Slurm is silent.

    One unknown number makes squeue refuse the whole list, so all jobs of the users, or of this one, are asked for.
    """
    words = ("squeue", whose(users), *EVERY, "--array", "--states=all", "--format=%i|%T|%r")
    text = ask(*words, seconds=seconds)
    if text is None:
        return None
    wanted = {job.partition("_")[0] for job in jobs}
    rows = (line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
    return {job: (state, reason) for job, state, reason in rows if job.partition("_")[0] in wanted}


def accounted(jobs: Iterable[str], seconds: float = SECONDS) -> dict[str, str]:
    """Return {job or array element: state} of the jobs that have accounts; none where Slurm keeps none."""
    words = ("sacct", "-X", "-n", "-P", "-j", ",".join(jobs), "-o", "JobID,State")
    rows = (line.partition("|") for line in (ask(*words, seconds=seconds) or "").splitlines())
    return {job: state.split()[0] for name, _, state in rows if state.strip() for job in elements(name)}


def elements(name: str) -> list[str]:
    """Return the jobs that a name of sacct's stands for: array elements that never started share a line.

    "7_[0,2-4%2]" stands for 7_0, 7_2, 7_3 and 7_4, "7_[0-20:10]" for 7_0, 7_10 and 7_20.
    """
    array, bracket, listed = name.partition("_[")
    if not bracket:
        return [name]
    spans = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", listed.partition("%")[0])
    return [
        f"{array}_{n}" for first, last, by in spans for n in range(int(first), int(last or first) + 1, int(by or 1))
    ]


def alive(jobs: Iterable[str], users: Iterable[str] = ()) -> list[str]:
    """Return those of the jobs that wait or run, and those that may: Slurm did not answer for them.

    Args:
        users: who queued them, if not this one alone.
    """
    jobs = list(jobs)
    queued = ask("squeue", whose(users), *EVERY, "--array", "--format=%i|%F")
    if queued is None:
        return jobs if shutil.which("squeue") else []
    numbers = {number for line in queued.splitlines() for number in line.split("|")}
    return [job for job in jobs if job in numbers]


def max_array_size() -> int:
    """Return how many elements an array may have: Slurm's default if unknown, 1 where arrays are switched off.

    MaxArraySize is the first index that an array may not have; 0 allows no arrays. Of SchedulerParameters,
    max_array_tasks may be less.
    """
    text = ask("scontrol", "show", "config") or ""
    said = re.findall(r"(?:^MaxArraySize\s*=\s*|\bmax_array_tasks=)(\d+)", text, re.MULTILINE)
    return max(1, min(map(int, said))) if said else 1001


def this_job() -> str | None:
    """Return the number of the job that this process belongs to, of an array element as <array>_<element>."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Have the job start again; return why not, empty if it will. That it is about to already is as good."""
    done = answer("scontrol", "requeue", job, seconds=SECONDS)
    if done is None:
        return "scontrol does not answer"
    if done.returncode == 0 or "pending" in done.stderr.lower():
        return ""
    return own_words(done.stderr)


def restart_count() -> str:
    """Return how often this job was started before, as Slurm writes it."""
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def cancel_and_wait(jobs: Sequence[str], users: Iterable[str] = ()) -> None:
    """Cancel jobs and wait until none of them is left in the queue.

    Args:
        users: as of `alive`; Slurm cancels this one's alone.

    Raises:
        TransientError: Slurm did not end them in a minute.
    """
    if not jobs:
        return
    ask("scancel", *jobs)
    deadline = time.monotonic() + SECONDS
    while left := alive(jobs, users):
        if time.monotonic() > deadline:
            raise TransientError(f"scancel: Slurm has not ended job {', '.join(left)} in {SECONDS:g} s")
        time.sleep(0.2)
