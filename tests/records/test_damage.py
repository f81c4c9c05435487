"""No flipped bit changes a number unseen, and no number outlives the weights that it is about."""

import errno
import functools
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import pytest
import torch
from safetensors.torch import save_file

import kapdist.run.files as files
from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.attack.stock import standard_list
from kapdist.errors import InputError
from kapdist.models.factory import call_factory
from kapdist.records.sealed import (
    DamagedError,
    is_whole,
    read_array,
    read_checked,
    read_json,
    read_table,
    write_array,
    write_json,
    write_table,
)
from kapdist.records.sharding import missing_shards
from kapdist.records.worst import write_worst_case
from kapdist.report.export import run as exports
from kapdist.report.export.bundle import export_bundle
from kapdist.run.paths import AttackDir, RunDir
from kapdist.sanity.run import stored_violations

World = Any

export = functools.partial(exports.export, standard=standard_list)


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "attacks"


@pytest.fixture
def merged(world: World, short: None, kept: Path) -> AttackDir:
    """A merged attack with its images; worked out once for all tests of this file."""
    if not kept.exists():
        plan_attack(world.run, world.config(keep_adversarial=True))
        run_shard(world.run / "attacks" / "aa", 0, 1)
        merge(world.run / "attacks" / "aa")
        shutil.copytree(world.run / "attacks", kept)
    else:
        shutil.copytree(kept, world.run / "attacks")
    return AttackDir(world.run / "attacks" / "aa")


# The seal.


def test_every_flipped_bit_of_a_table_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    table = pl.DataFrame({"label": [1, 2, 3], "broken_by": ["square", None, "fab"], "passes": [[1], [2, 3], []]})
    path, harmless = tmp_path / "t.parquet", 0
    write_table(table, path)
    assert pl.read_parquet(path).equals(table)  # a file like any other
    whole = path.read_bytes()
    for byte in range(0, len(whole), 3):
        flip(path, byte, byte % 8)
        try:
            assert read_table(path).equals(table)
            harmless += 1
        except DamagedError:
            pass
        path.write_bytes(whole)
    assert harmless <= len("kapdist-sha256:")  # of the seal itself


def test_every_flipped_bit_of_json_and_of_an_array_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    value, array = {"accuracy": 0.25, "notes": ["é"], "deep": {"n": 10**18}}, torch.rand(2, 3, 2, 2).numpy()
    write_json(tmp_path / "v.json", value)
    write_array(tmp_path / "a.npy", array)
    reads: dict[str, Callable[[Path], object]] = {
        "v.json": lambda path: read_json(path) == value,
        "a.npy": lambda path: read_array(path).tobytes() == array.tobytes(),
    }
    for name, same in reads.items():
        path, harmless = tmp_path / name, 0
        whole = path.read_bytes()
        assert same(path)
        for byte in range(0, len(whole), 2):
            flip(path, byte, byte % 8)
            try:
                assert same(path)
                harmless += 1
            except InputError:
                pass
            path.write_bytes(whole)
        assert harmless <= len('"seal": "kapdist-sha256:')


def test_every_file_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    """The seal stands last and goes first, so what is left looks like a file of an older version."""
    array = torch.rand(2, 3, 2, 2).numpy()
    write_json(tmp_path / "v.json", {"accuracy": 0.25, "deep": {"n": [1, 2]}})
    write_table(pl.DataFrame({"label": [1, 2, 3], "broken_by": ["square", None, "fab"]}), tmp_path / "t.parquet")
    write_array(tmp_path / "a.npy", array)
    bare = io.BytesIO()
    np.save(bare, array)
    for name, read, harmless in (
        ("v.json", read_json, ()),
        ("t.parquet", read_table, ()),
        ("a.npy", read_array, (len(bare.getvalue()),)),  # the seal alone is gone: all that older versions wrote
    ):
        path = tmp_path / name
        whole = path.read_bytes()
        assert is_whole(path)
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            assert is_whole(path) == (length in harmless), f"{name}, {length} of {len(whole)} bytes"
            if length not in harmless:
                with pytest.raises(DamagedError, match=rf"{name}: expected a whole file, found \S"):
                    read_checked(path)
                with pytest.raises(DamagedError):
                    read(path)
        path.write_bytes(whole)
    (tmp_path / "a.npy").write_bytes(bare.getvalue())
    assert read_array(tmp_path / "a.npy").tobytes() == array.tobytes()


