"""Attacks on more shards than are at hand: chunks of up to 10,000 shards, and a merge of 1,100 chunk files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kapdist.run.files as files
from kapdist.attack.chunk import AttackOutcome, ChunkOutcome
from kapdist.attack.merge import merge
from kapdist.attack.rows import chunk_table
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, write_plan
from kapdist.records.sealed import write_table
from kapdist.records.sharding import chunks_of, missing_shards
from kapdist.rng import generator
from kapdist.run.files import fingerprint
from kapdist.run.paths import AttackDir
from kapdist.statistics.intervals import wilson

MOST_SHARDS = 10_000
NUM_CHUNKS, CHUNK_SIZE = 1100, 4  # more chunks than a process may have files open by default
NUM_IMAGES = NUM_CHUNKS * CHUNK_SIZE - 3  # the last chunk is a short one
ATTACKS = "apgd-ce", "square"


@settings(max_examples=50)
@given(st.integers(1, 20_000), st.integers(1, MOST_SHARDS))
def test_every_chunk_has_one_shard(num_chunks: int, num_shards: int) -> None:
    owned = [chunks_of(num_chunks, shard, num_shards) for shard in range(num_shards)]
    assert Counter(chunk for chunks in owned for chunk in chunks) == Counter(range(num_chunks))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@settings(max_examples=20)
@given(st.integers(1, 50_000), st.integers(1, 512))
def test_every_image_has_one_chunk(make_plan_of, num_images: int, chunk_size: int) -> None:
    plan = make_plan_of(num_images, chunk_size)
    images = [image for chunk in range(plan.num_chunks) for image in plan.chunk_images(chunk)]
    assert tuple(images) == plan.images


@pytest.fixture(scope="module")
def make_plan_of() -> Callable[[int, int], AttackPlan]:
    """A plan of these many images without the checks of a whole one, which would take most of the time."""

    def make(num_images: int, chunk_size: int) -> AttackPlan:
        return AttackPlan.model_construct(images=tuple(range(0, 3 * num_images, 3)), chunk_size=chunk_size)

    return make


def made_up(plan: AttackPlan, chunk: int, fate: np.ndarray) -> ChunkOutcome:
    """A chunk's outcome by each image's fate: 0 robust, 1 or 2 broken by that attack, 3 misclassified."""
    mine = torch.from_numpy(fate[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE])
    attacks = []
    for number, name in enumerate(ATTACKS, start=1):
        attacked = (mine == 0) | ((mine >= number) & (mine < 3))
        broke = mine == number
        norm, prediction = 0.01 * broke.double(), broke.long()
        count = int(attacked.sum())
        passes = number * count, count, number * count, count
        attacks.append(AttackOutcome(name, plan.eps, attacked, broke, norm, prediction, *passes, 0.5))
    nothing = torch.empty(0), torch.full(mine.shape, torch.inf)
    return ChunkOutcome((mine == 3).long(), tuple(attacks), *nothing, None, None, 0, 1.25)


@pytest.fixture(scope="module")
def fate() -> np.ndarray:
    return generator(0, "fate").integers(0, 4, NUM_IMAGES)


def test_a_merge_of_1100_chunks_of_10000_shards_is_exact(
    tmp_path, make_plan: Callable[..., AttackPlan], fate: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)
    images = tuple(range(5, 5 + 7 * NUM_IMAGES, 7))
    many = {"chunk_size": CHUNK_SIZE, "num_images": NUM_IMAGES, "images": images}
    plan = make_plan("Linf", 0.02, ATTACKS, images_sha256=fingerprint(list(images)), **many)
    attack = AttackDir(tmp_path / "runs" / "r" / "attacks" / "aa")
    write_plan(attack, plan)
    chunks = [chunk for shard in range(MOST_SHARDS) for chunk in chunks_of(NUM_CHUNKS, shard, MOST_SHARDS)]
    left_out = chunks[678]
    for chunk in reversed(chunks):
        if chunk != left_out:
            write_chunk(attack, plan, chunk, fate)

    assert missing_shards(attack, MOST_SHARDS) == {left_out: [left_out]}  # more shards than chunks: one each
    with pytest.raises(InputError, match=f"expected all 1100 chunks .* found none of chunk {left_out}$"):
        merge(attack.root)
    write_chunk(attack, plan, left_out, fate)
    assert_adds_up(merge(attack.root).describe(), fate)
    records = pl.read_parquet(attack.records)
    assert tuple(records["image"]) == images
    broken_by = np.array([None, *ATTACKS, None], dtype=object)
    assert records["broken_by"].to_list() == broken_by[fate].tolist()


def write_chunk(attack: AttackDir, plan: AttackPlan, chunk: int, fate: np.ndarray) -> None:
    labels = torch.zeros(len(plan.chunk_images(chunk)), dtype=torch.int64)
    write_table(chunk_table(plan, chunk, labels, made_up(plan, chunk, fate)), attack.chunk(chunk))


def assert_adds_up(summary: dict, fate: np.ndarray) -> None:
    robust, first, second, wrong = np.bincount(fate, minlength=4).tolist()
    assert summary["num_images"] == NUM_IMAGES
    assert summary["num_clean_correct"] == NUM_IMAGES - wrong
    assert summary["num_robust"] == robust
    assert summary["robust_accuracy"] == asdict(wilson(robust, NUM_IMAGES))
    one, two = summary["attacks"]
    assert (one["num_attacked"], one["num_broken"]) == (robust + first + second, first)
    assert (two["num_attacked"], two["num_broken"]) == (robust + second, second)
    assert (one["forwards"], one["backwards"]) == (robust + first + second, robust + first + second)
    assert (two["forwards"], two["backwards"]) == (2 * (robust + second), robust + second)
    assert summary["seconds"] == 1.25 * NUM_CHUNKS
    assert one["seconds"] == two["seconds"] == 0.5 * NUM_CHUNKS
