"""All runs of a folder on one screen: what each line says, against files that are written by hand."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from attack_world import make_plan  # noqa: F401
from typer.testing import CliRunner

from kapdist.cli import app
from kapdist.errors import InputError
from kapdist.overview.attacks import Result
from kapdist.overview.runs import RunLine, read_runs
from kapdist.overview.runs_view import print_runs
from kapdist.records.attack_plan import AttackPlan, write_plan
from kapdist.records.sanity import Acted, believed_of
from kapdist.records.sealed import write_json
from kapdist.run.files import file_sha256, fingerprint
from kapdist.run.lock import locked, this_process
from kapdist.run.paths import RunDir

TOTAL, SECONDS = 200, 1800.0


def make(root: Path, step: int = 0, top1: float = 0.75) -> RunDir:
    """A run that was begun with `step` steps behind its newest checkpoint, ten more than which were done."""
    run = RunDir(root)
    attempt = run.attempts / "1"
    attempt.mkdir(parents=True)
    run.config.write_text(f"name: {root.name}\n")
    write_json(run.plan, {"total_steps": TOTAL})
    lines = [{"kind": "evaluate", "step": step, "epoch": 1, "top1": top1, "weights": "model", "num_images": 100}]
    lines += [{"kind": "evaluate", "step": step, "epoch": 1, "top1": top1 / 2, "weights": "ema", "num_images": 100}]
    lines += [{"kind": "train", "step": step + 10, "epoch": 1, "loss": 1.0}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    run.checkpoint(step).mkdir(parents=True)
    beat = {"step": step + 10, "idle_seconds": 0.0, "first_step": 1, "seconds": SECONDS}
    (attempt / "heartbeat-0.json").write_text(json.dumps(beat))
    (attempt / "heartbeat-1.json").write_text(json.dumps(beat))
    return run


def finish(run: RunDir) -> None:
    told = {path.name: file_sha256(path) for path in (run.config, run.plan, run.metrics)}
    run.done.write_text(json.dumps({"sha256": told}))


def attack(run: RunDir, name: str, robust: float, **other: Any) -> None:
    share = {"value": robust, "low": robust - 0.1, "high": robust + 0.1}
    said = {"norm": "Linf", "eps": 8 / 255, "version": "standard", "noise": "off", "num_images": 1000}
    accuracies = {"clean_accuracy": share | {"value": 0.5}, "robust_accuracy": share, "plan_fingerprint": PLAN}
    write_json(run.attack(name).summary, said | accuracies | {"seconds": 3600.0} | other)


PLAN = "p" * 64
ACTED = {
    "attack": "a",
    "plan_fingerprint": PLAN,
    "num_images": 20,
    "num_robust": 10,
    "num_left": 10,
    "remedies": [],
}


@pytest.mark.parametrize(
    ("acted", "believed"),
    [
        ({}, True),
        ({"num_left": 9}, False),
        ({"num_left": 9, "forgiven": 1}, True),
        ({"single_draw": 0.9, "single_draw_left": 0.3}, False),  # single draws fall
        ({"num_left": 9, "plan_fingerprint": "q" * 64}, None),  # of an attack that is no more
        ({"num_left": 9, "plan_fingerprint": None}, None),  # of the report's own
    ],
)
def test_an_attack_is_believed_as_on_the_page(tmp_path: Path, acted: dict[str, Any], believed: bool | None) -> None:
    run = make(tmp_path / "one", TOTAL)
    attack(run, "a", 0.25)
    report = {"verdict": "fail", "norm": "Linf", "eps": 8 / 255, "acted": ACTED | acted}
    write_json(run.attack("a").sanity, report)
    (found,) = the_line(tmp_path).attacks
    assert found.believed is believed
    assert believed_of(Acted.model_validate(ACTED | acted), PLAN) is believed
    if acted.get("plan_fingerprint", "") is None:
        run.attack("a").summary.unlink()
        assert the_line(tmp_path).attacks[0].believed is False


def the_line(folder: Path) -> RunLine:
    (found,) = read_runs(folder)
    return found


def test_a_run_that_is_done(tmp_path: Path) -> None:
    run = make(tmp_path / "one", TOTAL - 10)
    finish(run)
    attack(run, "standard", 0.25)
    attack(run, "noisy", 0.125, version="eot-standard", noise="fresh", norm="L2", eps=0.5)
    acted = ACTED | {"num_left": 7}
    report = {"verdict": "fail", "norm": "Linf", "eps": 8 / 255, "seconds": 1800.0, "acted": acted}
    write_json(run.attack("standard").sanity, report)
    found = the_line(tmp_path)
    assert (found.name, found.state, found.step, found.total_steps) == ("one", "done", TOTAL, TOTAL)
    assert found.clean_accuracy == 0.375  # of the moving average, which is what is exported
    assert found.hours == pytest.approx(2 * SECONDS / 3600 + 1 + 1 + 0.5)
    assert found.lost_hours == 0
    noisy, standard = found.attacks
    assert (noisy.protocol, noisy.robust_accuracy, noisy.sanity) == ("L2 0.5, eot-standard, noise fresh", 0.125, "")
    assert (standard.protocol, standard.num_images) == ("Linf 8/255, standard", 1000)
    assert (standard.sanity, standard.believed, noisy.believed) == ("fail", False, None)
    assert standard.interval == pytest.approx((0.15, 0.35))
    assert found.robust_accuracy == 0.125


def test_a_custom_list_is_named_and_a_plan_made_anew_is_said(
    make_plan: Callable[..., AttackPlan],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make(tmp_path / "one", TOTAL - 10)
    finish(run)
    stages = [
        {"name": f"{name}@{eps:.6g}", "eps": eps} for eps in (2 / 255, 8 / 255) for name in ("a@b.py:f", "square")
    ]
    plan = make_plan("L2", 0.5, ("apgd-ce",), images=(0, 1), num_images=2, images_sha256=fingerprint([0, 1]))
    attack(run, "own", 0.25, version="custom", attacks=stages, plan_fingerprint=plan.fingerprint)
    attack(run, "old", 0.125)
    for name in ("own", "old"):
        write_plan(run.attack(name), plan)
    found = the_line(tmp_path)
    old, own = found.attacks
    assert own.protocol == "Linf 8/255, a@b.py:f+square"
    assert (old.planned_anew, own.planned_anew, found.robust_accuracy) == (True, False, 0.25)
    print_runs(tmp_path, [found])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "12.5%" in line)
    assert "standard of 1,000, of an earlier plan" in line


def test_a_run_that_stopped_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = make(tmp_path / "one", 91)
    (run.attempts / "1" / "END").write_text("asked to stop by SIGUSR2\n")
    found = the_line(tmp_path)
    assert (found.state, found.why, found.step) == ("stopped", "asked to stop by SIGUSR2", 91)
    assert found.lost_hours == pytest.approx(2 * SECONDS / 3600 * 10 / 100)  # of steps 1 to 101 those beyond 91


@pytest.mark.parametrize("given_up", ["", "given up: no progress in 3 starts\n"])
def test_a_run_that_failed_says_the_error_that_its_traceback_ends_with(tmp_path: Path, given_up: str) -> None:
    try:
        try:
            raise OSError("the cause")
        except OSError:
            raise FloatingPointError("the loss is nan at step 7\n  and more of it") from None
    except FloatingPointError:
        text = f"rank 0, attempt 1\n{traceback.format_exc()}"
    make(tmp_path / "one", 50).failed.write_text(given_up + text)
    who = given_up.strip() or "rank 0, attempt 1"
    assert the_line(tmp_path).why == f"{who}: FloatingPointError: the loss is nan at step 7"


def test_a_run_that_failed_says_why_and_one_that_somebody_trains_runs(tmp_path: Path) -> None:
    run = make(tmp_path / "one", 50)
    run.failed.write_text("given up: three times\nTraceback\n")
    assert (the_line(tmp_path).state, the_line(tmp_path).why) == ("failed", "given up: three times")
    with locked(run.lock):
        found = the_line(tmp_path)
    assert (found.state, found.step) == ("running", 60)
    assert found.why == f"process {os.getpid()} on {socket.gethostname()}"
    assert found.lost_hours == 0


def test_what_was_refused_before_it_began_is_not_damaged(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "one")
    for folder in (run.attempts / "1", run.checkpoints):
        folder.mkdir(parents=True)
    assert (the_line(tmp_path).state, the_line(tmp_path).hours) == ("not begun", 0)
    run.checkpoint(50).mkdir()
    assert the_line(tmp_path).state == "damaged"  # there is something to lose, and no config to go on with


def test_on_another_machine_the_heartbeat_tells(tmp_path: Path) -> None:
    run = make(tmp_path / "one", 50)
    elsewhere = replace(this_process(), host="far", boot="another", namespace="another")
    run.lock.write_text(json.dumps(asdict(elsewhere)))
    assert the_line(tmp_path).state == "running"
    for path in (run.attempts / "1").glob("heartbeat-*"):
        os.utime(path, (time.time() - 100,) * 2)
    assert the_line(tmp_path).state == "stopped"


def test_what_was_submitted_and_what_is_no_training(tmp_path: Path) -> None:
    queued = RunDir(tmp_path / "queued")
    queued.slurm.mkdir(parents=True)
    queued.config.write_text("name: queued\n")
    (queued.slurm / "jobs.jsonl").write_text("{}\n")
    outside = RunDir(tmp_path / "outside")
    attack(outside, "standard", 0.5)
    found = {run.name: run for run in read_runs(tmp_path)}
    assert (found["queued"].state, found["queued"].why) == ("not begun", "submitted")
    assert (found["outside"].state, found["outside"].clean_accuracy, found["outside"].hours) == (
        "results",
        0.5,
        1.0,
    )


def damage(run: RunDir, what: str) -> None:
    if what == "config.yaml":
        run.config.unlink()
    elif what == "changed":
        finish(run)
        run.plan.write_text('{"total_steps": 1}')
    elif what == "DONE":
        run.done.write_text("{")
    elif what == "plan.json":
        run.plan.write_bytes(run.plan.read_bytes().replace(b"200", b"201"))
    elif what == "keys":
        attack(run, "a", 0.5)
        write_json(run.attack("a").summary, {"norm": "Linf"})
    else:
        attack(run, "a", 0.5)
        path = run.attack("a").summary
        path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("config.yaml", "config.yaml: expected the config of this run, found nothing"),
        ("changed", "plan.json: expected the file that this run ended with"),
        ("DONE", "DONE: expected the JSON that a run ends with"),
        ("plan.json", "plan.json: expected a whole file, found bytes that its checksum does not fit"),
        ("summary.json", "attacks/a/summary.json: expected a whole file"),
        ("keys", "attacks/a/summary.json: expected what an attack or a report says"),
    ],
)
def test_a_damaged_run_is_a_line_with_the_reason(tmp_path: Path, what: str, said: str) -> None:
    make(tmp_path / "whole", 50)
    damage(make(tmp_path / "bad", 50), what)
    bad, whole = read_runs(tmp_path)
    assert (whole.state, bad.state) == ("stopped", "damaged")
    assert bad.why.startswith(said)
    assert "\n" not in bad.why


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's answer is put in its place."""
    make(tmp_path / "open", 10)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    closed, opened = read_runs(tmp_path)
    assert (closed.state, opened.state) == ("damaged", "stopped")
    assert closed.why.endswith("closed: Permission denied")


