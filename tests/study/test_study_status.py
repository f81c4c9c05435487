"""How far a study is, and what it took: hours that are known, from files that real runs leave."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kapdist.errors import InputError
from kapdist.records.hours import Attempt, training_hours, used_and_lost
from kapdist.records.sealed import write_json
from kapdist.run.files import append_line
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir, StudyDir
from kapdist.study.command import study
from kapdist.study.design import Design, make_design
from kapdist.study.frozen import freeze
from kapdist.study.hours import Hours, hours_of_tasks
from kapdist.study.status import find_design, read_study_status
from kapdist.study.tasks import failure_of, run_dir, tasks, write_configs
from kapdist.study.view import print_status
from launch import slurm
from launch.status.study import read_study_jobs

STUDY = """
train: base.yaml
seeds: 5
arms: {plain: {}, noise: {kap.noise_std: [0.1, 0.3]}, kap: {kap: {pool_size: 3, noise_std: [0.1, 0.2, 0.3]}}}
attacks: {standard: {}, eot: {version: eot-standard, noise: fresh, arms: [noise]}}
sanity: standard
"""
BASE = """
data: {train: train.beton, validation: test.beton}
model: {name: resnet10, num_classes: 10, width: 0.25}
kap: {pool_size: 1}
"""


@pytest.fixture
def design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Design:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "mine.yaml").write_text(STUDY)
    found = make_design(tmp_path / "mine.yaml")
    freeze(found)
    write_configs(found)
    return found


def beat(run: RunDir, number: int, first: int, last: int, seconds: float, ranks: int = 1) -> None:
    folder = run.rank_log(number, 0).parent
    folder.mkdir(parents=True)
    for rank in range(ranks):
        said = {"step": last, "idle_seconds": 0.1, "first_step": first, "seconds": seconds}
        (folder / f"heartbeat-{rank}.json").write_text(json.dumps(said))


def test_what_an_attempt_did_beyond_the_next_one_s_beginning_was_lost() -> None:
    """Steps 1 to 101 in 100 s; resumed at 51: half is lost; an attempt without a step is lost whole."""
    attempts = [Attempt(1, 101, 100.0), Attempt(0, 0, 7.0), Attempt(51, 151, 200.0)]
    assert used_and_lost(attempts, 151) == (307.0, pytest.approx(50 + 7))
    assert used_and_lost(attempts, 101) == (307.0, pytest.approx(50 + 7 + 100))  # its end was killed at step 151
    assert used_and_lost([], 0) == (0.0, 0.0)


def test_the_same_command_of_a_done_run_loses_nothing_of_it(tmp_path: Path) -> None:
    """It takes no step, and neither does an attempt that is starting: what is reached stays reached."""
    run = RunDir(tmp_path / "run")
    beat(run, 1, 1, 14, 3600.0)
    run.rank_log(2, 0).parent.mkdir()
    assert training_hours(run, going_on=False) == (1.0, 1.0), "no checkpoint"
    run.checkpoint(14).mkdir(parents=True)
    assert training_hours(run, going_on=True) == (1.0, 0.0)
    run.checkpoint(14).rmdir()
    run.done.touch()
    assert training_hours(run, going_on=True) == (1.0, 0.0), "as of a study's records, which have no checkpoints"


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e4)), max_size=6), st.integers(0, 60)
)
def test_no_more_is_lost_than_was_used(starts: list[tuple[int, int, float]], end: int) -> None:
    attempts = [Attempt(first, first + more, seconds) for first, more, seconds in starts]
    used, lost = used_and_lost(attempts, end)
    assert -1e-9 <= lost <= used + 1e-9


def test_hours_are_those_of_all_ranks_and_what_is_left_is_what_its_kind_took(design: Design) -> None:
    first, second = (run_dir(design, run) for run in design.trained[:2])
    beat(first, 1, 1, 101, 3600.0, ranks=2)
    beat(first, 2, 51, 151, 3600.0, ranks=2)
    first.done.touch()
    second.root.mkdir(parents=True)
    write_json(second.plan, {"total_steps": 200})
    second.checkpoint(50).mkdir(parents=True)
    write_json(first.attack("standard").summary, {"seconds": 1800.0})
    hours = hours_of_tasks(design, tasks(design))
    assert hours[f"{first.name}/train"] == Hours(used=4.0, lost=1.0)
    assert hours[f"{second.name}/train"].left == pytest.approx(
        3.0 * 0.75
    )  # of useful hours, a quarter is behind it
    assert hours[f"{second.name}/attack/standard"] == Hours(left=0.5)
    assert hours[f"{second.name}/attack/eot"].more  # nothing tells
    whole = read_study_status(design).hours
    assert (whole.used, whole.lost, whole.more) == (4.5, 1.0, True)
    assert whole.left == pytest.approx(3.0 * 28 + 3.0 * 0.75 + 0.5 * 29)


def test_a_study_that_has_not_begun_takes_what_its_file_says(design: Design, tmp_path: Path) -> None:
    said = make_design(tmp_path / "mine.yaml", ["hours_per_run=0.5"])
    assert read_study_status(said).hours == Hours(left=15.0)


def test_one_screen_says_who_is_done_at_work_and_failed(design: Design, tmp_path: Path) -> None:
    done, failed, at_work, part = (run_dir(design, run) for run in design.trained[:4])
    for task in tasks(design):
        if task.run.name == done.name or (task.run.name == part.name and task.kind == "train"):
            task.result.parent.mkdir(parents=True, exist_ok=True)
            write_json(task.result, {"seconds": 60.0})
    failed.root.mkdir(parents=True)
    failed.failed.write_text("rank 0\nTraceback (most recent call last):\n  File\nKeyError: 3\n")
    at_work.root.mkdir(parents=True)
    with locked(at_work.lock):
        found = read_study_status(design)
        assert [cell.run for cell in found.cells if cell.at_work] == [at_work.name]
        assert not read_study_jobs(design.root, time.time()).ended
        said = CliRunner().invoke(study, ["status", str(design.root)], env={"COLUMNS": "120"})
    assert said.exit_code == 0, said.output
    words = {row[0]: row[1] for line in said.output.splitlines() if len(row := line.split()) > 3}
    names = [setting.name for setting in design.settings]
    assert [words[name] for name in names[:4]] == ["done", "fail", "0%", "1/3"]
    assert f"failed: {failed.name}/train: rank 0: KeyError: 3\n" in said.output
    assert read_study_jobs(design.root, time.time()).ended
    as_json = json.loads(CliRunner().invoke(study, ["status", str(design.root), "--json"]).output)
    assert (as_json["done"], as_json["commands"]) == (found.done, len(tasks(design)))


def test_what_was_given_up_is_named_until_somebody_is_at_work_on_it(design: Design) -> None:
    """A training that was refused has no directory of its own yet; an attack's run is done."""
    first, second = design.trained[:2]
    run_dir(design, second).root.mkdir(parents=True)
    run_dir(design, second).done.touch()
    attack = next(task for task in tasks(design) if (task.run, task.kind) == (second, "attack"))
    training = next(task for task in tasks(design) if task.run == first)
    for task in (training, attack):
        failure_of(design, task).parent.mkdir(parents=True, exist_ok=True)
        failure_of(design, task).write_text(f"{task.kind}: no\n")

    def failed() -> list[tuple[str, str]]:
        return [(cell.failed, cell.why) for cell in read_study_status(design).cells if cell.failed]

    assert failed() == [(training.name, "train: no"), (attack.name, "attack: no")]
    given_up = run_dir(design, second).not_asked  # of its job on Slurm, which knows less of it
    given_up.parent.mkdir(parents=True)
    given_up.write_text("no progress; exit code 75 (job 7)\n")
    assert failed()[1] == (attack.name, "attack: no")
    failure_of(design, attack).unlink()
    assert failed()[1] == (attack.name, "no progress; exit code 75 (job 7)")
    given_up.unlink()
    failure_of(design, attack).write_text("attack: no\n")
    with locked(attack.lock):
        assert failed() == [(training.name, "train: no")]
    write_json(attack.result, {"seconds": 60.0})
    assert failed() == [(training.name, "train: no")]


