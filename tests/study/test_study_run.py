"""A study on this machine: real trainings and attacks, killed again and again, ends with the same page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
import zipfile
from pathlib import Path

import pytest
from processes import Process, end_ranks, start_ranks
from typer.testing import CliRunner

from kapdist.environment import pixel_libraries
from kapdist.errors import InputError, TransientError
from kapdist.records.study import StudyCosts, StudyResults
from kapdist.run.files import write_json
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir
from kapdist.study.command import study
from kapdist.study.design import make_design
from kapdist.study.frozen import freeze
from kapdist.study.machine import words_here
from kapdist.study.run import Queue, ask_of, run_study
from kapdist.study.tasks import ATTACK, TRAINING, Task, run_dir, tasks, write_configs

KILLS = 10
HOURS = '<section aria-labelledby="costs">'
STUDY = """
train: tiny.yaml
seeds: 2
at_once: 2
retries: 0
arms:
  plain: {{kap.pool_size: 1, kap.noise_std: 0, train.epochs: 1}}
  kap: {{kap.noise_std: [0.05, 0.3], train.epochs: 1}}
{more}
attacks:
  quick:
    {{version: custom, attacks: [random-noise], random_draws: 3, eps: [2/255, 8/255], num_images: 40}}
claims:
  - kap over plain, robust accuracy at 8/255, where noise_std=0.3
  - plain over kap, clean accuracy, where noise_std=0.05
"""
WORDS = ["-m", "kapdist.cli", "study", "run", "mine.yaml"]


@pytest.fixture
def folder(tmp_path: Path, tiny_config: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(STUDY.format(more=""))
    return tmp_path


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_page(folder: Path, tmp_path_factory) -> None:
    whole = tmp_path_factory.mktemp("whole")
    for name in ("mine.yaml", "tiny.yaml"):
        (whole / name).write_text((folder / name).read_text())
    (end,) = end_ranks(start_ranks(WORDS, 1, whole), 240)
    assert end.code == 0, end
    assert end.output.splitlines()[-1] == "studies/mine/report/index.html"

    # Asked to stop; killed alone, so that its commands go on; killed with them: soon after a command has begun.
    stop, together, alone = (signal.SIGTERM, os.kill), (signal.SIGKILL, os.killpg), (signal.SIGKILL, os.kill)
    ends = [(0.0, *stop), (0.2, *alone), (0.3, *together), (0.1, *stop), (0.05, *together)]
    for kill in range(KILLS):
        later, number, end_it = ends[kill % len(ends)]
        before = time.time()
        (process,) = start_ranks(WORDS, 1, folder)
        wait_for_a_command(folder, before, process)
        time.sleep(later)
        end_it(process.pid, number)
        process.wait(240)
    (end,) = end_ranks(start_ranks(WORDS, 1, folder), 240)
    assert end.code == 0, end
    reports = [root / "studies" / "mine" / "report" for root in (folder, whole)]
    for file in ("results.json", "table.csv", "table.md", "table.tex", "table.parquet"):
        mine, theirs = ((report / file).read_bytes() for report in reports)
        assert mine == theirs, file
    # The hours are those of the very study.
    mine, theirs = ((report / "index.html").read_text().partition(HOURS)[0] for report in reports)
    assert mine == theirs
    costs = [StudyCosts.model_validate_json((report / "costs.json").read_bytes()).costs for report in reports]
    assert all(cost.trained > 0 and cost.attacked > 0 for own in costs for cost in own)
    assert all(0 <= cost.lost < cost.trained for cost in costs[0])
    assert all(cost.lost == 0 for cost in costs[1])
    assert all(f"trained on {socket.gethostname()} (cpu)" in cost.machines for cost in costs[0])
    found = StudyResults.model_validate_json((folder / "studies/mine/report/results.json").read_text())
    assert (found.num_done, found.missing) == (found.num_tasks, ())
    assert {row.seeds for row in found.rows} == {(0, 1)}
    assert {row.num_images for row in found.rows} == {40}
    for row in found.rows:
        for seed, value in zip(row.seeds, row.per_seed, strict=True):
            assert value == counted(folder / "studies" / "mine" / "runs" / f"{row.setting}_seed{seed}", row.eps)

    design = make_design(folder / "mine.yaml")
    made = {task.name: os.stat(folder / task.result).st_mtime_ns for task in tasks(design)}
    page = (reports[0] / "index.html").read_bytes()
    (end,) = end_ranks(start_ranks(WORDS, 1, folder), 240)
    assert {task.name: os.stat(folder / task.result).st_mtime_ns for task in tasks(design)} == made  # nothing again
    assert (reports[0] / "index.html").read_bytes() == page  # hours and all
    assert_others_can_write_it_again(folder, tmp_path_factory.mktemp("reader"))


def wait_for_a_command(folder: Path, since: float, process: Process) -> None:
    """Wait until a study has begun a command: until a lock is newer."""
    until = time.monotonic() + 120
    while not any(taken_at(lock) > since for lock in folder.glob("studies/mine/runs/**/LOCK")):
        assert process.poll() is None, "nothing is left to kill"
        assert time.monotonic() < until
        time.sleep(0.01)


def taken_at(lock: Path) -> float:
    with contextlib.suppress(FileNotFoundError):  # let go between two looks
        return lock.stat().st_mtime
    return 0.0


def assert_others_can_write_it_again(folder: Path, reader: Path) -> None:
    """From the study's file and its pack alone, hours and all; what is packed once more is the same bytes."""
    for name in ("mine.yaml", "tiny.yaml"):
        shutil.copy(folder / name, reader)
    packs = []
    for home in (folder, reader):
        (end,) = end_ranks(start_ranks(["-m", "kapdist.cli", "study", "pack", "mine.yaml"], 1, home), 240)
        assert (end.code, end.output.splitlines()[-1]) == (0, "records.zip"), end
        packs.append((home / "records.zip").read_bytes())
        if home == folder:
            zipfile.ZipFile(folder / "records.zip").extractall(reader / "studies")
            assert not [*reader.rglob("*.safetensors"), *reader.rglob("checkpoints")]
    assert packs[0] == packs[1]
    plans = [json.loads(path.read_text()) for path in (reader / "studies").rglob("attacks/*/plan.json")]
    assert {Path(plan["data"]["path"]).parent for plan in plans} == {Path()}  # folders are nobody else's
    for path in (folder / "studies/mine/report").iterdir():
        assert (reader / "studies/mine/report" / path.name).read_bytes() == path.read_bytes(), path.name


