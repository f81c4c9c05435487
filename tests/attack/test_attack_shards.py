"""The records are those of the plan: for any number of shards, in any order, after any interruption."""

import itertools
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import kapdist.attack.devices as devices
from kapdist.attack.ball import Ball
from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import Chunks, run_shard
from kapdist.errors import InputError
from kapdist.records.attack_plan import read_plan, write_plan
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir

World = Any


def planned(world: World, name: str = "aa", **fields: object) -> AttackDir:
    plan_attack(world.run, world.config(name=name, **fields))
    return AttackDir(world.run / "attacks" / name)


@pytest.fixture(scope="module")
def kept_chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "chunks"


@pytest.fixture
def finished(world: World, kept_chunks: Path) -> AttackDir:
    """An attack whose shards are through; worked out once for all tests of this file."""
    attack = planned(world)
    if kept_chunks.exists():
        shutil.copytree(kept_chunks, attack.chunks)
    run_shard(attack.root, 0, 1)
    if not kept_chunks.exists():
        shutil.copytree(attack.chunks, kept_chunks)
    return attack


def records(attack: AttackDir) -> pl.DataFrame:
    """Everything but what the clock says."""
    table = pl.read_parquet(attack.records)
    return table.drop(name for name in table.columns if name.endswith("seconds"))


def attacked(world: World, num_shards: int, order: list[int], name: str, **fields: object) -> pl.DataFrame:
    attack = planned(world, name, **fields)
    for shard in order:
        run_shard(attack.root, shard, num_shards)
    merge(attack.root)
    return records(attack)


def test_one_two_and_three_shards_in_any_order_give_the_same_records(world: World, finished: AttackDir) -> None:
    merge(finished.root)
    whole = records(finished)
    assert whole["image"].to_list() == list(range(22))
    assert 0 < whole["apgd-ce_broke"].sum() < 18
    assert attacked(world, 2, [1, 0], "two").equals(whole)
    assert attacked(world, 3, [2, 0, 1], "three").equals(whole)


def test_a_chunk_that_is_done_is_not_done_again_and_a_damaged_one_is(finished: AttackDir) -> None:
    attack = finished
    merge(attack.root)
    before, times = records(attack), {file: file.stat().st_mtime_ns for file in attack.chunks.iterdir()}
    attack.chunk(3).write_bytes(attack.chunk(3).read_bytes()[:-100])
    attack.chunk(4).unlink()
    run_shard(attack.root, 0, 1)
    merge(attack.root)
    again = {file: file.stat().st_mtime_ns for file in attack.chunks.iterdir()}
    assert {file.name for file in again if again[file] != times[file]} == {
        attack.chunk(3).name,
        attack.chunk(4).name,
    }
    assert records(attack).equals(before)


# After three chunks, until it is killed: else the test has to be quicker than it is.
WAITS = """
import time
from kapdist.run.progress import Progress

Progress.show = lambda self, done, note="": time.sleep(120 * (done >= 3))
"""


def test_kill_9_in_the_middle_changes_nothing(world: World, finished: AttackDir) -> None:
    merge(finished.root)
    whole = records(finished)
    attack = planned(world, "killed")
    (world.folder / "child.py").write_text(WAITS + (world.folder / "child.py").read_text())
    command = world.child_command(attack.root, 0, 1)
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(list(attack.chunks.glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = len(list(attack.chunks.glob("*.parquet")))
    assert 2 <= done < 6
    with pytest.raises(InputError, match="none of chunk"):
        merge(attack.root)
    run_shard(attack.root, 0, 1)
    merge(attack.root)
    assert records(attack).equals(whole)


def test_kept_images_are_what_broke_the_model_bit_by_bit(world: World, short: None) -> None:
    attack = planned(world, keep_adversarial=True, norm="L2", eps=0.3)
    run_shard(attack.root, 0, 1)
    attack.adversarial_images(2).unlink()
    run_shard(attack.root, 0, 1)
    merge(attack.root)
    plan, table = read_plan(attack), records(attack)
    files = [np.load(attack.adversarial_images(chunk)) for chunk in range(plan.num_chunks)]
    images = torch.from_numpy(np.concatenate(files))
    norm = Ball("L2", 0.3).distance(images, world.images)
    broke = torch.from_numpy(table["apgd-ce_broke"].fill_null(False).to_numpy())
    assert broke.any()
    assert norm[broke].tolist() == table.filter("apgd-ce_broke")["apgd-ce_norm"].to_list()
    assert (norm[broke] <= Ball("L2", 0.3).largest_distance(192)).all()
    assert (norm[~broke] == 0).all()


def test_the_images_are_chosen_by_seed_and_listed_in_order(world: World) -> None:
    config = world.config(num_images=5)
    images = plan_attack(world.run, config).images
    assert len(set(images)) == 5
    assert list(images) == sorted(images)
    assert plan_attack(world.run, world.config(name="b", num_images=5, seed=1)).images != images
    with pytest.raises(InputError, match="num_images: expected at least 23 images, found 22"):
        plan_attack(world.run, world.config(name="c", num_images=23))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"eps": 0.03}, "eps = 0.02"),
        ({"norm": "L2"}, "norm = 'Linf'"),
        ({"chunk_size": 5}, "chunk_size = 4"),
        ({"threads": 2}, "threads = 1"),
        ({"num_images": 7}, "num_images = 22"),
        ({"attacks": ("fab-t",)}, r"attacks = \['apgd-ce'\]"),
    ],
)
def test_another_plan_in_the_same_directory_names_the_first_difference(
    world: World, change: dict, field: str
) -> None:
    attack = planned(world)
    before = attack.plan.read_bytes()
    planned(world, threads=0)  # which means those of the plan that is there
    assert attack.plan.read_bytes() == before
    with pytest.raises(InputError, match=f"expected {field} as this attack was planned"):
        planned(world, **change)
    assert attack.plan.read_bytes() == before


