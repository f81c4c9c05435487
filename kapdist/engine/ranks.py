"""The processes of one job: who this one is, and the few things that they say to one another."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from kapdist.config import EngineConfig
from kapdist.engine.contained import forget_groups
from kapdist.engine.loopback import refuse_loopback
from kapdist.engine.numerics import computing
from kapdist.engine.rendezvous import meeting
from kapdist.environment import usable_cpus
from kapdist.errors import InputError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the job. One process alone is rank 0 of 1 and never waits."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: torch.device = CPU
    control: dist.ProcessGroup | None = None
    """A gloo group for flags, where the default group is NCCL's."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def cpus(self) -> int:
        """CPUs for this rank: what the process may use, shared among the ranks of the node."""
        return usable_cpus(self.local_world_size)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks."""
        if self.world_size == 1:
            return values
        values = values.to(self.device)
        dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; on the CPU, so that no GPU is waited for."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; wrong input on any of them ends all, and is reported once.

        Raises:
            InputError: on the first rank that met it; the others leave without a word (SystemExit 2).
        """
        if self.world_size == 1:
            return function()
        found: InputError | None = None
        result: T | None = None
        try:
            result = function()
        except InputError as error:
            found = error
        who = [rank for rank, wrong in enumerate(self.gather(found is not None)) if wrong]
        if found is not None and who[0] == self.rank:
            raise found
        if who:
            raise SystemExit(2)
        return result  # type: ignore[return-value]

    def from_first(self, function: Callable[[], T]) -> T:
        """Let rank 0 call a function and give its result to all; raises as `together` does."""
        if self.world_size == 1:
            return function()
        outcome = [self.together(lambda: function() if self.first else None)]
        dist.broadcast_object_list(outcome)
        return outcome[0]  # type: ignore[return-value]


def ranks_from(environ: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return (rank, world size, local rank, local world size) as torchrun or srun say it; 0 of 1 without them."""
    if "RANK" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        defaults = ("0", "1", "0", "1")
        rank, world, local, local_world = (
            int(environ.get(name, value)) for name, value in zip(names, defaults, strict=True)
        )
        return rank, world, local, local_world
    # A batch script has SLURM_PROCID too, but only srun starts a step.
    if "SLURM_STEP_ID" in environ:
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "1"))
        local_world = int(tasks.split(",")[0].split("(")[0])
        return (
            int(environ["SLURM_PROCID"]),
            int(environ["SLURM_NTASKS"]),
            int(environ["SLURM_LOCALID"]),
            local_world,
        )
    return 0, 1, 0, 1


@contextlib.contextmanager
def join(config: EngineConfig) -> Iterator[Ranks]:
    """Join the job's ranks: NCCL on GPUs, gloo on CPUs; leave them at the end.

    Raises:
        InputError: cuda is asked for and there is none, or ranks are many and nothing says where they meet.
    """
    rank, world_size, local_rank, local_world_size = ranks_from(os.environ)
    device = choose_device(config.device, local_rank)
    ranks = Ranks(rank, world_size, local_rank, local_world_size, device)
    torch.set_num_threads(config.threads or ranks.cpus)
    with computing(config), grouped(config, ranks) as ranks:
        yield ranks


@contextlib.contextmanager
def grouped(config: EngineConfig, ranks: Ranks) -> Iterator[Ranks]:
    """Give the ranks their groups, where they need any."""
    rank, world_size, device = ranks.rank, ranks.world_size, ranks.device
    if world_size == 1 and config.name == "ddp":
        yield ranks
        return
    with meeting(rank, world_size, os.environ, timedelta(minutes=config.timeout_minutes)) as store:
        refuse_loopback(rank, store)
        form_group(ranks, config, store)
        if world_size > 1 and device.type == "cuda":
            ranks = replace(ranks, control=dist.new_group(backend="gloo"))
        try:
            yield ranks
        finally:
            # Who still refers to the group (a DDP reducer in a cycle) would destroy it while the interpreter
            # exits, and its threads would then abort the process after all work was done.
            gc.collect()
            if config.name == "deepspeed":
                forget_groups()
            dist.destroy_process_group()


def form_group(ranks: Ranks, config: EngineConfig, store: dist.Store) -> None:
    """Form torch's default group; a process alone (DeepSpeed wants a group all the same) meets nobody."""
    cuda = ranks.device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(minutes=config.timeout_minutes),
        device_id=ranks.device if cuda else None,
    )


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device of a rank, made current if it is a GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device", "a CUDA device, as the config says", "none on this machine")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
