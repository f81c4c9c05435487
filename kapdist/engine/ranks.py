"""The processes of one job: who this one is, and the few things that they say to one another."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kapdist.config import EngineConfig
from kapdist.engine.contained import forget_groups
from kapdist.engine.loopback import refuse_loopback
from kapdist.engine.numerics import computing
from kapdist.engine.place import place_from
from kapdist.engine.rendezvous import in_words, meeting
from kapdist.environment import usable_cpus
from kapdist.errors import InputError, StoppedError, TransientError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Answer:
    """What all ranks were asked, on its way; every rank must wait for it before it leaves."""

    value: torch.Tensor
    work: dist.Work | None

    def wait(self) -> bool:
        if self.work is not None:
            self.work.wait()
        return bool(self.value)


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
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def cpus(self) -> int:
        """CPUs for this rank: what the process may use, shared among the ranks of the node."""
        return usable_cpus(self.local_world_size)

    @property
    def decoders(self) -> int:
        """CPUs of this rank for decoding: on a GPU all but one, which launches its kernels."""
        return max(1, self.cpus - 1) if self.device.type == "cuda" else self.cpus

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

    def start_any(self, flag: bool) -> Answer:
        """Begin to ask whether the flag is set on any rank; the answer travels while this rank goes on."""
        value = torch.tensor(int(flag))
        if self.world_size == 1:
            return Answer(value, None)
        return Answer(value, dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control, async_op=True))

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


@contextlib.contextmanager
def join(config: EngineConfig) -> Iterator[Ranks]:
    """Join the job's ranks: NCCL on GPUs, gloo on CPUs; leave them at the end, with as many threads as before.

    Raises:
        InputError: cuda is asked for and there is none, two ranks have one GPU, or ranks are many and nothing says
            where they meet.
        TransientError: the other ranks did not come within the time limit; GPUs that should be there are not.
    """
    place = place_from(os.environ)
    device = choose_device(config.device, place.local_rank)
    ranks = Ranks(*place, device)
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or ranks.cpus)
    try:
        with computing(config), streaming(config, ranks), grouped(config, ranks) as ranks:
            yield ranks
    finally:
        torch.set_num_threads(before)


def streaming(config: EngineConfig, ranks: Ranks) -> AbstractContextManager[Any]:
    """Work on a stream of the rank's own where graphs are recorded: the default one cannot be.

    Raises:
        InputError: there are to be graphs without a GPU.
    """
    if not config.graphs:
        return contextlib.nullcontext()
    if not ranks.on_gpu:
        raise InputError("engine.graphs", "a CUDA device, whose graphs they are", "none on this machine")
    return torch.cuda.stream(torch.cuda.Stream(ranks.device))


@contextlib.contextmanager
def grouped(config: EngineConfig, ranks: Ranks) -> Iterator[Ranks]:
    """Give the ranks their groups, where they need any."""
    if ranks.world_size == 1 and config.name == "ddp":
        yield ranks
        return
    timeout = timedelta(minutes=config.timeout_minutes)
    with meeting(ranks.rank, ranks.world_size, os.environ, timeout) as store:
        refuse_loopback(ranks.rank, store)
        refuse_shared_gpus(ranks, store, timeout)
        ranks = form_groups(ranks, store, timeout)
        try:
            yield ranks
        except BaseException as error:
            # Leaving takes all ranks; after an error of one the others may be in a collective, and waited for.
            if ranks.world_size == 1 or isinstance(error, StoppedError):
                leave_groups(config)
            raise
        leave_groups(config)


def form_groups(ranks: Ranks, store: dist.Store, timeout: timedelta) -> Ranks:
    """Form torch's default group and that of flags, under one time limit.

    A process alone (DeepSpeed wants a group all the same) meets nobody.
    """
    cuda = ranks.device.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
            device_id=ranks.device if cuda else None,
        )
    except dist.DistStoreError as error:
        raise TransientError(f"not all of {ranks.world_size} ranks came in {in_words(timeout)}") from error
    if ranks.world_size > 1 and cuda:
        return replace(ranks, control=dist.new_group(backend="gloo", timeout=timeout))
    return ranks


def leave_groups(config: EngineConfig) -> None:
    # Who still refers to the group (a DDP reducer in a cycle) would destroy it while the interpreter
    # exits, and its threads would then abort the process after all work was done.
    gc.collect()
    if config.name == "deepspeed":
        forget_groups()
    dist.destroy_process_group()


def choose_device(wanted: str, local_rank: int, environ: Mapping[str, str] = os.environ) -> torch.device:
    """Return the device of a rank, made current if it is a GPU.

    A rank may see all GPUs of the node, or its own alone; whether two ended up with one is seen when they meet.

    Raises:
        InputError: cuda is asked for and there is none.
        TransientError: Slurm gave this job GPUs and CUDA finds none, as where a node has lost its driver.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device", "a CUDA device, as the config says", "none on this machine")
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "auto" and torch.version.cuda and (given := gpus_given(environ)):
            where = f"CUDA finds none of the {given} GPUs that Slurm gave this job on {socket.gethostname()}"
            raise TransientError(f"{where} (nvidia-smi tells more; on the CPU all the same: device cpu, not auto)")
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def gpus_given(environ: Mapping[str, str]) -> int:
    """Return how many GPUs of this node Slurm gave this process's job; 0 where somebody hides them all."""
    word = environ.get("SLURM_GPUS_ON_NODE", "")
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    return int(word) if word.isdecimal() and not hidden else 0


def refuse_shared_gpus(ranks: Ranks, store: dist.Store, timeout: timedelta) -> None:
    """Tell the others which GPU this rank has; two ranks on one would wait for each other in NCCL.

    One without any, as where a node has lost its driver, would wait for the others in gloo, and they in NCCL.

    Raises:
        InputError: this rank has the GPU of another; the first such rank says so, the others leave (SystemExit 2).
        TransientError: this rank has none, and others have; the first says so, the others leave (SystemExit 1).
    """
    mine = ""  # a rank on the CPU shares nothing
    if ranks.device.type == "cuda":
        mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(ranks.device).uuid}"
    store.set(f"gpu-{ranks.rank}", mine)
    store.set_timeout(timeout)
    try:
        all_of_them = store.multi_get([f"gpu-{rank}" for rank in range(ranks.world_size)])
    except dist.DistError as error:
        raise TransientError(f"not all of {ranks.world_size} ranks came in {in_words(timeout)}") from error
    gpus = [gpu.decode() for gpu in all_of_them]
    bare, equipped = ([rank for rank, gpu in enumerate(gpus) if bool(gpu) == there] for there in (False, True))
    if bare and equipped:
        if ranks.rank == bare[0]:
            where = f"{socket.gethostname()}, and rank {equipped[0]} has one"
            raise TransientError(
                f"engine.device: rank {', '.join(map(str, bare))} without a GPU, this one on {where}"
            )
        raise SystemExit(1)
    sharing = sharers(gpus)
    if sharing and ranks.rank == sharing[0]:
        expected = f"a GPU for each of the {ranks.local_world_size} ranks of a node"
        seen = f"one of the {torch.cuda.device_count()} that rank {ranks.rank} sees"
        found = f"ranks {', '.join(map(str, sharing))} on {seen}"
        raise InputError("engine.device", expected, found)
    if sharing:
        raise SystemExit(2)


def sharers(gpus: Sequence[str]) -> list[int]:
    """Return the ranks that have the GPU which is the first to be taken twice; "" is none."""
    twice = next((gpu for gpu in gpus if gpu and gpus.count(gpu) > 1), None)
    return [rank for rank, gpu in enumerate(gpus) if twice is not None and gpu == twice]