def test_only_runs_are_runs(tmp_path: Path) -> None:
    """A study's own folder, its configs, a run's attacks, code and hidden folders are none, and each is one."""
    make(tmp_path / "studies" / "s" / "runs" / "kap_seed0", 10)
    study = tmp_path / "studies" / "s"
    for name in ("study.json", "config.yaml", "slurm/x", "configs/attacks/a.yaml", "code/1/runs/r/config.yaml"):
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_text("name: s\n")
    make(tmp_path / ".hidden" / "r", 10)
    make(tmp_path / "code" / "1" / "r", 10)
    assert [run.name for run in read_runs(tmp_path)] == ["studies/s/runs/kap_seed0"]
    assert [run.name for run in read_runs(study / "runs" / "kap_seed0")] == ["."]
    (tmp_path / "studies" / "loop").symlink_to(tmp_path)
    assert [run.name for run in read_runs(tmp_path)] == ["studies/s/runs/kap_seed0"]


def test_what_lies_among_runs_hides_none(tmp_path: Path) -> None:
    """A link to itself, one to nothing, a checkpoint that somebody has put aside, digits that are no numbers."""
    run = make(tmp_path / "kap_10²", 10)
    run.checkpoint(10).rename(run.checkpoints / "step-000000010.bak")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    found = the_line(tmp_path)
    assert (found.name, found.state, found.step) == ("kap_10²", "stopped", 0)