def test_a_moved_run_directory_goes_on(world: World, short: None) -> None:
    attack = planned(world)
    run_shard(attack.root, 0, 2)
    moved = world.run.rename(world.folder / "elsewhere")
    run_shard(moved / "attacks" / "aa", 1, 2)
    assert merge(moved / "attacks" / "aa").num_images == 22


def copy_with(column: str, value: object) -> Callable[[AttackDir], None]:
    def change(attack: AttackDir) -> None:
        table = pl.read_parquet(attack.chunk(1))
        expression = pl.lit(value, table.schema[column]).alias(column)
        table.with_columns(expression).write_parquet(attack.chunk(1))

    return change


def other_columns(attack: AttackDir) -> None:
    table = pl.read_parquet(attack.chunk(1)).rename({"apgd-ce_broke": "fab_broke"})
    table.with_columns(plan=pl.lit("f" * 64)).write_parquet(attack.chunk(1))


def double_chunk(attack: AttackDir) -> None:
    (attack.chunks / "chunk-1.parquet").write_bytes(attack.chunk(1).read_bytes())


def double_image(attack: AttackDir) -> None:
    table = pl.read_parquet(attack.chunk(1))
    table = table.with_columns(image=pl.col("image").replace(5, 12))
    table.write_parquet(attack.chunk(1))


def strange_image(attack: AttackDir) -> None:
    table = pl.read_parquet(attack.chunk(1))
    table.with_columns(image=pl.col("image").replace(5, 99)).write_parquet(attack.chunk(1))


def lost_image(attack: AttackDir) -> None:
    pl.read_parquet(attack.chunk(1)).slice(1).write_parquet(attack.chunk(1))


def truncated(attack: AttackDir) -> None:
    attack.chunk(1).write_bytes(attack.chunk(1).read_bytes()[:-50])


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda attack: (attack.chunk(1).unlink(), attack.chunk(4).unlink()), "none of chunk 1, 4"),
        (copy_with("plan", "f" * 64), "chunks of another plan in chunk-000001.parquet"),
        (other_columns, "chunks of another plan in chunk-000001.parquet"),
        (double_chunk, "expected one file per chunk, found more than one for chunk 1"),
        (copy_with("chunk", 0), "expected one file per chunk, found more than one for chunk 0"),
        (double_image, "expected each image once, found duplicates of image 12"),
        (strange_image, "expected images of the plan, found image 99"),
        (lost_image, "expected all images of the plan, found no row of image 4"),
        (truncated, "found damaged chunk-000001.parquet"),
        (lambda attack: [file.unlink() for file in attack.chunks.iterdir()], "none of chunk 0, 1, 2, 3, 4, 5"),
    ],
)
def test_the_merge_refuses_what_is_not_each_chunk_once(finished: AttackDir, harm: Callable, line: str) -> None:
    attack = finished
    harm(attack)
    with pytest.raises(InputError, match=re.escape(line)) as caught:
        merge(attack.root)
    assert "\n" not in str(caught.value)
    assert not attack.summary.exists()


