"""What a study consists of as commands that anybody could type, and which of them are still missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kapdist.config.file import dump_config
from kapdist.config.plain_yaml import dump
from kapdist.run.files import write_atomic
from kapdist.run.lock import holder_of, lives_here
from kapdist.run.paths import RunDir
from kapdist.study.design import Design
from kapdist.study.settings import Trained

TRAINING, ATTACK, SANITY, TOPOGRAPHY = "train", "attack", "sanity", "topography"
COMMANDS = {"certificate": ("certify",), "corruptions": ("attack", "corruptions")}


@dataclass(frozen=True)
class Task:
    """One command on one run."""

    run: Trained
    kind: str
    words: tuple[str, ...]
    """Of the command line, behind `kapdist`."""
    result: Path
    """Is there when the command has done what it should."""
    after: Path | None
    """What has to be there before it can begin."""
    lock: Path
    """Is held by whoever is at work on it."""
    attack: str = ""

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.run.name, self.kind, self.attack)))

    @property
    def done(self) -> bool:
        return self.result.exists()

    @property
    def at_work(self) -> bool:
        """Whether somebody seems to be at work on it; Slurm is not asked whether one on another machine lives."""
        holder = holder_of(self.lock)
        return holder is not None and lives_here(holder) is not False

    @property
    def can_begin(self) -> bool:
        return self.after is None or self.after.exists()


def tasks(design: Design) -> tuple[Task, ...]:
    """Return every command of a study: a run's own one after the other, runs in the order of the design."""
    return tuple(task for run in design.trained for task in tasks_of(design, run))


def tasks_of(design: Design, run: Trained) -> Iterator[Task]:
    place = run_dir(design, run)
    yield Task(run, TRAINING, ("train", str(config_file(design, run))), place.done, None, place.lock)
    for name, attack in design.attacks.items():
        if not attack.of(run):
            continue
        words, made = (str(place.root), str(attack_file(design, name))), place.attack(name)
        yield Task(run, ATTACK, ("attack", "run", *words), made.summary, place.done, made.lock, name)
        if name in design.sanity and design.sanity[name].of(run):
            yield Task(run, SANITY, ("attack", "sanity", *words), made.sanity, made.summary, made.lock, name)
    made_in = {"certificate": place.certified, "corruptions": place.corrupted}
    for kind, other in design.others.items():
        if other.of(run):
            found = made_in[kind](kind)
            words_of = (*COMMANDS[kind], str(place.root), str(other_file(design, kind)))
            yield Task(run, kind, words_of, found.summary, place.done, found.lock)
    if (asked := design.config.topography) is not None:
        asks = (str(place.root), f"--images={asked.images}", f"--permutations={asked.permutations}")
        look = place.topography(TOPOGRAPHY)
        yield Task(run, TOPOGRAPHY, ("topography", *asks), look.record, place.done, look.lock)


def run_dir(design: Design, run: Trained) -> RunDir:
    return design.dir.run(run.name)


def log_of(design: Design, task: Task) -> Path:
    """Return where a command's words go on one machine."""
    return design.dir.logs / f"{task.name.replace('/', '-')}.log"


def failure_of(design: Design, task: Task) -> Path:
    """Return what says why a command was given up on one machine, until it is begun again."""
    return log_of(design, task).with_suffix(".failed")


def config_file(design: Design, run: Trained) -> Path:
    return design.dir.configs / f"{run.name}.yaml"


def attack_file(design: Design, name: str) -> Path:
    return design.dir.attack_config(name)


def other_file(design: Design, kind: str) -> Path:
    return design.dir.configs / "others" / f"{kind}.yaml"


def write_configs(design: Design) -> None:
    """Write the config of every training, every attack and the study whole, for the commands and for later."""
    whole = design.config.model_copy(update={"train": Path(design.dir.base.name)})
    files = {config_file(design, run): run.config for run in design.trained}
    texts = {path: dump_config(config) for path, config in files.items()}
    texts |= {attack_file(design, name): dump_config(made.config) for name, made in design.attacks.items()}
    texts |= {other_file(design, kind): dump_config(found.config) for kind, found in design.others.items()}
    texts |= {design.dir.config: dump_config(whole), design.dir.base: dump(design.base, sort_keys=True)}
    for path, text in texts.items():
        if not path.exists() or path.read_text() != text:
            write_atomic(path, text)
