"""What an attack will cost: its passes against those that the stock library makes on images that never fall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from kapdist.attack.chunk import attack_chunk
from kapdist.attack.own.others import Others
from kapdist.attack.rows import chunk_table
from kapdist.config import AttackConfig
from kapdist.errors import InputError
from kapdist.forecast.attack import AttackForecast, Measured, forecast_attack, images_of_shards, makespan, measure
from kapdist.records.attack_plan import AttackPlan, OwnSettings, write_plan
from kapdist.records.passes import passes_per_image
from kapdist.records.sealed import write_table
from kapdist.records.sharding import chunks_of
from kapdist.run.files import fingerprint
from kapdist.run.paths import AttackDir, RunDir


class Sure(nn.Module):
    """Ten classes, and so far ahead for class 0 that no small step changes it; its gradients are not zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 8 * 8, 10)
        self.register_buffer("lead", 100.0 * (torch.arange(10) == 0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1)) + self.lead


@pytest.mark.parametrize(
    ("norm", "version", "attacks"),
    [
        ("Linf", "standard", ("apgd-ce", "apgd-t", "fab-t", "square")),
        ("L1", "standard", ("apgd-ce", "apgd-t")),
        ("L2", "rand", ("apgd-ce", "apgd-dlr")),
        ("L2", "custom", ("apgd-dlr", "fab")),
        ("Linf", "custom", ("fab-t", "fab")),
        ("L1", "custom", ("random-noise", "hard-label", "transfer", "fmn")),
    ],
)
def test_a_robust_image_passes_as_often_as_the_forecast_says(
    make_plan: Callable[..., AttackPlan], norm: str, version: str, attacks: tuple
) -> None:
    plan = make_plan(norm, 1e-3, attacks if version == "custom" else (), version)
    own = OwnSettings(random_draws=7, hard_label_queries=30, fmn_steps=9)
    plan = plan.model_copy(update={"own_settings": own})
    plan = plan.model_copy(update={"attacks": attacks})  # under L1 Square takes ten seconds, and counts alike
    model = Sure().eval().requires_grad_(False)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outcome = attack_chunk(
        model, images, torch.zeros(2, dtype=torch.int64), plan, chunk=0, others=Others({"transfer": Sure()})
    )
    made = [(attack.name, attack.forwards, attack.backwards) for attack in outcome.attacks]
    assert not any(attack.broke.any() for attack in outcome.attacks)
    clean, *expected = passes_per_image(plan.attacks, plan.settings, 10, own)
    assert made == [(attack.name, 2 * attack.forwards, 2 * attack.backwards) for attack in expected]
    assert (clean.forwards, clean.backwards) == (1, 0)


def config(**fields: object) -> AttackConfig:
    return AttackConfig.model_validate({"name": "aa", "eps": "8/255", "chunk_size": 64} | fields)


def forecast(num_images: int = 5000, shards: int = 16, gpus: int = 8, **known: object) -> AttackForecast:
    values = {"passes_per_second": None, "measured": None} | known
    return forecast_attack(config(), num_images, 10, shards, gpus, **values)


def test_standard_autoattack_on_5000_images() -> None:
    found = forecast(passes_per_second=10_000.0)
    assert {attack.name: (attack.forwards, attack.backwards) for attack in found.passes} == {
        "clean": (1, 0),
        "screen": (13, 11),  # ten steps
        "apgd-ce": (103, 101),  # a start and 100 iterations, a prediction before and after
        "apgd-t": (920, 909),  # the same for 9 targets, each chosen by a forward
        "fab-t": (1829, 900),  # 9 targets x 100 iterations x 2, 3 apiece, 2
        "square": (5004, 0),
        "repeat": (1, 0),
    }
    assert found.passes_per_image == 9792
    assert (found.num_chunks, found.chunks_per_shard) == (79, (4, 5))
    assert found.images_per_shard == (4 * 64, 5 * 64)
    assert found.worst_shard_hours == pytest.approx(5000 * 9792 / 10_000 / 3600)
    # Fifteen shards of five chunks (the last but one's last chunk is short) and one of four, two after another.
    assert found.worst_hours == pytest.approx(2 * 320 * 9792 / 10_000 / 3600)


def test_without_a_measure_no_hours_are_made_up() -> None:
    found = forecast()
    assert (found.passes_per_second, found.rate_source) == (None, None)
    assert (found.worst_hours, found.worst_shard_hours, found.measured_shard_hours) == (None, None, None)