def test_the_merge_counts_and_says_what_the_records_say(world: World, short: None) -> None:
    attack = planned(world, attacks=("apgd-ce", "apgd-dlr"), chunk_size=8)
    run_shard(attack.root, 0, 1)
    summary, table = merge(attack.root), records(attack)
    correct = table.filter(pl.col("label") == pl.col("clean_prediction"))
    assert summary.num_images == 22
    assert summary.num_clean_correct == correct.height == 18
    assert summary.clean_accuracy.value == 18 / 22
    assert summary.num_robust == correct.filter(pl.col("broken_by").is_null()).height
    first, second = summary.attacks
    assert first.num_attacked == 18
    assert second.num_attacked == first.num_robust_after == 18 - first.num_broken
    assert second.num_robust_after == summary.num_robust
    broken = first.num_broken + second.num_broken
    assert broken > 0
    assert summary.forwards == 22 + (22 + broken) + first.forwards + second.forwards  # all verdicts twice
    assert (first.forwards, first.backwards) == count_passes(table, "apgd-ce")
    assert 0 < summary.max_norm <= Ball("Linf", 0.02).largest_distance(192)
    assert summary.describe()["robust_accuracy"]["low"] < summary.robust_accuracy.value
    rows = pl.read_csv(attack.root / "summary.csv")
    assert rows["stage"].to_list() == ["clean", "apgd-ce", "apgd-dlr"]
    assert rows["num_robust"].to_list() == [18, first.num_robust_after, summary.num_robust]


def count_passes(table: pl.DataFrame, name: str) -> tuple[int, int]:
    chunks, number = table.group_by("chunk").first(), ["apgd-ce", "apgd-dlr"].index(name)
    forwards, backwards = (chunks[f"chunk_{kind}"].list.get(number).sum() for kind in ("forwards", "backwards"))
    return forwards, backwards


def test_rows_of_images_that_were_not_attacked_are_null(finished: AttackDir) -> None:
    merge(finished.root)
    table = records(finished)
    wrong = table.filter(pl.col("label") != pl.col("clean_prediction"))
    assert wrong.height == 4
    columns = [name for name in table.columns if name.startswith("apgd-ce") and "chunk" not in name]
    assert all(wrong[name].null_count() == 4 for name in [*columns, "broken_by"])
    broken = table.filter("apgd-ce_broke")
    assert set(broken["broken_by"]) == {"apgd-ce"}
    assert (broken["apgd-ce_prediction"] != broken["label"]).all()


def test_two_at_work_in_one_directory_are_refused(world: World, finished: AttackDir) -> None:
    attack = finished
    with locked(attack.lock):
        with pytest.raises(InputError, match="expected nobody else at work here"):
            merge(attack.root)
        with pytest.raises(InputError, match="expected nobody else at work here"):
            planned(world)


@pytest.mark.parametrize(("shard", "num_shards"), [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(world: World, shard: int, num_shards: int) -> None:
    with pytest.raises(InputError, match="shard: expected"):
        run_shard(planned(world).root, shard, num_shards)


def test_a_directory_without_a_plan_is_refused(tmp_path: Path) -> None:
    for step in (merge, lambda root: run_shard(root, 0, 1)):
        with pytest.raises(InputError, match=r"expected an attack directory .*, found no plan.json"):
            step(tmp_path)
    (tmp_path / "plan.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"format: expected 2 .*, found 1"):
        merge(tmp_path)


def test_a_shard_elsewhere_must_have_the_packages_and_the_model_of_the_plan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = planned(world)
    factory = world.folder / "factory.py"
    factory.write_text(factory.read_text().replace("manual_seed(1)", "manual_seed(2)"))
    with pytest.raises(InputError, match=r"model.factory=.* expected the factory's file as it was"):
        run_shard(attack.root, 0, 1)
    monkeypatch.setattr(devices, "package_versions", lambda names: {"kapdist": "9"})
    with pytest.raises(InputError, match=r"environment: expected kapdist .* as planned, found 9"):
        run_shard(attack.root, 0, 1)


def test_a_plan_for_a_gpu_is_not_run_on_another_device(world: World) -> None:
    attack = planned(world)
    plan = read_plan(attack).model_copy(update={"device": "NVIDIA Abacus"})
    attack.plan.unlink()
    write_plan(attack, plan)
    with pytest.raises(InputError, match="device"):
        run_shard(attack.root, 0, 1)


def test_images_outside_of_the_range_and_labels_beyond_the_classes_are_refused(world: World) -> None:
    attack = planned(world)
    world.labels[3] = 5
    with pytest.raises(InputError, match="expected labels of the model's 5 classes, found labels from"):
        run_shard(attack.root, 0, 1)
    world.labels[3] = 4
    world.images[3] *= 255
    with pytest.raises(InputError, match=r"expected images in \[0, 1\], found values from"):
        run_shard(attack.root, 0, 1)


def test_chunks_are_dealt_in_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, dealt = planned(world), []
    monkeypatch.setattr(Chunks, "do", lambda work, chunks, tell: dealt.append(chunks))
    for shard in range(4):
        run_shard(attack.root, shard, 4)
    assert dealt == [[0, 4], [1, 5], [2], [3]]
    assert sorted(itertools.chain(*dealt)) == list(range(6))
