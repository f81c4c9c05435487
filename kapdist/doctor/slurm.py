"""Slurm: its commands, its controller, and the settings that decide what a job can count on (docs/slurm.md)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping

from kapdist.doctor.finding import Finding, judged, note, ok, wrong
from kapdist.run import slurm

SECONDS = 60.0  # the examination's own limit comes first
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
NO_CONFIGURATION = "configuration source"


def cluster() -> Iterator[Finding]:
    """Ask the controller for its configuration."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if len(absent) == len(COMMANDS):
        yield ok("Slurm", "none here: launch/ runs jobs on this machine (--local)")
        return
    if absent:
        yield wrong("Slurm", f"no {', '.join(absent)}", "install the rest of Slurm's commands, or load its module")
        return
    done = slurm.answer("scontrol", "show", "config", seconds=SECONDS)
    if done is None or done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1] if done else "nothing"
        if NO_CONFIGURATION in said:
            remedy = "on a node of a cluster: SLURM_CONF names its slurm.conf"
            yield note("Slurm", "its commands are here, a cluster is not configured", remedy)
        else:
            yield wrong(
                "Slurm", f"its controller does not answer: {said}", "jobs cannot be submitted: ask who runs it"
            )
        return
    yield from told(settings(done.stdout))


def settings(text: str) -> dict[str, str]:
    """Return {key: value} of what `scontrol show config` prints."""
    found = re.findall(r"^(\w+)\s*= ?(.*)$", text, re.MULTILINE)
    return {key: value.strip() for key, value in found}


def told(config: Mapping[str, str]) -> Iterator[Finding]:
    """Judge a cluster's configuration."""
    version, name = config.get("SLURM_VERSION", "of no version"), config.get("ClusterName", "without a name")
    yield ok("Slurm", f"{version}, cluster {name}")
    tasks, track = config.get("TaskPlugin", ""), config.get("ProctrackType", "")
    bound = any(word in tasks for word in ("affinity", "cgroup"))
    yield judged(
        "Slurm's tasks",
        f"TaskPlugin {tasks or 'none'}, ProctrackType {track or 'none'}",
        (not bound, "note", "ranks of a node are not bound to CPUs: kapdist divides the node's among them"),
        ("cgroup" not in track, "note", "processes that a job leaves behind may live on: locks wait for them"),
    )
    mode, parameters = config.get("PreemptMode", ""), config.get("SlurmctldParameters", "")
    preempts, warns = mode not in ("", "OFF"), "preempt_send_user_signal" in parameters
    requeues = config.get("JobRequeue", "1") != "0"
    yield judged(
        "Slurm's preemption",
        f"PreemptMode {mode or 'OFF'}, KillWait {config.get('KillWait', '?')}, JobRequeue {int(requeues)}",
        (
            preempts and not warns,
            "note",
            "no preempt_send_user_signal: a preempted training goes on from its last checkpoint, so keep "
            "train.checkpoint_every_minutes small",
        ),
        (not requeues, "note", "JobRequeue=0: launch/ asks for --requeue itself; some clusters refuse it"),
    )
