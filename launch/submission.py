"""What is given to Slurm, as a value: the same one is printed by --dry-run and submitted. Pure."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kapdist.errors import InputError
from launch.cluster import ClusterConfig
from launch.container import Container

MARK = "kapdist:"  # and the token, in a job's comment


@dataclass(frozen=True)
class Submission:
    """One job, or one array of jobs.

    Args:
        folder: where its script, logs and pickles go.
        parameters: of submitit's SlurmExecutor, in sbatch's own names.
        python: the interpreter on the nodes, and what stands before it.
        elements: of the array; 0 is a single job.
    """

    folder: Path
    parameters: dict[str, Any]
    python: str
    elements: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    """Written beside the job's number: kind, shards, snapshot."""
    token: str = "TOKEN"
    """Of this submission alone: the job carries it, so that it is found where its number was lost."""

    def script(self) -> str:
        """Return the batch script, as submitit writes it."""
        from submitit.slurm.slurm import _make_sbatch_string

        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.folder.absolute()))}"
        own = {
            "comment": " ".join(filter(None, [self.parameters.get("comment"), MARK + self.token])),
            "setup": [*self.parameters.get("setup", ()), self.take_call()],
        }
        # One element makes a plain job.
        map_count = self.elements if self.elements > 1 else None
        return _make_sbatch_string(command, self.folder, **self.parameters | own, map_count=map_count)

    def call(self, number: object) -> Path:
        """Return where the call of an element lies until it starts."""
        return self.folder.absolute() / f"call-{self.token}-{number}.pkl"

    def take_call(self) -> str:
        """Return the shell line that gives a start its call: whoever submitted may not live to do it."""
        call = shlex.quote(str(self.call("")).removesuffix(".pkl")) + "${SLURM_ARRAY_TASK_ID:-0}.pkl"
        job = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        given = f"{shlex.quote(str(self.folder.absolute()))}/{job}_submitted.pkl"
        return f'call={call}; [ ! -e "$call" ] || mv "$call" {given}'


def token_in(comment: str) -> str:
    """Return the token that a job's comment holds, "" if none."""
    found = re.search(rf"{MARK}(\w+)", comment)
    return found[1] if found else ""


def submission(
    name: str,
    folder: Path,
    cluster: ClusterConfig,
    snapshot: Path,
    last_word: str,
    *,
    sbatch: dict[str, str] | None = None,
    elements: int = 0,
    folders: Sequence[Path] = (),
    **about: Any,
) -> Submission:
    """Put together what one job asks for.

    Args:
        name: of the job, as squeue shows it.
        cluster: what this kind of job asks for (`ClusterConfig.of`).
        snapshot: the code that the job runs.
        last_word: module and arguments that are run when the ranks have ended, with their exit code after them.
        sbatch: options of this job alone.
        folders: that its ranks read and write, beside the working directory, `folder` and `snapshot`.
        about: for the record of the jobs.
    """
    check_pattern(folder)
    python = from_snapshot(cluster.python or shlex.quote(sys.executable), snapshot)
    container = Container(cluster, [folder, snapshot, *folders]) if cluster.container else None
    inside = [*container.wrapper, from_snapshot(cluster.container_python, snapshot)] if container else [python]
    log = "%A_%a_{}_log.out" if elements > 1 else "%j_{}_log.out"
    logs = f"{str(folder.absolute()).replace('%', '%%')}/{log}"
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": cluster.time_minutes,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.ranks_per_node,
        "cpus_per_task": cluster.cpus_per_rank,
        "gpus_per_node": cluster.gpus_per_node or None,
        "partition": cluster.partition,
        "comment": cluster.comment,
        "mail_user": cluster.mail.user,
        "mail_type": ",".join(cluster.mail.kinds) if cluster.mail.user else None,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "signal_delay_s": cluster.signal_seconds,
        "array_parallelism": cluster.shards_at_once,
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, "output": logs.format(0)}
        | memory(cluster)
        | options(cluster)
        | (sbatch or {}),
        "srun_args": [*srun_words(logs, cluster), *(container.srun_words if container else ())],
        "setup": setup(folder, cluster, snapshot),
        "teardown": ["code=$?", "trap '' TERM  # the last word's too", f"exec {python} -m {last_word} $code"],
    }
    about |= {"snapshot": str(snapshot.absolute())}
    return Submission(folder, parameters, " ".join(inside), elements, about)


def from_snapshot(python: str, snapshot: Path) -> str:
    """Return what takes `-m MODULE` as an interpreter does, with the snapshot's modules."""
    return f"{python} -u {shlex.quote(str(snapshot.absolute() / 'launch' / 'module.py'))}"


def srun_words(logs: str, cluster: ClusterConfig) -> list[str]:
    """Return srun's options; the last of two wins.

    The ranks get what the script exports, even where sbatch was told to export nothing.
    """
    return ["--kill-on-bad-exit=1", "--mpi=none", "--export=ALL", f"--output={logs.format('%t')}", *cluster.srun]


def check_pattern(folder: Path) -> None:
    """Refuse a folder that Slurm cannot write logs to: a backslash switches all symbols of its patterns off."""
    if "\\" in str(folder.absolute()):
        raise InputError(folder, "a path without backslashes, which Slurm drops from the names of logs", "one")


def memory(cluster: ClusterConfig) -> dict[str, str]:
    return {"mem": f"{round(cluster.memory_gb * 1024)}M"} if cluster.memory_gb else {}


def options(cluster: ClusterConfig) -> dict[str, str | int | float | bool]:
    """Return further options: true is a flag without a value, and what is false is left out."""
    return {key: value for key, value in cluster.sbatch.items() if value is not False}


def setup(folder: Path, cluster: ClusterConfig, snapshot: Path) -> list[str]:
    """The shell lines before srun."""
    start = "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
    return [
        *cluster.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in cluster.environment.items()),
        f"export PYTHONPATH={shlex.quote(str(snapshot.absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # Every start of the job has a meeting point of its own, so a requeue never meets the ranks before it.
        f"export KAPDIST_RENDEZVOUS={shlex.quote(str(folder.absolute()))}/rendezvous-{start}.json",
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not read the latter since 22.05",
        "trap : TERM  # Slurm's TERM is for the ranks; this shell stays for the last word",
    ]