@pytest.mark.parametrize("value", [None, "x", [], {"a": 1}])
@pytest.mark.parametrize("key", ["eps", "num_images", "seconds", "acted", "total_steps", "step", "pid", "top1"])
def test_a_value_of_another_kind_is_damage_or_nothing(tmp_path: Path, key: str, value: Any) -> None:
    run = make(tmp_path / "bad", 50)
    attack(run, "a", 0.5, **({key: value} if key in ("eps", "num_images", "seconds") else {}))
    if key == "acted":
        write_json(run.attack("a").sanity, {"verdict": "pass", "acted": value})
    elif key == "total_steps":
        write_json(run.plan, {key: value})
    elif key == "top1":
        run.metrics.write_text(json.dumps({"kind": "evaluate", "step": 50, key: value}) + "\n")
    else:
        place = {"step": run.attempts / "1" / "heartbeat-0.json", "pid": run.lock}.get(key)
        if place is not None:
            place.write_text(json.dumps(asdict(this_process()) | {key: value}))
    shown = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert shown.exit_code == 0
    assert "1 runs below" in shown.stdout


def test_order(tmp_path: Path) -> None:
    for number, top1 in ((2, 0.5), (10, 0.9), (1, 0.7)):
        make(tmp_path / f"run{number}", 10 * number, top1)
    assert [run.name for run in read_runs(tmp_path)] == ["run1", "run2", "run10"]
    assert [run.name for run in read_runs(tmp_path, "clean")] == ["run10", "run1", "run2"]
    with pytest.raises(InputError, match="--sort: expected one of name, state"):
        read_runs(tmp_path, "size")
    with pytest.raises(InputError, match="expected a folder with runs, found nothing"):
        read_runs(tmp_path / "absent")