def counted(run: Path, eps: float) -> float:
    """Return an accuracy as the attack's own summary has it."""
    summary = json.loads((run / "attacks" / "quick" / "summary.json").read_text())
    if not eps:
        return summary["num_clean_correct"] / summary["num_images"]
    (step,) = (step for step in summary["sweep"] if abs(step["eps"] - eps) < 1e-9)
    return step["num_robust"] / summary["num_images"]


@pytest.mark.slow
def test_an_arm_that_always_fails_is_named_and_decides_nothing(folder: Path) -> None:
    broken = "  broken: {data.train: nowhere.beton}"
    claims = STUDY.format(more=broken).replace("claims:", "claims:\n  - broken over plain, clean accuracy")
    (folder / "mine.yaml").write_text(claims.replace("seeds: 2", "seeds: 1"))
    (end,) = end_ranks(start_ranks(WORDS, 1, folder), 240)
    assert end.code == 1
    said = end.output.splitlines()[-1]
    assert said == (
        "kapdist: studies/mine: 1 of 8 commands failed, broken_seed0/train first "
        "(see studies/mine/logs/broken_seed0-train.log)"
    )
    assert "nowhere.beton" in (folder / "studies/mine/logs/broken_seed0-train.log").read_text()
    (status,) = end_ranks(
        start_ranks(["-m", "kapdist.cli", "study", "status", "mine.yaml", "--json"], 1, folder), 60
    )
    failed = [
        (cell["failed"], cell["why"]) for row in json.loads(status.output)["settings"] for cell in row["cells"]
    ]
    assert [name for name, why in failed if "nowhere.beton" in why] == ["broken_seed0/train"]
    assert sum(bool(name) for name, _ in failed) == 1
    page = (folder / "studies/mine/report/index.html").read_text()
    assert "Not done: broken_seed0/train, broken_seed0/attack/quick." in page
    assert "broken under quick has no result for seed 0" in page
    assert "one seed, and how much seeds differ is not known" in page