@pytest.mark.parametrize("num_images", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("num_shards", [1, 3, 16, 40])
def test_images_of_shards_are_those_of_their_chunks(num_images: int, num_shards: int) -> None:
    chunks = [range(64 * c, min(64 * (c + 1), num_images)) for c in range(-(-num_images // 64))]
    expected = [sum(len(chunks[c]) for c in chunks_of(len(chunks), s, num_shards)) for s in range(num_shards)]
    assert images_of_shards(num_images, 64, num_shards) == expected


def test_shards_without_chunks_are_said() -> None:
    assert "shards with nothing to do, as there are 79 chunks: 21" in forecast(shards=100).notes


@pytest.mark.parametrize(("at_a_time", "longest"), [(1, 17), (2, 11), (3, 10), (9, 7)])
def test_a_free_gpu_takes_the_next_shard(at_a_time: int, longest: int) -> None:
    assert makespan([3, 4, 3, 7], at_a_time) == longest


def test_a_finished_attack_tells_its_rate(tmp_path: Path, make_plan: Callable[..., AttackPlan], tiny) -> None:
    plan = with_sha256(make_plan("Linf", 0.02, ("apgd-ce",), chunk_size=4, num_images=8, images=tuple(range(8))))
    attack = RunDir(tmp_path).attack("done")
    assert measure(tmp_path, "other") is None
    write_measured(attack, plan, tiny)
    found = measure(tmp_path, "other")  # the newest one, where none has this name
    assert found is not None
    records = pl.read_parquet(sorted(attack.chunks.glob("*.parquet")))
    chunks = [records.filter(pl.col("chunk") == number).row(0, named=True) for number in (0, 1)]
    repeated = 8 + len(records) - records["broken_by"].null_count()
    passes = 8 + repeated + sum(sum(chunk[f"chunk_{way}"]) for chunk in chunks for way in ("forwards", "backwards"))
    assert found.passes_per_image == passes / 8
    assert found.passes_per_second == pytest.approx(passes / sum(chunk["chunk_seconds"] for chunk in chunks))
    assert "2 of 2 chunks" in found.source
    assert_uses(found, plan)


def test_chunks_of_an_earlier_plan_are_no_measure(
    tmp_path: Path, make_plan: Callable[..., AttackPlan], tiny
) -> None:
    fields = {"chunk_size": 4, "num_images": 8, "images": tuple(range(8))}
    attack = RunDir(tmp_path).attack("aa")
    write_measured(attack, with_sha256(make_plan("Linf", 0.02, ("apgd-ce",), **fields)), tiny)
    attack.plan.unlink()
    write_plan(attack, with_sha256(make_plan("Linf", 0.02, ("fmn",), **fields)))
    assert measure(tmp_path, "aa") is None


def write_measured(attack: AttackDir, plan: AttackPlan, model: nn.Module) -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    write_plan(attack, plan)
    labels = model(images).argmax(1)
    for chunk in (0, 1):
        ids = list(plan.chunk_images(chunk))
        outcome = attack_chunk(model, images[ids], labels[ids], plan, chunk)
        write_table(chunk_table(plan, chunk, labels[ids], outcome), attack.chunk(chunk))


def with_sha256(plan: AttackPlan) -> AttackPlan:
    return plan.model_copy(update={"images_sha256": fingerprint(list(plan.images))})


def assert_uses(found: Measured, plan: AttackPlan) -> None:
    """The very attack again: as many images fall; another eps: its worst case alone."""
    as_planned = {"version": "custom", "attacks": ("apgd-ce",), "screen": 0, "compact": False}
    same, other = (as_planned | {"eps": eps} for eps in (plan.eps, 2 * plan.eps))
    known = forecast_attack(config(**same), 1000, 10, 4, 4, None, found)
    assert known.measured_shard_hours == pytest.approx(
        1000 * found.passes_per_image / found.passes_per_second / 3600
    )
    assert known.measured_shard_hours <= known.worst_shard_hours
    assert known.rate_source == found.source
    assert forecast_attack(config(**other), 1000, 10, 4, 4, None, found).measured_shard_hours is None
    assert forecast_attack(config(**same), 1000, 10, 4, 4, 5.0, found).rate_source == "--passes-per-second"


def test_damaged_records_are_no_measure(tmp_path: Path, make_plan: Callable[..., AttackPlan]) -> None:
    attack = RunDir(tmp_path).attack("aa")
    write_plan(attack, with_sha256(make_plan("Linf", 0.02, ("apgd-ce",))))
    attack.records.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="damaged"):
        measure(tmp_path, "aa")
