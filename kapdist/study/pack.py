"""All that a study's page is made of, in one file: whoever has it and the study's YAML writes the same page again.

Weights, checkpoints and logs stay at home: what is left of a model is what it was asked and what it answered, image
by image, some 30 kB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kapdist.errors import InputError
from kapdist.records.bundle import seal, zip_writer
from kapdist.run.files import check_outputs, written_aside
from kapdist.run.paths import AttackDir, RunDir
from kapdist.study.design import Design
from kapdist.study.page import write_study_report
from kapdist.study.tasks import ATTACK, TRAINING, tasks


def pack_study(design: Design, out: Path) -> Path:
    """Write the page of what there is so far, and a zip of the files that it is made of: of equal ones equal bytes.

    The names in it begin with the study's: unpack it in `studies_dir`.

    Raises:
        InputError: as `write_study_report`; no study has begun here; or `out` names no zip.
    """
    if out.suffix != ".zip" or out.is_dir():
        raise InputError("--out", "a file NAME.zip", str(out))
    if not design.dir.frozen.exists():
        raise InputError(design.root, "a study that has begun (kapdist study run)", "none")
    check_outputs(out, keep_folders=False)
    write_study_report(design)  # it reads and checks what is packed
    with written_aside(out) as aside:
        with zip_writer(aside) as add:
            for path in files_of(design):
                add(str(Path(design.dir.name) / path.relative_to(design.root)), path.read_bytes())
        seal(aside)
    return out


def files_of(design: Design) -> Iterator[Path]:
    """Yield what a page is made of; of what is begun and not done there is nothing on it but some hours."""
    place = design.dir
    yield from there(place.frozen, place.config, place.base, *sorted(place.configs.rglob("*.yaml")))
    for task in tasks(design):
        if task.done:
            beside = BESIDE[task.kind](task.result.parent) if task.kind in BESIDE else []
            yield from there(*beside, task.result)


def beside_a_training(root: Path) -> list[Path]:
    run = RunDir(root)
    return [run.config, run.plan, run.environment, run.metrics, *sorted(run.attempts.glob("*/heartbeat-*.json"))]


def beside_an_attack(root: Path) -> list[Path]:
    attack = AttackDir(root)
    return [attack.plan, attack.records]


def there(*paths: Path) -> Iterator[Path]:
    return (path for path in paths if path.is_file())


BESIDE = {TRAINING: beside_a_training, ATTACK: beside_an_attack}
"""What the page needs of a command besides its result."""