def test_a_hundred_runs_on_one_screen(tmp_path: Path) -> None:
    first = make(tmp_path / "run0", TOTAL - 10)
    finish(first)
    attack(first, "standard", 0.25)
    for number in range(1, 100):
        run = make(tmp_path / f"run{number}", number)
        attack(run, "standard", 0.25)
    began = time.process_time()
    found = read_runs(tmp_path)
    assert len(found) == 100
    assert time.process_time() - began < 1.0
    shown = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert shown.count("Linf 8/255") == 100
    assert "100 runs" in shown
    assert "99 stopped" in shown
    assert json.loads(CliRunner().invoke(app, ["runs", str(tmp_path), "--json"]).stdout)[0]["state"] == "done"


def test_on_a_narrow_terminal_no_name_and_no_number_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two attacks of a run are two rows, so that each has its own verdict beside it however it is broken."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    attacks = (
        Result("eot", "L2 0.5, eot-standard, noise fresh", 512, 0.9, 0.25, (0.21, 0.29), "fail"),
        Result("standard", "Linf 8/255, standard", 512, 0.9, 0.5, (0.46, 0.54), "pass"),
    )
    print_runs("runs", [RunLine("a-run-of-seed_0", "done", "", 600_000, 600_000, 0.912, attacks, 12.5, 0.0, 1.7e9)])
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "…" not in text
    assert all(word in text for word in ("a-run-of-seed_0", "600,000/600,000", "91.2%", "12.5"))
    lines = text.splitlines()
    (first,), (second,) = ([line for line in lines if word in line] for word in (" 25.0%", " 50.0%"))
    assert "fail" in first
    assert "pass" in second
