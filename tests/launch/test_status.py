"""What `launch/status.py` says of real run directories, and of attack directories with a thousand shards."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import Finished, kill_ranks, start_ranks, warm_python
from rich.console import Console

from kapdist.records.sharding import chunks_of
from kapdist.run.files import append_line, write_atomic, write_json
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir, RunDir
from launch import slurm
from launch.after import Start, shard_failed
from launch.cluster import ClusterConfig
from launch.jobs import remember, remembered, time_in
from launch.restarts import End, Restarts
from launch.status.attack import Attack, read_attack
from launch.status.explanation import explain
from launch.status.pace import images_per_second, pause_per_step
from launch.status.run import Status, read_status
from launch.status.slurm import Answers, ask_slurm
from launch.status.table import duration, render
from launch.status.training import Training, Verdict, read_training
from launch.submission import submission

ROOT = Path(__file__).parents[2]
STATUS = str(ROOT / "launch" / "status.py")


def status(*words: object, code: int = 0) -> str:
    """Run the command where no Slurm can be found."""
    done = subprocess.run(
        [str(warm_python()), STATUS, *map(str, words)],
        env=os.environ | {"PATH": "/nonexistent", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def drawn(found: Status) -> str:
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(found))
    return console.export_text()


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def queue(folder: Path, job: str, elements: int = 0, **about: Any) -> None:
    """Write what a submission leaves."""
    what = submission("name", folder, ClusterConfig(), folder, "launch.after", elements=elements, **about)
    remember(folder, job, what)


def wait_until(condition: Any, what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def wait_for(terminal: int, words: str, seconds: float = 240) -> None:
    """Read what a terminal shows until some words are among it."""
    shown, deadline = "", time.monotonic() + seconds
    while words not in shown:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], shown
        shown += os.read(terminal, 4096).decode(errors="replace")


# Trainings


def test_a_run_by_hand_from_its_first_steps_to_a_kill(tiny_config: Path, no_slurm: None) -> None:
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    words = ["-m", "kapdist.cli", "train", str(tiny_config), "train.epochs=500", "train.checkpoint_every_steps=4"]
    ranks = start_ranks(words, 2, tiny_config.parent)
    try:
        wait_until(
            lambda: run.checkpoint(8).exists() or run.latest.exists() or ranks[0].poll() is not None, "a checkpoint"
        )
        for rank in ranks:
            os.kill(rank.pid, signal.SIGSTOP)
        found = read_status(run.root)
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        beat = run.attempts / "1" / "heartbeat-1.json"
        os.utime(beat, (time.time() - 100,) * 2)
        silent = read_status(run.root)
    finally:
        kill_ranks(ranks)
    now = found.training
    assert now is not None
    assert (found.verdict.state, found.verdict.why.split()[:2]) == ("RUNNING", ["process", str(ranks[0].pid)])
    assert (now.total_steps, now.epochs, now.num_attempts, now.restarts) == (500 * 7, 500, 1, 0)
    assert now.step >= lines[-1]["step"]
    assert now.epoch == now.step / 7
    rates = [line["images_per_second"] for line in lines if line["kind"] == "train"][-10:]
    assert now.images_per_second == pytest.approx(len(rates) / sum(1 / rate for rate in rates))
    pause = pause_per_step(lines, 130 / 7)
    steps_alone = (3500 - now.step) * 130 / 7 / now.images_per_second
    assert now.seconds_left == pytest.approx(steps_alone + (3500 - now.step) * pause)
    newest = max(int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*"))
    assert now.checkpoint_step == newest
    assert [rank.rank for rank in now.ranks] == [0, 1]
    assert now.silent == []
    assert silent.training is not None
    (line,) = silent.training.silent
    assert re.match(r"rank 1 silent for 1[0-5]\d s, ", line)  # and what it took to look

    killed = read_status(run.root)
    assert (killed.verdict.state, killed.verdict.why) == ("STOPPED", "not queued; attempt 1 has ended")
    assert killed.ended
    assert f"checkpoint  step {newest}" in drawn(killed)
    text = drawn(silent)
    assert "rank 1 silent" in text
    assert "images/s" in text


def test_what_a_site_says_beside_the_accounts_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\na word of the site\n7_0|COMPLETED\n7_1|CANCELLED by 0\n7_2| \n"
    monkeypatch.setattr(slurm, "ask", lambda *words, seconds: said)
    assert slurm.accounted(["7"]) == {"7_0": "COMPLETED", "7_1": "CANCELLED"}


def test_the_time_that_is_left_has_evaluations_in_it() -> None:
    """Ten steps of 100 images in 20 s, an evaluation of 30 s behind each ten, and a night between two starts."""
    lines: list[dict[str, Any]] = []
    now = 0.0
    for number in range(1, 8):
        now += 20 + (8 * 3600 if number == 4 else 0)
        lines.append({"kind": "train", "step": 10 * number, "images_per_second": 50.0, "time": now})
        now += 30
        lines.append({"kind": "evaluate", "step": 10 * number, "time": now})
    assert images_per_second(lines) == pytest.approx(50)
    assert pause_per_step(lines, 100) == pytest.approx(3)
    assert pause_per_step(lines[:3], 100) == pytest.approx(3)
    assert pause_per_step(lines[:2], 100) == 0, "no line behind it tells when it ended"
    damaged = [*lines, {"kind": "train", "step": 75}, {"kind": "train", "step": 76, "images_per_second": None}]
    assert images_per_second(damaged) == pytest.approx(50)
    assert images_per_second([]) is None


def test_a_run_that_is_done(tiny_config: Path, kapdist) -> None:
    assert kapdist("train", tiny_config, "train.epochs=1").code == 0
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    last = [json.loads(line) for line in run.metrics.read_text().splitlines() if '"evaluate"' in line][-1]
    text = status(run.root)
    assert text.startswith("DONE")
    assert "step 7/7, epoch 1.00/1" in text
    assert f"top-1 {last['top1']:.2%}" in text
    value = json.loads(status(run.root, "--json"))
    assert value["verdict"]["state"] == "DONE"
    assert value["training"]["evaluation"]["top1"] == last["top1"]
    assert value["ended"]
    assert status(run.root, "--watch", "0.1").startswith("DONE")  # ends by itself


def test_a_local_run_that_fails_again_and_again(tiny_config: Path, run_ranks) -> None:
    words = [str(ROOT / "launch" / "train.py"), str(tiny_config), "--local", "cluster.max_failures=2"]
    end: Finished = run_ranks([*words, "optim.lr=1e30", "optim.warmup_epochs=0"])[0]
    assert end.code == 1
    found = read_status(tiny_config.parent / "runs" / "tiny")
    now = found.training
    assert now is not None
    assert found.verdict.state == "FAILED"
    assert found.verdict.why.startswith("given up: 2 failures in a row without progress")
    assert now.log_line is not None
    assert now.log_line.line.startswith("FloatingPointError: the loss is nan at step")
    assert (now.num_attempts, now.restarts) == (2, 1)
    assert now.attempts[0].failed == now.log_line.line
    assert [(end["code"], end["failed"]) for end in now.ends] == [(1, True), (1, True)]
    assert found.ended
    assert drawn(found).startswith("FAILED: given up")


def begun(root: Path, *, queued: bool = True) -> RunDir:
    run = RunDir(root)
    write_atomic(run.config, "name: x\n")
    if queued:
        queue(run.slurm, "7", kind="train")
    return run


@pytest.mark.usefixtures("no_slurm")
def test_robust_validation_and_its_alarms_are_shown(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", queued=False)
    attack = {"norm": "Linf", "eps": 8 / 255, "attack_steps": 10, "num_images": 512}
    lines = [
        {"kind": "robust", "step": 7, "epoch": 1.0, "accuracy": 0.4, "clean_accuracy": 0.8} | attack,
        {"kind": "robust", "step": 14, "epoch": 2.0, "accuracy": 0.01, "clean_accuracy": 0.9} | attack,
        {"kind": "alarm", "step": 14, "epoch": 2.0, "name": "catastrophic overfitting", "text": "it fell"},
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_status(run.root)
    assert found.training is not None
    assert found.training.robust == lines[1]
    assert found.training.alarms == ["it fell"]
    text = drawn(found)
    assert "1.00% of 90.00% under 10 steps of PGD, Linf eps 0.03137, 512 images, at step 14" in text
    assert "it fell" in text


def training_status(run: RunDir, answers: Answers) -> Training:
    return read_training(run, remembered(run.slurm), answers)


PENDING = Answers(queue={"7": ("PENDING", "Resources")})
BEGINS_LATER = Answers(queue={"7": ("PENDING", "BeginTime")})
GONE = Answers(queue={})


@pytest.mark.parametrize(
    ("answers", "failed", "state", "why"),
    [
        (PENDING, "", "PENDING", "Resources"),
        (Answers(queue={"7": ("RUNNING", "None")}), "", "RUNNING", "job 7"),
        (
            Answers(queue={"7": ("PENDING", "BeginTime")}),
            "rank 0, attempt 1\nKeyError: 3\n",
            "PENDING",
            "BeginTime",
        ),
        (PENDING, "given up: 3 failures in a row\nKeyError: 3\n", "FAILED", "given up: 3 failures in a row"),
        (GONE, "rank 0, attempt 1\nKeyError: 3\n", "FAILED", "rank 0, attempt 1"),
        (GONE, "", "STOPPED", "not queued; never started"),
        (Answers(queue={}, accounts={"7": "CANCELLED"}), "", "STOPPED", "not queued; job 7: CANCELLED"),
        # The accounts are late: what has left the queue does not run.
        (Answers(queue={}, accounts={"7": "RUNNING"}), "", "STOPPED", "not queued; never started"),
        (Answers(queue=None, accounts={"7": "RUNNING"}), "", "RUNNING", "job 7"),
        (Answers(queue=None), "", "UNKNOWN", "squeue says nothing here of job 7"),
    ],
)
def test_the_verdict_on_a_training(tmp_path: Path, answers: Answers, failed: str, state: str, why: str) -> None:
    run = begun(tmp_path)
    if failed:
        write_atomic(run.failed, failed)
    found = training_status(run, answers)
    assert (found.verdict.state, found.verdict.why) == (state, why)
    if state == "FAILED":
        assert found.log_line is not None
        assert found.log_line.line == "KeyError: 3"
    write_atomic(run.done, "{}")
    assert training_status(run, answers).verdict.state == "DONE"


def test_a_stop_by_a_signal_is_no_failure(tmp_path: Path) -> None:
    run = begun(tmp_path)
    Restarts(run.slurm / "ends.jsonl").add(End(0, 12, "7"))
    write_atomic(run.slurm / "7_0_log.out", "RuntimeError: of a start before\n")
    found = training_status(run, GONE)
    assert found.verdict.why == "not queued; it was stopped"
    assert found.log_line is None
    Restarts(run.slurm / "ends.jsonl").add(End(137, 12, "7"))
    found = training_status(run, GONE)
    assert found.log_line is not None
    assert found.log_line.line == "RuntimeError: of a start before"


def test_a_rank_that_died_of_a_signal_explains_a_stop(tmp_path: Path) -> None:
    run = begun(tmp_path, queued=False)
    folder = run.rank_log(1, 0).parent
    write_atomic(run.rank_log(1, 0), "RuntimeError: of a peer that left\n")
    write_atomic(folder / "fatal-1.txt", "Fatal Python error: Segmentation fault\n")
    found = training_status(run, GONE)
    assert found.verdict.state == "STOPPED"
    assert found.log_line is not None
    assert found.log_line.line.startswith("rank 1 died of SIGSEGV")


def beat(run: RunDir, attempt: int, first: int, last: int, seconds: float, ranks: int = 2) -> None:
    for rank in range(ranks):
        found = {"step": last, "idle_seconds": 0.0, "first_step": first, "seconds": seconds}
        write_json(run.rank_log(attempt, 0).with_name(f"heartbeat-{rank}.json"), found)


@pytest.mark.parametrize(
    ("cluster", "device", "unit", "each"),
    [
        ("", "cpu", "rank-hours", 1),
        ("", "NVIDIA H100", "GPU-hours", 1),  # started without launch/
        ("{ranks_per_node: 2}", "cpu", "rank-hours", 1),
        ("{ranks_per_node: 2, gpus_per_node: 2}", "NVIDIA H100", "GPU-hours", 1),
        ("{ranks_per_node: 2, gpus_per_node: 8}", "NVIDIA H100", "GPU-hours", 4),  # asked for, so nobody else's
        ("{ranks_per_node: 2, train: {gpus_per_node: 4}}", "NVIDIA H100", "GPU-hours", 2),
    ],
)
def test_hours_used_and_lost(tmp_path: Path, cluster: str, device: str, unit: str, each: float) -> None:
    """Two ranks: steps 1 to 101 in an hour, resumed at 51; a start without a step; 51 to 151 in two hours."""
    run = begun(tmp_path)
    if cluster:
        write_atomic(run.slurm / "cluster.yaml", cluster)
    assert training_status(run, GONE).hours is None
    write_json(run.environment, {"device": device})
    beat(run, 1, 1, 101, 3600.0)
    beat(run, 2, 0, 0, 360.0)
    beat(run, 3, 51, 151, 7200.0)
    for state, answers, checkpoint, lost in (
        ("RUNNING", Answers(queue={"7": ("RUNNING", "None")}), 101, 0.0),  # what it does now may yet be kept
        ("STOPPED", GONE, 101, 2.0),
        ("STOPPED", GONE, 151, 0.0),  # it was told to stop, and saved
    ):
        run.checkpoint(checkpoint).mkdir(parents=True, exist_ok=True)
        found = training_status(run, answers)
        assert found.verdict.state == state
        assert found.hours is not None
        assert found.hours.unit == unit
        assert found.hours.used == pytest.approx(each * 2 * 3.1)
        assert found.hours.lost == pytest.approx(each * (2 * (0.5 + 0.1) + lost))
    text = drawn(read_status(run.root))
    assert f"{each * 6.2:.1f} {unit} used, {each * 1.2:.1f} of them lost" in text


def test_what_is_wrong_with_the_newest_submission_is_shown(tmp_path: Path) -> None:
    run = begun(tmp_path, queued=False)
    journal = run.slurm / "submissions.jsonl"
    append_line(journal, {"token": "a", "intent": {"kind": "train"}, "runs": []})
    assert "the command was cut off; run it again" in drawn(read_status(run.root))
    append_line(
        journal, {"token": "a", "refused": "sbatch: expected a job that this cluster takes, found no account"}
    )
    found = read_status(run.root)
    assert found.training is not None
    assert found.training.queueing in drawn(found)
    assert "found no account" in found.training.queueing


def test_the_directory_of_several_seeds_shows_its_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_atomic(begun(tmp_path / f"x_seed{seed}", queued=False).done, "{}")
    queue(tmp_path / "x_seeds" / "slurm", "7", elements=2, kind="train", models=["x_seed0", "x_seed1"])
    text = status(tmp_path / "x_seeds")
    assert [line.split()[0] for line in text.splitlines() if "x_seed" in line] == ["DONE", "DONE"]
    found = json.loads(status(tmp_path / "x_seeds", tmp_path / "x_seed1", "--json"))
    assert [Path(one["directory"]).name for one in found] == ["x_seed0", "x_seed1", "x_seed1"]


# The line that explains

SLURM_LOG = """\
[n1:4242] PMIX ERROR: NOT-FOUND in file client/pmix_client.c at line 562
kapdist: /data/train.beton: expected a beton, found nothing
submitit ERROR (2026-01-01 10:00:00,000) - Submitted job triggered an exception
srun: error: n1: task 1: Exited with exit code 2
slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T10:00:00 ***
srun: launch/slurm: _step_signal: Terminating StepId=7.0
srun: Job step aborted: Waiting up to 38 seconds for job step to finish.
[n1:4242] PMIX ERROR: ERROR in file gds_ds12_lock_pthread.c at line 168
kapdist: /runs/x: wrong input, which no restart mends
"""


def test_the_cause_is_found_among_what_slurm_says_of_every_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(SLURM_LOG)
    (tmp_path / "FAILED").write_text("given up: wrong input\nexit code 2; see /runs/x/slurm\n")
    found = explain(tmp_path / "FAILED", [tmp_path / "none", tmp_path / "log"])
    assert found is not None
    assert (found.line, Path(found.file).name) == (
        "kapdist: /data/train.beton: expected a beton, found nothing",
        "log",
    )


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: n1: task 0: Killed",
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T10:00:00 DUE TO TIME LIMIT ***",
        "srun: error: n2: task 1: Segmentation fault (core dumped)",
        "OSError: [Errno 28] No space left on device",
    ],
)
def test_lines_that_name_a_cause(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(f"10:00:00 train  step 3/14  loss 2.3\n{line}\n10:00:01 the room was booked\n")
    found = explain(tmp_path / "FAILED", [tmp_path / "log"])
    assert found is not None
    assert found.line == line


def test_without_a_cause_the_sentinel_speaks(tmp_path: Path) -> None:
    (tmp_path / "FAILED").write_text("given up: x\nexit code 137; see /runs/x/slurm\n")
    found = explain(tmp_path / "FAILED", [])
    assert found is not None
    assert found.line == "exit code 137; see /runs/x/slurm"
    assert explain(tmp_path / "none", []) is None


# Attacks


def planned(root: Path, num_chunks: int) -> AttackDir:
    directory = AttackDir(root)
    write_json(directory.plan, {"images": list(range(8 * num_chunks - 3)), "chunk_size": 8})
    directory.chunks.mkdir()
    return directory


def finish(directory: AttackDir, chunks: range) -> None:
    for chunk in chunks:
        directory.chunk(chunk).touch()


def attack_status(directory: AttackDir, answers: Answers) -> Attack:
    return read_attack(directory, remembered(directory.slurm), answers)


def whole(found: Attack) -> int:
    shards = found.shards
    assert shards is not None
    lists = (shards.failed, shards.missing, shards.unknown)
    return shards.finished + shards.running + shards.waiting + sum(map(len, lists))


def test_a_thousand_shards(tmp_path: Path) -> None:
    """Two arrays, as the cluster takes them; then the missing ones once more."""
    directory = planned(tmp_path / "attacks" / "a", 3000)
    queue(directory.slurm, "7", 600, kind="shards", shards=list(range(600)), num_shards=1000)
    queue(directory.slurm, "8", 400, kind="shards", shards=list(range(600, 1000)), num_shards=1000)
    for shard in range(500):
        finish(directory, chunks_of(3000, shard, 1000))
    directory.chunk(500).touch()  # of the three of shard 500
    write_atomic(shard_failed(directory, 501), "3 failures in a row without progress; exit code 1 (job 7_501)\n")
    Start("shard", directory.root, shard=501).ends.add(End(1, 0, "7_501"))
    Start("shard", directory.root, shard=501).ends.add(End(1, 0, "7_501"))
    write_atomic(directory.slurm / "7_501_0_log.out", "RuntimeError: beyond eps\n" + SLURM_LOG[:74])
    states = {f"7_{n}": ("RUNNING", "None") for n in range(502, 600)}
    states |= {f"8_{n}": ("PENDING", "Priority") for n in range(390)}
    accounts = {"8_398": "OUT_OF_MEMORY", "8_399": "CANCELLED", "7_500": "COMPLETED"}
    found = attack_status(directory, Answers(states, accounts))
    shards = found.shards
    assert shards is not None
    assert whole(found) == shards.total == 1000
    assert (found.chunks_done, found.chunks_total) == (1501, 3000)
    assert (shards.finished, shards.running, shards.waiting) == (500, 98, 390)
    assert shards.failed == [501, 998]
    assert shards.missing == [500, *range(990, 998), 999]
    assert [(one.shard, one.reason, one.starts) for one in shards.explained] == [
        (501, "3 failures in a row without progress; exit code 1 (job 7_501)", 2),
        (998, "OUT_OF_MEMORY", 0),
    ]
    line = shards.explained[0].log_line
    assert line is not None
    assert line.line == "RuntimeError: beyond eps"
    assert found.verdict.state == "RUNNING"
    assert found.jobs[1].reason == "Priority"

    queue(directory.slurm, "9", 2, kind="shards", shards=[500, 501], num_shards=1000)
    queue(directory.slurm, "10", 0, kind="shards", shards=[998], num_shards=1000)
    states |= {"9_0": ("PENDING", "None"), "9_1": ("RUNNING", "None"), "10": ("RUNNING", "None")}
    again = attack_status(directory, Answers(states, accounts)).shards
    assert again is not None
    assert (again.running, again.waiting, again.failed) == (100, 391, [])


def test_a_thousand_shards_without_slurm(tmp_path: Path) -> None:
    run = begun(tmp_path, queued=False)
    directory = planned(run.attack("a").root, 2000)
    queue(directory.slurm, "7", 1000, kind="shards", shards=list(range(1000)), num_shards=1000)
    for shard in range(980):
        finish(directory, chunks_of(2000, shard, 1000))
    for shard in range(990, 1000):
        write_atomic(shard_failed(directory, shard), "failed\n")
    value = json.loads(status(run.root, "--json"))
    found = value["attacks"][0]
    assert found["verdict"]["state"] == "UNKNOWN"
    assert (found["shards"]["finished"], found["shards"]["unknown"]) == (980, list(range(980, 990)))
    assert found["shards"]["failed"] == list(range(990, 1000))
    assert not value["slurm_answers"]
    text = status(directory.root)  # the attack by itself
    assert text.startswith("unknown")
    assert "980/1000 finished" in text
    assert "10 failed, 10 unknown" in text
    assert "990, 991, 992, 993, 994 and 5 more" in text
    assert "squeue does not answer" in text


def test_what_a_killed_writer_leaves_beside_a_shard_s_last_word_is_none(tmp_path: Path) -> None:
    directory = planned(tmp_path / "attacks" / "a", 2)
    queue(directory.slurm, "7", 2, kind="shards", shards=[0, 1], num_shards=2)
    write_atomic(shard_failed(directory, 1), "failed\n")
    shard_failed(directory, 0).with_name(".shard-0.1a2b3c4d.tmp").write_text("fai")
    shards = attack_status(directory, GONE).shards
    assert shards is not None
    assert (shards.failed, shards.missing) == ([1], [0])


def test_an_attack_from_its_plan_to_its_summary(tmp_path: Path) -> None:
    directory = AttackDir(tmp_path / "attacks" / "a")
    queue(directory.slurm, "6", kind="plan")
    found = attack_status(directory, Answers({"6": ("PENDING", "Resources")}))
    assert (found.verdict.state, found.verdict.why, found.chunks_total) == ("PENDING", "Resources", None)
    planned(directory.root, 40)
    queue(directory.slurm, "7", 2, kind="shards", shards=[0, 1], num_shards=2)
    queue(directory.slurm, "8", kind="aggregate")
    finish(directory, range(0, 40, 2))
    for chunk in range(0, 40, 2):  # one chunk in ten seconds
        when = time.time() - 10 * (19 - chunk // 2)
        os.utime(directory.chunk(chunk), (when, when))
    states = {"7_1": ("RUNNING", "None"), "8": ("PENDING", "Dependency")}
    found = attack_status(directory, Answers(states, {"7_0": "COMPLETED"}))
    assert found.verdict.why == "shards, job 7"
    assert found.chunks_per_second == pytest.approx(0.1, rel=0.05)
    assert found.seconds_left == pytest.approx(200, rel=0.05)
    finish(directory, range(40))
    found = attack_status(directory, Answers({"8": ("RUNNING", "None")}))
    assert found.shards is not None
    assert found.shards.finished == 2
    assert found.verdict.why == "aggregate, job 8"
    accuracy = {"value": 0.5, "low": 0.4, "high": 0.6}
    write_json(directory.summary, {"num_images": 317, "clean_accuracy": accuracy, "robust_accuracy": accuracy})
    found = attack_status(directory, GONE)
    assert found.verdict.state == "DONE"
    assert found.summary["robust_accuracy"] == accuracy
    assert "50.00% (95% interval 40.00% to 60.00%)" in status(directory.root, "--watch")


def test_an_attack_that_was_given_up_explains_itself(tmp_path: Path) -> None:
    directory = AttackDir(tmp_path / "attacks" / "a")
    queue(directory.slurm, "6", kind="plan")
    write_atomic(directory.failed, f"the attack was not planned: wrong input; see {directory.slurm}\n")
    write_atomic(directory.slurm / "6_0_log.out", "kapdist: model: expected weights, found nothing\n")
    found = attack_status(directory, GONE)
    assert found.verdict.state == "FAILED"
    assert found.log_line is not None
    assert found.log_line.line == "kapdist: model: expected weights, found nothing"
    # The aggregation comes after any plan, and finds none.
    write_atomic(directory.failed, "a: expected a plan, found none: the plan job failed\n")
    again = attack_status(directory, GONE)
    assert again.log_line == found.log_line
    assert again.verdict.why == "a: expected a plan, found none: the plan job failed"


def test_an_aggregation_that_names_a_thousand_shards_leaves_room_on_the_screen(tmp_path: Path) -> None:
    directory = planned(tmp_path / "attacks" / "a", 1000)
    queue(directory.slurm, "7", 1000, kind="shards", shards=list(range(1000)), num_shards=1000)
    named = "; ".join(f"shard {n} without 1 chunks" for n in range(1000))
    write_atomic(directory.failed, f"a: expected every shard, found {named}\n")
    found = attack_status(directory, GONE)
    assert found.verdict.why.endswith("shard 999 without 1 chunks")
    text = status(directory.root)
    assert text.startswith("FAILED: a: expected every shard, found shard 0 without 1 chunks;")
    assert len(text.splitlines()) < 15


# The command


def test_why_a_run_failed_is_one_line_of_a_log_to_be_searched(tmp_path: Path) -> None:
    """Whatever COLUMNS says, which a shell exports now and then."""
    why = "given up: " + " ".join(f"word{number}" for number in range(28))
    RunDir(tmp_path).config.write_text("")
    RunDir(tmp_path).failed.write_text(f"{why}\n")
    assert why in status(tmp_path)


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        text = status(place, code=2)
        assert text.count("\n") == 1
        assert str(place) in text
    status(tmp_path, "--watch", "0", code=2)


def test_watching_ends_by_control_c(tmp_path: Path) -> None:
    """On a terminal: what changes is shown, and Ctrl-C is no failure."""
    run = begun(tmp_path, queued=False)
    terminal, inside = pty.openpty()
    command = [sys.executable, STATUS, str(tmp_path), "--watch", "0.1"]
    with locked(run.lock):
        watcher = subprocess.Popen(command, stdout=inside, stderr=inside, env=os.environ | {"TERM": "xterm"})
        try:
            wait_for(terminal, f"process {os.getpid()}")
            run.rank_log(1, 0).parent.mkdir(parents=True)
            wait_for(terminal, "attempts")
            watcher.send_signal(signal.SIGINT)
            assert watcher.wait(timeout=240) == 0
        finally:
            watcher.kill()
            watcher.wait()
            os.close(terminal)
            os.close(inside)


def test_through_a_pipe_every_look_comes_at_once_and_a_stop_is_the_last(tmp_path: Path) -> None:
    run = begun(tmp_path, queued=False)
    command = [sys.executable, STATUS, str(tmp_path), "--watch", "0.1"]
    with locked(run.launcher):  # between two starts of a local run
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PATH": "/nonexistent"})
        assert watcher.stdout is not None
        try:
            for _ in range(2):
                wait_for(watcher.stdout.fileno(), f"RUNNING: process {os.getpid()}")
        except BaseException:
            watcher.kill()
            raise
    rest, _ = watcher.communicate(timeout=240)
    assert watcher.returncode == 0
    assert "stopped: not queued; never started" in rest.decode()
    assert b"\x1b" not in rest


def test_clocks_that_differ_make_nobody_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that looks is 90 s ahead of the file system."""
    run = begun(tmp_path)
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    write_json(run.attempts / "1" / "heartbeat-0.json", {"step": 3, "idle_seconds": 0.0})
    run.checkpoint(3).mkdir(parents=True)
    here = time.time() + 90
    monkeypatch.setattr(time, "time", lambda: here)
    found = training_status(run, Answers(queue={"7": ("RUNNING", "None")}))
    assert found.silent == []
    assert found.ranks[0].silent_seconds < 30
    assert found.checkpoint_age_seconds is not None
    assert found.checkpoint_age_seconds < 30
    assert time_in(tmp_path) < here - 30
    assert time_in(tmp_path / "nothing") == here  # where no file can be made
    queue(run.slurm, "8", kind="train")
    assert remembered(run.slurm)[-1]["submitted"] < here - 30


