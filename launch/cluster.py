"""What a job asks of a cluster: one frozen section, from configs/cluster/*.yaml and `cluster.key=value` words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from kapdist.config import Name, Natural, NonNegative, Section
from kapdist.configfile import load_config

PREFIX = "cluster."


class ClusterConfig(Section):
    """Owner: launch/."""

    name: Name = "default"
    """Name of the cluster; by default the name of the file."""
    nodes: Natural = 1
    """Nodes of a training job. A shard of an attack takes one."""
    ranks_per_node: Natural = 1
    """Ranks on each node: one per GPU as a rule."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs on each node; 0 asks for none."""
    cpus_per_rank: Natural = 1
    """CPUs of each rank, for decoding and computing."""
    memory_gb: NonNegative = 0.0
    """Memory of each node; 0 leaves it to the cluster's default."""
    time_minutes: Natural = 60
    """Time limit of one start of the job; a training that needs longer is requeued from its checkpoint."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further options of sbatch, without the dashes: {gres: "gpu:a100:8", exclusive: true}."""
    srun: tuple[str, ...] = ()
    """Further words for srun, with their dashes."""
    setup: tuple[str, ...] = ()
    """Shell lines before anything else: module load, conda activate."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the ranks: NCCL_SOCKET_IFNAME, NCCL_IB_HCA, GLOO_SOCKET_IFNAME and the like."""
    python: str | None = None
    """Interpreter on the nodes; by default the one that submits."""
    signal_seconds: Natural = 120
    """How long before the time limit the ranks are told to save and leave."""
    max_failures: Natural = 3
    """Failures in a row without progress after which a job is given up."""
    max_idle_restarts: Natural = 10
    """Restarts in a row without progress, failures or not: a time limit too short for a first checkpoint."""
    shards: Natural = 1
    """Shards of an attack, elements of the job array."""
    shards_at_once: Natural = 100
    """Shards that may run at one time."""
    shard_retries: Annotated[int, Field(ge=0)] = 2
    """How often the aggregation queues missing shards again."""
    max_array_size: Annotated[int, Field(ge=0)] = 0
    """Elements of one array at most; 0 asks Slurm for its MaxArraySize."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def load_cluster(path: Path | None, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read a cluster's file, or the defaults where there is none, and apply `key=value` words.

    Raises:
        InputError: as `load_config`.
    """
    return load_config(ClusterConfig, path, overrides)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (words for the job's config, words for the cluster's, without their `cluster.`)."""
    cluster = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
    return [word for word in words if not word.startswith(PREFIX)], cluster
