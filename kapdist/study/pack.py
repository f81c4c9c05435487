"""All that a study's page is made of, in one file: whoever has it and the study's YAML writes the same page again.

Weights, checkpoints and logs stay at home: what is left of a model is what it was asked and what it answered, image
by image, some 30 kB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from kapdist.errors import InputError
from kapdist.records.bundle import seal, zip_writer
from kapdist.records.record import read_record
from kapdist.records.sealed import json_bytes, read_json
from kapdist.records.study import StudyResults
from kapdist.run.files import check_outputs, mapping_in, to_json, written_aside
from kapdist.run.paths import AttackDir, RunDir
from kapdist.study.design import Design
from kapdist.study.page import write_study_report
from kapdist.study.tasks import ATTACK, SANITY, TOPOGRAPHY, TRAINING, Task, tasks

TOLD = "host", "device", "platform", "python", "packages"
"""Of a machine; variables, command lines and what was not committed are nobody else's."""


def pack_study(design: Design, out: Path) -> Path:
    """Write the page of what there is so far, and a zip of the files that it is made of: of equal ones equal bytes.

    The names in it begin with the study's: unpack it in `studies_dir`.

    Raises:
        InputError: as `write_study_report`, or `out` names no zip.
    """
    if out.suffix != ".zip" or out.is_dir():
        raise InputError("--out", "a file NAME.zip", str(out))
    check_outputs(out, keep_folders=False)
    write_study_report(design)  # it reads and checks what is packed
    found = read_record(StudyResults, design.dir.results, "kapdist study report writes it again")
    with written_aside(out) as aside:
        with zip_writer(aside) as add:
            for path, content in files_of(design, set(found.missing)):
                add(str(Path(design.dir.name) / path.relative_to(design.root)), content)
        seal(aside)
    return out


def files_of(design: Design, missing: Collection[str]) -> Iterator[tuple[Path, bytes]]:
    """Yield what a page is made of, and what its numbers are counted from.

    Of what is begun and not done there is nothing on the page but some hours, and nothing here.

    Args:
        missing: commands that were not done when the page was written; they may be by now.
    """
    place = design.dir
    yield from there(place.frozen, place.config, place.base, *sorted(place.configs.rglob("*.yaml")))
    every = tasks(design)
    examined = {task.result for task in every if task.kind == SANITY}
    for task in every:
        if task.name in missing:
            continue
        yield from (trained if task.kind == TRAINING else asked)(task)
        if task.kind == ATTACK and (own := AttackDir(task.result.parent).sanity) not in examined:
            yield from there(own)  # that somebody made by hand: the page reads it too


def trained(task: Task) -> Iterator[tuple[Path, bytes]]:
    run = RunDir(task.result.parent)
    yield from there(run.config, run.plan, run.metrics, *sorted(run.attempts.glob("*/heartbeat-*.json")), run.done)
    told = {key: value for key, value in mapping_in(run.environment).items() if key in TOLD}
    yield run.environment, (to_json(told, indent=2) + "\n").encode()


def asked(task: Task) -> Iterator[tuple[Path, bytes]]:
    """What a sanity check was made of lies beside it, with its attack."""
    made = AttackDir(task.result.parent)
    if task.kind != SANITY:
        if made.plan.is_file():
            yield made.plan, without_folders(made.plan)
        yield from there(made.records)
    if task.kind == TOPOGRAPHY and task.result.is_file():
        yield task.result, without_folders(task.result)
    else:
        yield from there(task.result)


def without_folders(path: Path) -> bytes:
    """Return a plan or a record without the folders that its images lie in, which decide nothing and are no
    fingerprint's."""
    told = read_json(path)
    subject, published = told.get("subject", told), told.get("published") or {}
    for part, key in ((subject.get("data"), "path"), (told, "data"), (published, "folder"), (told, "frost_folder")):
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = Path(part[key]).name
    return json_bytes(told)


def there(*paths: Path) -> Iterator[tuple[Path, bytes]]:
    return ((path, path.read_bytes()) for path in paths if path.is_file())