@pytest.mark.parametrize(
    ("trained", "attacked", "ended"),
    [
        ("STOPPED", [], True),
        ("DONE", ["STOPPED", "DONE"], True),
        ("FAILED", ["FAILED"], True),
        ("DONE", ["STOPPED", "PENDING"], False),
        ("STOPPED", ["RUNNING"], False),
        ("UNKNOWN", [], False),
        ("RUNNING", ["DONE"], False),
        (None, ["STOPPED"], True),
        (None, ["RUNNING"], False),
    ],
)
def test_when_nothing_more_will_happen(
    tmp_path: Path, trained: str | None, attacked: list[str], ended: bool
) -> None:
    own = replace(training_status(begun(tmp_path), GONE), verdict=Verdict(trained or ""))
    attacks = [Attack("a", Verdict(state), []) for state in attacked]
    assert Status("x", True, own if trained else None, attacks, 0, 0.0).ended == ended


def test_a_controller_that_hangs_does_not_hang_us() -> None:
    assert slurm.ask("/bin/sleep", "60", seconds=0.2) is None


def test_without_jobs_slurm_is_not_asked(no_slurm: None) -> None:
    assert ask_slurm([]) == Answers(queue={})


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h 00 min"), (11100, "3 h 05 min"), (190000, "2 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