def test_a_watch_goes_on_where_slurm_is_silent(design: Design, tmp_path: Path, monkeypatch) -> None:
    """Of jobs that nobody speaks of nobody knows that they have ended."""
    place = StudyDir(design.root)
    place.root.mkdir(parents=True, exist_ok=True)
    for job, kind in (("7", "train"), ("8", "study")):
        line = {"job": job, "name": "x", "kind": kind, "elements": 0, "submitted": 0.0, "by": "me@here"}
        append_line(place.slurm / "jobs.jsonl", line)
    monkeypatch.setattr(slurm, "accounted", lambda *_: {"8": "COMPLETED"})
    for queue, ended in ((None, False), ({}, True), ({"7": ("PENDING", "Priority")}, False)):
        monkeypatch.setattr(slurm, "queued", lambda *_, queue=queue: queue)
        assert read_study_jobs(design.root, time.time()).ended == ended
    place.finished.touch()
    monkeypatch.setattr(slurm, "queued", lambda *_: None)
    assert read_study_jobs(design.root, time.time()).ended


def test_a_directory_is_the_study_of_the_file_it_was_made_from(design: Design, tmp_path: Path, monkeypatch) -> None:
    moved = tmp_path / "elsewhere" / "yours"
    moved.parent.mkdir()
    design.root.rename(moved)
    monkeypatch.chdir(moved.parent)
    found = find_design(Path("yours"))
    assert (found.fingerprint, found.root) == (design.fingerprint, moved)
    with pytest.raises(InputError, match="directory of one that has begun"):
        find_design(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        find_design(tmp_path / "nowhere")


def test_a_look_at_thirty_runs_takes_less_than_a_second_and_no_torch(design: Design) -> None:
    assert len(design.trained) == 30
    program = (
        "import sys, time, pathlib; from kapdist.study.status import *; import kapdist.study.view as v\n"
        "v.render(read_study_status(find_design(pathlib.Path(sys.argv[1]))))\n"
        "print(time.process_time(), *(set(sys.modules) & {'torch', 'polars', 'matplotlib'}))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, design.root], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(said) == 1
    assert (
        float(said[0]) < 1.5
    )  # of CPU, imports and all, where others are at work; tools/bench_study.py says how long


def test_on_a_narrow_terminal_no_setting_s_name_is_cut_off(
    design: Design, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "30")
    print_status(read_study_status(design))
    text = capsys.readouterr().out
    assert "…" not in text
    assert all(setting in text for setting in ("plain", "noise_0.1", "noise_0.3", "kap_0.1", "kap_0.2", "kap_0.3"))
