"""One rank of test_train_adversarial: attacks that exchange nothing, starts that no rank decides, equal engines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))  # what pytest does for the tests themselves

from in_memory import batches, linear, make_config, make_job, pictures
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from kapdist.config import EngineConfig
from kapdist.engine import Ranks, join
from kapdist.train.loop import take_part, train_step

NUM_IMAGES = 12
MODES: list[dict[str, Any]] = [
    {"mode": "pgd", "steps": 2, "clean_share": 0.5},
    {"mode": "fast", "start": "n-fgsm"},
    {"mode": "free"},
    {"mode": "trades", "steps": 2, "norm": "L2", "awp_gamma": 0.05},
    {"mode": "mart", "steps": 2, "awp_gamma": 0.05},
]


def main() -> None:
    with join(EngineConfig(name="deepspeed", device="cpu", timeout_minutes=1, threads=1)) as ranks:
        starts_are_those_of_one_rank(ranks)
        for told in MODES:
            expected = trained(told, Ranks(), "ddp")
            for name, stage in (("ddp", 0), ("deepspeed", 0), ("deepspeed", 2)):
                found = trained(told, ranks, name, zero_stage=stage)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"{told}, {name} {stage}")
        expected, found = (trained(MODES[0], ranks, name, precision="bf16") for name in ("ddp", "deepspeed"))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def starts_are_those_of_one_rank(ranks: Ranks) -> None:
    images, labels = pictures(NUM_IMAGES)
    config = make_config({"mode": "pgd"}, accumulation_steps=2)
    whole: dict[int, torch.Tensor] = {}
    for these in (Ranks(), ranks):
        job = make_job(config, linear(), NUM_IMAGES, these)
        for batch in batches(job, images, labels, 1):
            part = take_part(job, batch, 0)
            for image, start in zip(part.ids, job.adversary.start(part, 0).adversarial, strict=True):
                assert torch.equal(whole.setdefault(image, start), start)
    assert sorted(whole) == list(range(NUM_IMAGES))


def trained(told: dict[str, Any], ranks: Ranks, name: str, **engine: Any) -> torch.Tensor:
    """The weights after two steps; gradients are exchanged once for every update of them."""
    images, labels = pictures(NUM_IMAGES)
    job = make_job(
        make_config(told | {"eps": 0.05}, accumulation_steps=2), linear(), NUM_IMAGES, ranks, name=name, **engine
    )
    exchanges: list[int] = []
    if isinstance(getattr(job.engine, "network", None), nn.parallel.DistributedDataParallel):
        hook = lambda state, bucket: exchanges.append(1) or allreduce_hook(state, bucket)  # noqa: E731
        job.engine.network.register_comm_hook(None, hook)
    source = batches(job, images, labels, 2)
    for step in range(2):
        train_step(job, source, step, measure=True)
    updates = 2 * job.plan.adversarial.replays
    assert not exchanges or len(exchanges) == updates, f"{len(exchanges)} exchanges in {updates} updates"
    return torch.cat([value.detach().flatten() for value in job.engine.module.parameters()])


main()
