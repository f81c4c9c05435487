"""All runs below a folder: how far each is, what it reached, what that took. Only reads, and of each run little.

A run is what lies on disk: Slurm is not asked (launch/status.py does, for one run). Whether a process on another
machine lives, its heartbeat tells.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kapdist.errors import InputError, first_line
from kapdist.overview.attacks import OF_ANOTHER_KIND, Result, results_of
from kapdist.records.hours import training_hours
from kapdist.records.metrics import exported, parse_line
from kapdist.records.sealed import read_json
from kapdist.run.ends import deaths, end_of, why_failed
from kapdist.run.files import mapping_in, time_in
from kapdist.run.lock import holder_of, lives_here
from kapdist.run.paths import RunDir, as_ended

DEEPEST = 6  # folders below the one that is named; a study's runs lie three below its parent
LEFT_OUT = {"code", "data", "slurm", "report", "logs"}
OF_A_RUN = {"attempts", "checkpoints", "plan.json", "metrics.jsonl", "slurm", "DONE", "FAILED", "model.safetensors"}
OF_A_TRAINING = {"attempts", "checkpoints", "metrics.jsonl"}
ASKED = ("attacks", "corruptions", "certificates", "evaluations")
STUDY = "study.json"
SILENT_SECONDS = 30.0  # a rank says that it lives every five seconds
TAIL_BYTES = 1 << 18  # of the metrics, in which the newest evaluation is looked for first
STATES = ("running", "stopped", "not begun", "done", "failed", "damaged", "results")


@dataclass(frozen=True)
class RunLine:
    """One run."""

    name: str
    """Its directory, from the folder that was looked through."""
    state: str
    """One of STATES; stopped is to be continued, results are of a model from elsewhere."""
    why: str = ""
    step: int | None = None
    """Of a run that stopped the step it goes on from."""
    total_steps: int | None = None
    clean_accuracy: float | None = None
    """Of the newest evaluation in training; else of an attack, on its images."""
    attacks: tuple[Result, ...] = ()
    hours: float = 0.0
    """Of one process (rank, shard) each: training, attacks and sanity reports."""
    lost_hours: float = 0.0
    changed: float = 0.0
    """When a file of it was last written, seconds since the epoch."""

    @property
    def robust_accuracy(self) -> float | None:
        """The lowest of its attacks, those of an earlier plan aside."""
        found = (attack.robust_accuracy for attack in self.attacks if not attack.planned_anew)
        return min((share for share in found if share is not None), default=None)

    def describe(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


SORTED = {
    "name": lambda run: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run.name)],
    "state": lambda run: STATES.index(run.state),
    "clean": lambda run: -(run.clean_accuracy or 0.0),
    "robust": lambda run: -(run.robust_accuracy or 0.0),
    "hours": lambda run: -run.hours,
    "changed": lambda run: -run.changed,
}


def read_runs(folder: Path, by: str = "name") -> list[RunLine]:
    """Read all runs below a folder.

    Args:
        by: one of SORTED; runs that are equal in it are in the order of their names.

    Raises:
        InputError: the folder is none; another order.
    """
    if by not in SORTED:
        raise InputError("--sort", f"one of {', '.join(SORTED)}", repr(by))
    if not folder.is_dir():
        raise InputError(folder, "a folder with runs", "a file" if folder.exists() else "nothing")
    now = time_in(folder)
    found = [read_run(folder, root, now, error) for root, error in find_runs(folder)]
    return sorted(sorted(found, key=SORTED["name"]), key=SORTED[by])


def find_runs(
    folder: Path, depth: int = 0, seen: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[Path, OSError | None]]:
    """Yield the directories of runs below a folder, itself included, and folders that cannot be looked into.

    Args:
        seen: the folders above, to which a link may lead back.
    """
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        with os.scandir(folder) as entries:
            inside = {entry.name: leads_to_a_folder(entry) for entry in entries}
    except OSError as error:
        yield folder, error
        return
    if is_run(folder, inside):
        yield folder, None
    elif depth < DEEPEST:
        for name in sorted(inside):
            if inside[name] and name not in LEFT_OUT and not name.startswith("."):
                yield from find_runs(folder / name, depth + 1, seen | {(here.st_dev, here.st_ino)})


def leads_to_a_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one; one that cannot be asked is not, as a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_run(folder: Path, inside: Mapping[str, bool]) -> bool:
    """Tell a run's directory by what lies in it; a study's has a config too, and its runs below."""
    if STUDY in inside:
        return False
    if "config.yaml" in inside:
        return bool(OF_A_RUN & inside.keys())
    asked = any(inside.get(name) and any((folder / name).glob("*/*.json")) for name in ASKED)
    return asked or len(OF_A_TRAINING & inside.keys()) > 1


def read_run(folder: Path, root: Path, now: float, error: OSError | None = None) -> RunLine:
    """Read one run; whatever is wrong with it is said in its line."""
    name = str(root.relative_to(folder))
    run = RunDir(root)
    try:
        if error is not None:
            raise error
        return line_of(run, name, now)
    except InputError as damage:
        why = str(damage).removeprefix(f"{root}{os.sep}")
    except OSError as damage:
        why = f"{damage.filename or root}: {damage.strerror}"
    except OF_ANOTHER_KIND as damage:
        why = f"a file of it has a value of another kind: {first_line(damage)}"
    return RunLine(name, "damaged", why, changed=changed(run))


def line_of(run: RunDir, name: str, now: float) -> RunLine:
    """Read a run.

    Raises:
        InputError: a file of it is damaged.
    """
    attacks = results_of(run)
    asked = sum(attack.seconds for attack in attacks) / 3600
    clean = next((attack.clean_accuracy for attack in attacks if attack.clean_accuracy is not None), None)
    common: dict[str, Any] = {"attacks": attacks, "changed": changed(run)}
    if not run.config.exists() and not OF_A_TRAINING & {path.name for path in run.root.iterdir()}:
        return RunLine(name, "results", clean_accuracy=clean, hours=asked, **common)
    if has_nothing(run):
        return RunLine(name, "not begun", "no training has got as far as its config here", **common)
    total_steps = checked(run)
    state, why = state_of(run, now)
    used, lost = training_hours(run, going_on=state in ("done", "running"))
    lines = metrics_of(run)
    evaluated = exported(tuple(filter(has_accuracy, lines)))
    return RunLine(
        name,
        state,
        why,
        step=total_steps if state == "done" else step_of(run, state, lines),
        total_steps=total_steps,
        clean_accuracy=evaluated[-1]["top1"] if evaluated else clean,
        hours=used + asked,
        lost_hours=lost,
        **common,
    )


def has_nothing(run: RunDir) -> bool:
    """Tell whether nothing is here but what an attempt leaves that was refused."""
    kept = (run.config, run.plan, run.metrics, run.weights, run.best_weights, run.done, run.failed, run.slurm)
    return not any(path.exists() for path in kept) and not run.saved()


def checked(run: RunDir) -> int | None:
    """Return the steps in plan.json, where there is one, of a run whose files are what they should be.

    Raises:
        InputError: a file is missing, damaged, or not what the run ended with.
    """
    if not run.config.exists():
        raise InputError(run.config, "the config of this run", "nothing")
    if not re.search(rb"^name:", run.config.read_bytes(), re.MULTILINE):
        raise InputError(run.config, "the config of this run", "something else")
    for path in (run.config, run.plan, run.metrics):
        as_ended(path)
    steps = read_json(run.plan).get("total_steps") if run.plan.exists() else None
    return None if steps is None else int(steps)


def state_of(run: RunDir, now: float) -> tuple[str, str]:
    """Return the state, and why."""
    last = run.attempts / str(run.last_attempt())
    if worker := worker_on(run, last, now):
        return "running", worker
    if run.done.exists():
        return "done", ""
    if run.failed.exists():
        return "failed", why_failed(run.failed)
    if last.is_dir():
        return "stopped", next(iter(deaths(last)), end_of(last))
    return "not begun", "submitted" if (run.slurm / "jobs.jsonl").exists() else ""


def worker_on(run: RunDir, last: Path, now: float) -> str:
    """Name the process that trains, or starts the ranks again; "" where none does."""
    for lock in (run.lock, run.launcher):
        holder = holder_of(lock)
        if holder is None:
            continue
        lives = lives_here(holder)
        if lives is None:
            beats = [path.stat().st_mtime for path in last.glob("heartbeat-*.json")]
            lives = now - max(beats, default=0.0) < SILENT_SECONDS
        if lives:
            return f"process {holder.pid} on {holder.host}"
    return ""


def has_accuracy(line: Mapping[str, Any]) -> bool:
    return line["kind"] == "evaluate" and isinstance(line.get("top1"), int | float)


def step_of(run: RunDir, state: str, lines: Sequence[Mapping[str, Any]]) -> int:
    if state != "running":
        return run.newest_step()
    beats = [
        mapping_in(path).get("step", 0) for path in run.attempts.glob(f"{run.last_attempt()}/heartbeat-*.json")
    ]
    return max([*beats, *(line["step"] for line in lines[-1:])], default=0)


def metrics_of(run: RunDir) -> list[dict[str, Any]]:
    """Return the newest evaluations and the last two lines, of which one may be torn; of all if need be."""
    if not run.metrics.exists():
        return []
    size = run.metrics.stat().st_size
    for length in (TAIL_BYTES, size):
        with run.metrics.open("rb") as file:
            file.seek(max(0, size - length))
            lines = file.read().splitlines()
        told = [line for line in lines[:-2] if b'"evaluate"' in line] + lines[-2:]
        found = [line for text in told if (line := parse_line(text)) is not None]
        if any(line["kind"] == "evaluate" for line in found):
            break
    return found


def changed(run: RunDir) -> float:
    """Return when the newest of the files that tell of a run was written; 0.0 where none can be looked at."""
    told = [run.root, run.config, run.metrics, run.done, run.failed, run.checkpoints, run.attempts, run.attacks]
    told += [run.attempts / str(run.last_attempt())]
    for folder in (run.attempts / str(run.last_attempt()), run.attacks):
        told += folder.glob("*")
    times = []
    for path in told:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
