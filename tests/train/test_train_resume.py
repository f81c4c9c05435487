"""A run that is killed and continued ends with the same bits as one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from held import held
from processes import end_ranks, kill_ranks_after, start_ranks
from results import numbers
from safetensors.torch import load_file

from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.run.paths import RunDir
from kapdist.train import checkpoint

WORDS = ["-m", "kapdist.cli", "train", "tiny.yaml", "train.checkpoint_every_steps=2"]
NOISY_MEMBERS = ["model.members=2", "model.random_member=true", "model.members_mean=probabilities"]
NOISY_MEMBERS += ["model.dropout=0.2", "model.dropout_draws=always", "model.dropout_kind=2d"]


OTHERWISE = ["optim.name=adamw", "optim.milestones=[1]", "engine.sync_batch_norm=true"]
OTHERWISE += ["kap.norm_first=true"]


@pytest.mark.parametrize(
    ("world_size", "more"),
    [(1, []), (1, OTHERWISE), (2, []), (2, OTHERWISE), (2, NOISY_MEMBERS), (3, []), (4, [])],
)
def test_killed_and_continued_is_bitwise_equal(
    tiny_config: Path, run_ranks, world_size: int, more: list[str]
) -> None:
    folder, words = tiny_config.parent, [*WORDS, *more]
    assert all(end.code == 0 for end in run_ranks([*words, "name=whole"], world_size))
    whole, killed = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "killed")

    as_slow = [*held(folder, 13), *words[2:]]  # as who kills it: of 14 steps the last is never taken
    kill_ranks_after(killed.latest, start_ranks([*as_slow, "name=killed"], world_size, folder))
    assert killed.latest.exists()
    assert not killed.done.exists()

    for path in (killed.plan, killed.environment, killed.latest):
        path.write_bytes(b"{\xff")
    torn = killed.checkpoints / ".step-000000099.attempt-1.tmp"
    torn.mkdir()
    damaged = [b'{"kind": "train"}\n', b"[1]\n", b"\xff\n", b'{"kind": "train", "step": 1'[:20]]
    with killed.metrics.open("ab") as file:
        file.writelines(damaged)
    ends = end_ranks(start_ranks([*words, "name=killed"], world_size, folder), 240)
    assert all(end.code == 0 for end in ends), ends
    assert not torn.exists()
    assert killed.damaged_metrics.read_bytes().endswith(b"".join(damaged) + b"\n")
    assert "damaged lines are in metrics.damaged.jsonl" in ends[0].output
    assert json.loads(killed.plan.read_text())["storage"]["order"] == "random"
    assert "continuing from" in ends[0].output
    first, second = load_file(whole.weights), load_file(killed.weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert numbers(whole) == numbers(killed)


def write(run: RunDir, step: int, shared: checkpoint.State, own: checkpoint.State, keep: int) -> None:
    saver = checkpoint.Saver(run, Ranks(), attempt=1, keep=keep, timeout_seconds=10)
    saver.save(step, shared, own)
    saver.wait()


def save_three(run: RunDir) -> None:
    for step in (1, 2, 3):
        write(run, step, {"weights": torch.full((100,), float(step))}, {"own": 1}, keep=3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "cut": cut,
    "flipped": flip_a_bit,
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["shared.pt", "rank-0.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog, damage: str, name: str) -> None:
    run = RunDir(tmp_path)
    save_three(run)
    DAMAGES[damage](run.checkpoint(3) / name)
    if (damage, name) == ("flipped", "manifest.json"):
        (run.checkpoint(3) / name).write_text("{")  # a flipped bit in white space would harm nobody
    assert checkpoint.newest(run) == run.checkpoint(2)
    assert f"{run.checkpoint(3)}: {name}" in caplog.text
    shared, own = checkpoint.load(run.checkpoint(2), Ranks())
    assert shared["weights"].tolist() == [2.0] * 100
    assert own == {"own": 1}


def test_all_damaged_is_wrong_input_and_nothing_is_deleted(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    save_three(run)
    for step in (1, 2, 3):
        cut(run.checkpoint(step) / "shared.pt")
    before = sorted(run.root.rglob("*"))
    with pytest.raises(InputError, match="expected one whole checkpoint, found 3 damaged"):
        checkpoint.newest(run)
    assert sorted(run.root.rglob("*")) == before


def test_manifests_that_are_json_and_no_manifests(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    save_three(run)
    for content in (
        "[]",
        "3",
        "{}",
        '{"files": {}, "world_size": 1}',
        '{"files": {"shared.pt": 1, "rank-0.pt": 2}}',
    ):
        (run.checkpoint(3) / "manifest.json").write_text(content)
        assert checkpoint.newest(run) == run.checkpoint(2)


def test_the_order_of_a_run_is_in_its_checkpoints(tmp_path: Path) -> None:
    """A plan that is damaged is made anew, perhaps on a node of other memory; the order decides the result."""
    run = RunDir(tmp_path)
    assert checkpoint.order_begun(run) is None
    saver = checkpoint.Saver(run, Ranks(), attempt=1, keep=2, timeout_seconds=10, order="quasi-random")
    saver.save(1, {}, {})
    saver.save(2, {}, {})
    saver.wait()
    assert checkpoint.order_begun(run) == "quasi-random"
    (run.checkpoint(2) / "manifest.json").write_text("{")
    assert checkpoint.order_begun(run) == "quasi-random"


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.newest(RunDir(tmp_path)) is None


def test_an_unfinished_checkpoint_is_not_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    save_three(run)
    run.checkpoint(3).rename(run.checkpoints / ".step-000000003.tmp")
    assert checkpoint.newest(run) == run.checkpoint(2)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in range(1, 6):
        write(run, step, {}, {}, keep=2)
    assert checkpoint.sealed(run) == [run.checkpoint(5), run.checkpoint(4)]
    assert run.latest.read_text().strip() == run.checkpoint(5).name


def test_a_damaged_checkpoint_that_was_passed_over_costs_no_whole_one(tmp_path: Path) -> None:
    """Its step is later than those that are taken again: counted as the newest, it had the whole ones pruned."""
    run = RunDir(tmp_path)
    for step in (10, 20):
        write(run, step, {"weights": torch.ones(3)}, {}, keep=2)
    cut(run.checkpoint(20) / "shared.pt")
    path = checkpoint.newest(run)
    assert path == run.checkpoint(10)
    saver = checkpoint.Saver(run, Ranks(), attempt=2, keep=1, timeout_seconds=10)
    saver.passed_over = checkpoint.newer_than(run, path)
    assert saver.passed_over == [run.checkpoint(20)]
    for step in (15, 20, 25):
        saver.save(step, {"weights": torch.ones(3)}, {})
        saver.wait()
        assert checkpoint.newest(run) == run.checkpoint(step)
        assert checkpoint.sealed(run) == [run.checkpoint(step)]


def test_what_was_passed_over_is_replaced_at_its_own_step(tmp_path: Path) -> None:
    """Also where it is whole by now, as after a server that was away: it is of steps that were taken again."""
    run = RunDir(tmp_path)
    save_three(run)
    saver = checkpoint.Saver(run, Ranks(), attempt=2, keep=3, timeout_seconds=10)
    saver.passed_over = checkpoint.newer_than(run, run.checkpoint(2))
    saver.save(3, {"weights": torch.zeros(100)}, {})
    saver.wait()
    assert not checkpoint.load(run.checkpoint(3), Ranks())[0]["weights"].any()


def test_at_no_moment_is_a_run_without_the_checkpoint_that_it_began_at(tmp_path: Path, monkeypatch) -> None:
    """It saves at the same step again where an evaluation is cut short twice; and is killed then."""
    run = RunDir(tmp_path)
    write(run, 5, {"weights": torch.ones(3)}, {}, keep=1)
    moments = []
    whole = lambda: moments.append(next(checkpoint.damages(run.checkpoint(5)), None))  # noqa: E731
    remove = shutil.rmtree

    def removed(path: Path, **how: bool) -> None:
        remove(path, **how)
        whole()

    monkeypatch.setattr(checkpoint.shutil, "rmtree", removed)
    write(run, 5, {"weights": torch.ones(3)}, {}, keep=1)
    whole()
    assert set(moments) == {None}
    assert [path.name for path in run.checkpoints.iterdir() if path.is_dir()] == [run.checkpoint(5).name]


def test_a_copy_beside_the_checkpoints_is_none_and_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, 1, {}, {}, keep=1)
    copy = run.checkpoint(1).rename(run.checkpoints / "step-000000001.bak")
    assert checkpoint.newest(run) is None
    assert (run.newest_step(), run.begun) == (0, False)
    for step in (1, 2):
        write(run, step, {}, {}, keep=1)
    assert checkpoint.sealed(run) == [run.checkpoint(2)]
    assert run.newest_step() == 2
    assert copy.exists()