def test_files_of_older_versions_are_whole_to_their_end_alone(tmp_path: Path) -> None:
    table, array = pl.DataFrame({"label": [1, 2, 3]}), torch.rand(3, 2).numpy()
    (tmp_path / "v.json").write_text(json.dumps({"accuracy": 0.25}))
    table.write_parquet(tmp_path / "t.parquet")
    for name, numbers in (("a.npy", array), ("empty.npy", array[:0]), ("one.npy", array[0, 0])):
        np.save(tmp_path / name, numbers)
    (tmp_path / "of-no-format").write_bytes(b"ab")
    assert read_json(tmp_path / "v.json") == {"accuracy": 0.25}
    assert read_table(tmp_path / "t.parquet").equals(table)
    assert read_array(tmp_path / "a.npy").tobytes() == array.tobytes()
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        assert is_whole(path)
        for length in range(1 if path.suffix == "" else len(whole)):
            path.write_bytes(whole[:length])
            assert not is_whole(path), f"{path.name}, {length} of {len(whole)} bytes"
    assert not is_whole(tmp_path / "nowhere.json")


def test_damage_without_a_seal_is_said_and_not_a_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bits of an old file suffice for a panic of polars, which is no Exception, or for worse."""
    path = tmp_path / "old.parquet"
    pl.DataFrame({"label": [1, 2, 3]}).write_parquet(path)
    assert read_table(path)["label"].to_list() == [1, 2, 3]

    def panics(*words: object, **options: object) -> None:
        raise pl.exceptions.PanicException("range end index 7 out of range\nand more")

    whole = path.read_bytes()
    for content in (whole[:-20], whole[20:], b"", b"no parquet"):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"old.parquet: expected a whole file, found \S"):
            read_table(path)
    path.write_bytes(whole)
    with pytest.raises(DamagedError):
        read_table(path, ["broken_by"])
    monkeypatch.setattr(pl, "read_parquet", panics)
    with pytest.raises(DamagedError, match=r"found range end index 7 out of range$"):
        read_table(path)


# What is done about it.


def test_a_damaged_chunk_is_named_missing_and_done_again(merged: AttackDir) -> None:
    before = read_table(merged.records)
    summary = read_json(merged.summary)
    flip(merged.chunk(1), 182)
    with pytest.raises(
        InputError, match=r"expected whole chunks \(kapdist attack shard .*aa does damaged"
    ) as caught:
        merge(merged.root)
    assert "found damaged chunk-000001.parquet" in str(caught.value)
    assert missing_shards(merged, 2) == {}
    assert missing_shards(merged, 2, look_inside=True) == {1: [1]}
    run_shard(merged.root, 1, 2)
    assert missing_shards(merged, 2, look_inside=True) == {}
    again = merge(merged.root).describe()
    assert again["num_robust"] == summary["num_robust"]
    clocks = [name for name in before.columns if name.endswith("seconds")]
    assert read_table(merged.records).drop(clocks).equals(before.drop(clocks))


@pytest.mark.parametrize("length", [0, 3, -1, -60, -160])
def test_a_chunk_that_was_cut_off_is_queued_again(merged: AttackDir, length: int) -> None:
    before = read_table(merged.chunk(1))
    merged.chunk(1).write_bytes(merged.chunk(1).read_bytes()[:length])
    assert missing_shards(merged, 2, look_inside=True) == {1: [1]}
    with pytest.raises(InputError, match=r"found damaged chunk-000001.parquet"):
        merge(merged.root)
    run_shard(merged.root, 1, 2)
    assert missing_shards(merged, 2, look_inside=True) == {}
    assert read_table(merged.chunk(1)).drop(cs.contains("seconds")).equals(before.drop(cs.contains("seconds")))
    merge(merged.root)


def flipped(content: bytes) -> bytes:
    return content[:400] + bytes([content[400] ^ 1]) + content[401:]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda content: content[:-1],
        lambda content: content[:-100],  # the seal and some numbers
        lambda content: content[:90],  # within the header
        lambda content: b"",
    ],
)
@pytest.mark.parametrize("images", [AttackDir.adversarial_images, AttackDir.clean_images])
def test_damaged_images_are_named_and_done_again(
    merged: AttackDir, tmp_path: Path, damage: Callable[[bytes], bytes], images: Callable[[AttackDir, int], Path]
) -> None:
    assert stored_violations(merged) == 0
    path = images(merged, 2)
    whole, line = path.read_bytes(), rf"adversarial/{path.name}: expected a whole file \(.* does its chunk again\)"
    path.write_bytes(damage(whole))
    with pytest.raises(InputError, match=line):
        stored_violations(merged)
    with pytest.raises(InputError, match=line):
        export_bundle([merged.root], tmp_path / "out.zip")
    run_shard(merged.root, 0, 1)
    assert path.read_bytes() == whole
    export_bundle([merged.root], tmp_path / "out.zip")


@pytest.mark.parametrize("name", ["summary.json", "records.parquet", "plan.json"])
def test_what_is_published_comes_from_whole_files(merged: AttackDir, tmp_path: Path, name: str) -> None:
    export([merged.root], tmp_path / "out", ["csv"])
    flip(merged.root / name, 200)
    with pytest.raises(InputError, match=rf"{name}: expected a whole file"):
        export([merged.root], tmp_path / "out", ["csv"])
    if name == "plan.json":
        for step in (merge, lambda root: run_shard(root, 0, 1), lambda root: missing_shards(merged, 1)):
            with pytest.raises(InputError, match=r"plan.json: expected a whole file"):
                step(merged.root)
    else:
        merge(merged.root)
        export([merged.root], tmp_path / "out", ["csv"])


def test_the_worst_case_says_which_attack_it_could_not_read(world: World, merged: AttackDir) -> None:
    shutil.copytree(merged.root, merged.root.with_name("other"))
    whole = write_worst_case(world.run)
    assert [source.name for source in whole.cases[0].sources] == ["aa", "other"]
    assert whole.left_out == ()
    flip(merged.records, 300)
    found = write_worst_case(world.run)
    assert [source.name for source in found.cases[0].sources] == ["other"]
    assert len(found.left_out) == 1
    assert "aa: " in found.left_out[0]
    assert "kapdist attack merge" in found.left_out[0]


def test_chunks_of_an_older_version_count_with_a_word(merged: AttackDir) -> None:
    assert not [note for note in merge(merged.root).notes if "checksum" in note]
    read_table(merged.chunk(3)).write_parquet(merged.chunk(3))
    notes = merge(merged.root).notes
    assert [note for note in notes if note.startswith("1 of 6 chunks were written without a checksum")]


def test_an_old_chunk_that_polars_cannot_add_up_is_one_line(merged: AttackDir) -> None:
    table = read_table(merged.chunk(1))
    table.with_columns(pl.col("apgd-ce_broke").cast(pl.String)).write_parquet(merged.chunk(1))
    with pytest.raises(InputError, match="chunks of the same columns") as caught:
        merge(merged.root)
    assert "\n" not in str(caught.value)


# Weights.


def test_chunks_of_weights_that_were_replaced_since_are_not_added_up(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = world.folder / "weights.safetensors"
    state = call_factory(world.factory).state_dict()
    save_file(state, weights)
    plan_attack(world.run, world.config(model={"factory": world.factory, "weights": weights}, num_images=4))
    attack = RunDir(world.run).attack("aa")
    run_shard(attack.root, 0, 1)
    assert merge(attack.root).notes == ()
    save_file({key: value + 1 for key, value in state.items()}, weights)
    for step in (merge, lambda root: export([root], tmp_path / "out")):
        with pytest.raises(InputError, match=r"weights.safetensors: expected the weights that aa attacked"):
            step(attack.root)
    weights.unlink()
    assert merge(attack.root).notes == ()
    assert caplog.text.count("weights.safetensors is gone") == 1
    export([attack.root], tmp_path / "out")
    assert caplog.text.count("weights.safetensors is gone") == 2


# Plans, and a disk that is full.


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"chunk_size": 0}, "chunk_size: expected greater than or equal to 1"),
        ({"costs": [1.0]}, "1 costs for 6 chunks"),
        ({"images": []}, "images: "),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(merged: AttackDir, change: dict, line: str) -> None:
    values = json.loads(merged.plan.read_text()) | change
    del values["seal"]
    merged.plan.write_text(json.dumps(values))
    for step in (merge, lambda root: run_shard(root, 0, 1)):
        with pytest.raises(InputError, match=re.escape(line)) as caught:
            step(merged.root)
        assert "\n" not in str(caught.value)
    if change.get("images") != []:
        with pytest.raises(InputError, match=r"plan.json: expected a (chunk_size of at least 1|cost for each)"):
            missing_shards(merged, 1)


def test_a_full_disk_is_said_as_such(merged: AttackDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    merged.chunk(1).unlink()
    line = "expected a place that can be written, found No space left on device"
    for step in (
        lambda: run_shard(merged.root, 0, 1),
        lambda: write_worst_case(merged.root.parent.parent),
        lambda: export([merged.root], tmp_path / "out", ["csv"]),
    ):
        with pytest.raises(InputError, match=line), files.output(merged.root):  # as every command has it
            step()
    assert not list(merged.root.rglob("*.tmp"))