def test_a_model_is_asked_what_is_missing_of_it_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an element of an array does it on Slurm, where attacks may have jobs of their own."""
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text(STUDY.format(more="sanity: quick"))
    design = make_design(folder / "mine.yaml")
    asked: list[str] = []
    monkeypatch.setattr(Queue, "start", lambda self, task: asked.append(task.name) or task.result.touch())
    first, other = design.trained[:2]
    with pytest.raises(InputError, match="a run that is done"):
        ask_of(design, first.name)
    for run in (first, other):
        run_dir(design, run).attack("quick").root.mkdir(parents=True)
        run_dir(design, run).done.touch()
    ask_of(design, first.name, without=(TRAINING, ATTACK))
    assert asked == []
    ask_of(design, first.name, without=(TRAINING,))
    assert asked == [f"{first.name}/{kind}/quick" for kind in ("attack", "sanity")]
    freeze(design)
    write_configs(design)
    assert make_design(design.dir.config).described() == design.described()  # whole, whatever becomes of the file


@pytest.fixture
def begun(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A study whose first run is trained; what is done of it then is a list of names and words."""
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text(STUDY.format(more="sanity: quick"))
    design = make_design(folder / "mine.yaml", ["seeds=1"])
    for run in design.trained:
        run_dir(design, run).root.mkdir(parents=True)
        run_dir(design, run).done.touch()
    asked: dict[str, tuple[str, ...]] = {}

    def start(self: Queue, task: Task) -> None:
        asked[task.name] = words_here(self.design, task)
        task.result.parent.mkdir(parents=True, exist_ok=True)
        task.result.touch()

    monkeypatch.setattr(Queue, "start", start)
    return design, run_dir(design, design.trained[0]).attack("quick"), asked


def plan_elsewhere(attack: AttackDir, **differs: object) -> None:
    attack.chunks.mkdir(parents=True)
    write_json(attack.plan, {"device": "cpu", "packages": {}} | differs)


@pytest.mark.parametrize(
    "differs", [{"device": "NVIDIA H100 80GB HBM3"}, {"packages": {"torch": "1.0"}}], ids=["device", "version"]
)
def test_what_another_machine_began_is_begun_anew_and_kept(begun, differs: dict[str, object], capsys) -> None:
    design, attack, asked = begun
    plan_elsewhere(attack, **differs)
    kept = design.dir.elsewhere / "plain_seed0-quick-2"
    kept.mkdir(parents=True)  # the first is removed by now
    (kept / "plan.json").touch()
    run_study(design)
    assert "plain_seed0/attack/quick" in asked
    assert os.listdir(kept) == ["plan.json"]
    assert sorted(os.listdir(design.dir.elsewhere / "plain_seed0-quick-3")) == ["chunks", "plan.json"]
    assert "begins anew here" in capsys.readouterr().err


def test_corruptions_by_another_opencv_begin_anew(begun, capsys) -> None:
    """Their pixels are its own; with this machine's version they would be refused, and given up."""
    _, _, asked = begun
    Path("mine.yaml").write_text(STUDY.format(more="corruptions: {}"))
    design = make_design(Path("mine.yaml"), ["seeds=1"])
    for run, version in zip(design.trained, ("4.0.0", pixel_libraries()["opencv"]), strict=False):
        place = run_dir(design, run).corrupted("corruptions")
        place.root.mkdir(parents=True)
        subject = {"device": "cpu", "packages": {}}
        write_json(place.plan, {"subject": subject, "libraries": pixel_libraries() | {"opencv": version}})
    run_study(design)
    assert [path.name for path in design.dir.elsewhere.iterdir()] == ["plain_seed0-corruptions-1"]
    assert "plain_seed0/corruptions: begun with opencv 4.0.0, begins anew here" in capsys.readouterr().err
    assert "plain_seed0/corruptions" in asked


def test_what_another_machine_began_stays_where_somebody_goes_on_with_it_meanwhile(begun, monkeypatch) -> None:
    design, attack, asked = begun
    plan_elsewhere(attack, packages={"torch": "1.0"})
    monkeypatch.setattr("kapdist.study.run.other_at_work", lambda lock: None)  # when we looked
    with locked(attack.lock):
        with pytest.raises(TransientError, match=r"were left, plain_seed0/attack/quick first: .*nobody else"):
            run_study(design)
        assert attack.chunks.is_dir()
    assert "plain_seed0/attack/quick" not in asked


def test_what_another_machine_ended_stays_and_is_examined_there(begun) -> None:
    design, attack, asked = begun
    plan_elsewhere(attack, device="NVIDIA H100 80GB HBM3")
    attack.summary.touch()
    with pytest.raises(
        TransientError, match=r"1 of 9 commands were left, plain_seed0/sanity/quick first: it takes"
    ):
        run_study(design)
    assert attack.plan.exists()
    assert not {"plain_seed0/attack/quick", "plain_seed0/sanity/quick"} & set(asked)
    assert "kap_0.3_seed0/sanity/quick" in asked


