"""One rank of test_engine_ddp: trains on its share of a batch and compares with the whole batch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F

from kapdist.config import EngineConfig
from kapdist.engine import DDPEngine, Ranks, join
from kapdist.errors import InputError
from kapdist.plan.training import part
from kapdist.train.stop import Stop

SIZE, ACCUMULATION = 11, 2  # neither divides by the number of ranks


def reference(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    F.cross_entropy(model(images.double()), labels).backward()
    return model


def main() -> None:
    with join(EngineConfig(device="cpu", timeout_minutes=1)) as ranks:
        gradients_agree(ranks)
        synchronised_norms_see_the_whole_batch(ranks)
        buffers_travel_once_a_step(ranks)
        values_travel(ranks)


def gradients_agree(ranks: Ranks) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SIZE, 6, generator=generator)
    labels = torch.randint(0, 4, (SIZE,), generator=generator)
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double().float()
    engine = DDPEngine(model, torch.optim.SGD(model.parameters(), lr=1.0), EngineConfig(), ranks)
    exchanges = []
    engine.network.register_comm_hook(
        None, lambda state, bucket: exchanges.append(1) or allreduce_hook(state, bucket)
    )

    mine = part(range(SIZE), ranks.rank, ranks.world_size)
    for index in range(ACCUMULATION):
        share = part(mine, index, ACCUMULATION)
        with engine.accumulating(more=index + 1 < ACCUMULATION):
            logits = engine.forward(images[share.start : share.stop])
            loss = F.cross_entropy(logits, labels[share.start : share.stop], reduction="sum")
            engine.backward(loss * ranks.world_size / SIZE)
    assert len(exchanges) == 1, f"{len(exchanges)} exchanges of gradients in one step"

    expected = reference(images, labels)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-7)


def synchronised_norms_see_the_whole_batch(ranks: Ranks) -> None:
    """Two steps on uneven shares are those of one rank with all images; without it they are not; keys stay."""
    images, labels = torch.randn(SIZE, 3, 8, 8), torch.randint(0, 5, (SIZE,))
    torch.distributed.broadcast(images, 0)
    torch.distributed.broadcast(labels, 0)
    whole = normed_model()
    train_on(DDPEngine(whole, descent(whole), EngineConfig(), Ranks()), images, labels, Ranks())
    for synchronised in (True, False):
        model = normed_model()
        model.load_state_dict(normed_model().state_dict())
        optimizer, before = descent(model), dict(model.named_parameters())
        engine = DDPEngine(model, optimizer, EngineConfig(sync_batch_norm=synchronised), ranks)
        assert all(before[name] is parameter for name, parameter in model.named_parameters())
        train_on(engine, images, labels, ranks)
        found, expected = model.state_dict(), whole.state_dict()
        assert found.keys() == expected.keys()
        apart = {name: float((found[name] - expected[name]).abs().max()) for name in expected}
        if synchronised:
            assert max(apart.values()) < 1e-10, apart
            sums = ranks.gather([float(buffer.sum()) for buffer in model.buffers()])
            assert all(one == sums[0] for one in sums), "every rank has the same statistics"
            plain = normed_model()
            plain.load_state_dict(found)
            assert torch.equal(plain.eval()(images.double()), model.eval()(images.double()))
        else:
            assert max(apart.values()) > 1e-3, "the test tells nothing"


def normed_model() -> nn.Module:
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(6, momentum=None), nn.BatchNorm1d(7, affine=False)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), nn.Flatten(), nn.Linear(216, 7), norms[1], nn.Linear(7, 5)
    ).double()


def descent(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def train_on(engine: DDPEngine, images: torch.Tensor, labels: torch.Tensor, ranks: Ranks) -> None:
    for _ in range(2):
        mine = part(range(SIZE), ranks.rank, ranks.world_size)
        logits = engine.forward(images[mine.start : mine.stop].double())
        loss = F.cross_entropy(logits, labels[mine.start : mine.stop], reduction="sum")
        engine.backward(loss * ranks.world_size / SIZE)
        engine.step(lr=0.5, measure=False)


class Counting(nn.Linear):
    """A layer whose forward in training reads what its earlier ones saved."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input) + self.seen
        self.seen = self.seen + input.detach().sum()  # another tensor each time
        return out


def buffers_travel_once_a_step(ranks: Ranks) -> None:
    """Those that a forward in training reads, before the first of a step; a norm's when they are asked for."""
    first, norm = Counting(), nn.BatchNorm1d(4)
    engine = DDPEngine(nn.Sequential(first, norm), descent(first), EngineConfig(), ranks)
    assert not engine.network.will_sync_module_buffers()
    sent, send = [], torch.distributed.broadcast
    torch.distributed.broadcast = lambda *told, **named: sent.append(told[0].numel()) or send(*told, **named)
    for _ in range(2):
        for index in range(3):
            with engine.accumulating(more=index < 2):
                engine.backward(engine.forward(torch.randn(5, 6) + ranks.rank).square().sum())
        engine.step(lr=0.1, measure=False)
    assert sent == [1, 1], f"exchanges of buffers in two steps: {sent}"
    means = ranks.gather(norm.running_mean.tolist())
    assert len(set(map(tuple, means))) == ranks.world_size, "the test tells nothing"
    engine.sync_buffers()
    assert ranks.gather(norm.running_mean.tolist()) == [means[0]] * ranks.world_size
    torch.distributed.broadcast = send


def values_travel(ranks: Ranks) -> None:
    assert ranks.sum(torch.tensor(float(ranks.rank))).item() == sum(range(ranks.world_size))
    assert ranks.gather(ranks.rank) == list(range(ranks.world_size))
    assert ranks.from_first(lambda: f"from {ranks.rank}") == "from 0"

    # A stop that one rank was asked for is read by all at the next step, and none waits at the first.
    stop = Stop(ranks)
    asked_at = 2
    with stop:
        for step in range(4):
            if step == asked_at and ranks.rank == ranks.world_size - 1:
                stop.asked_by = "SIGUSR2"
            assert stop.agreed() == (step > asked_at), step

    def wrong_on_the_last() -> None:
        if ranks.rank == ranks.world_size - 1:
            raise InputError("here", "this", "that")

    last = ranks.rank == ranks.world_size - 1
    with pytest.raises(InputError if last else SystemExit, match="here" if last else "2"):
        ranks.together(wrong_on_the_last)


main()