@pytest.mark.parametrize(
    ("machine", "planned", "said"), [("cpu", None, True), ("GPU", None, False), ("GPU", "cpu", True)]
)
def test_a_machine_without_a_gpu_attacks_what_was_trained_on_one(
    begun, monkeypatch, machine, planned, said
) -> None:
    """`device=auto` alone would be refused, lest a login node bind the plan to CPUs."""
    design, attack, asked = begun
    monkeypatch.setattr("kapdist.study.machine.here", lambda: machine)
    if planned:
        plan_elsewhere(attack, device=planned)
    run_study(design)
    assert ("device=cpu" in asked["plain_seed0/attack/quick"]) == said


@pytest.mark.parametrize("kind", ["certificate", "corruptions"])
def test_what_a_machine_without_a_gpu_began_goes_on_beside_one(begun, monkeypatch, kind: str) -> None:
    """Certificates and corruptions have plans, too: for the GPU they would be refused, try after try."""
    _, _, asked = begun
    Path("mine.yaml").write_text(STUDY.format(more="certificate: {sigma: 0.25}\ncorruptions: {}"))
    design = make_design(Path("mine.yaml"), ["seeds=1"])
    place = {task.kind: task for task in tasks(design) if task.run.name == "plain_seed0"}[kind].result.parent
    place.mkdir(parents=True)
    write_json(place / "plan.json", {"subject": {"device": "cpu", "packages": {}}})
    monkeypatch.setattr("kapdist.study.machine.here", lambda: "GPU")
    run_study(design)
    assert [name for name, words in asked.items() if "device=cpu" in words] == [f"plain_seed0/{kind}"]
    assert not design.dir.elsewhere.exists()


def test_a_lock_of_which_nothing_says_whether_it_is_held_is_not_waited_for(begun) -> None:
    design, attack, asked = begun
    attack.root.mkdir(parents=True)
    with locked(attack.lock):
        held = json.loads(attack.lock.read_text())
    write_json(attack.lock, held | {"host": "elsewhere", "boot": "another", "job": None})
    with pytest.raises(TransientError, match=r"commands were left, plain_seed0/attack/quick first: .*remove"):
        run_study(design)
    assert "plain_seed0/attack/quick" not in asked


def test_jobs_says_how_many_commands_run_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots: list[int] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr("kapdist.study.run.run_study", lambda design: slots.append(Queue(design, []).slots))
    monkeypatch.setattr("kapdist.study.page.write_study_report", lambda design: design.dir.page)
    said = [
        CliRunner().invoke(study, ["run", "mine.yaml", *words]) for words in ([], ["--jobs", "7"], ["--jobs=0"])
    ]
    assert slots == [2, 7]
    monkeypatch.setattr("kapdist.study.run.num_gpus", lambda: 3)
    CliRunner().invoke(study, ["run", "mine.yaml", "at_once=0"])
    assert slots[2:] == [3], "one to a GPU"
    assert [one.exit_code for one in said] == [0, 0, 2]


def test_a_study_without_images_is_refused_before_anything_is_there(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    path, beton = folder / "tiny.yaml", make_design(folder / "mine.yaml").trained[0].config.data.train
    path.write_text(path.read_text().replace(str(beton), "nowhere.beton"))
    before = sorted(folder.rglob("*"))
    end = CliRunner().invoke(study, ["run", "mine.yaml"])
    assert isinstance(end.exception, InputError)
    assert str(end.exception) == "nowhere.beton: expected a beton (kapdist data write), found no such file"
    assert sorted(folder.rglob("*")) == before


def test_who_finds_somebody_at_work_leaves_the_page_alone(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    design = make_design(folder / "mine.yaml")
    freeze(design)
    with locked(design.dir.lock):
        end = CliRunner().invoke(study, ["run", "mine.yaml", "seeds=3"])
    assert isinstance(end.exception, InputError)
    assert not design.dir.page.exists()
    assert freeze(design) is not None  # as it was: it has not grown


@pytest.mark.parametrize(
    ("begun", "out", "expected"),
    [
        (False, "all.zip", "a study that has begun"),
        (True, "all.tar", "a file NAME.zip"),
        (True, "mine.yaml/all.zip", "mine.yaml"),
    ],
)
def test_what_cannot_be_packed_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, out: str, expected: str
) -> None:
    monkeypatch.chdir(folder)
    if begun:
        freeze(make_design(folder / "mine.yaml"))
    before = sorted(folder.rglob("*"))
    end = CliRunner().invoke(study, ["pack", "mine.yaml", "--out", out])
    assert isinstance(end.exception, InputError)
    assert expected in str(end.exception)
    assert sorted(folder.rglob("*")) == before
