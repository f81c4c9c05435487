"""What a job asks of a cluster: one frozen section, from configs/cluster/*.yaml and `cluster.key=value` words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kapdist.config.fields import Name, Natural, NonNegative, Section, one_word
from kapdist.config.file import load_config

PREFIX = "cluster."
Kind = Literal["train", "plan", "shard", "aggregate", "model", "study"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OUTSIDE: tuple[Kind, ...] = ("aggregate", "study")  # of a container: they queue jobs, or need no more than a page

# What kapdist gives to sbatch itself, and what would keep it from learning the job's number, and where to say it.
OURS = {
    "job-name": "the config's name=",
    "time": "time_minutes=",
    "partition": "partition=",
    "account": "account=",
    "qos": "qos=",
    "constraint": "constraint=",
    "nodes": "nodes=",
    "ntasks": "ranks_per_node=",
    "ntasks-per-node": "ranks_per_node=",
    "cpus-per-task": "cpus_per_rank=",
    "gpus-per-node": "gpus_per_node=",
    "signal": "signal_seconds=",
    "array": "shards=",
    **dict.fromkeys(("requeue", "no-requeue"), "whatever was stopped is started again"),
    **dict.fromkeys(("dependency", "kill-on-invalid-dep"), "jobs wait for those they need"),
    **dict.fromkeys(("output", "error", "open-mode"), "logs are in slurm/"),
    **dict.fromkeys(("wrap", "parsable", "quiet", "test-only", "wait"), "it changes what sbatch answers"),
    "comment": "comment=",
    **dict.fromkeys(("clusters", "cluster-constraint"), "jobs are looked for on the cluster that the command asks"),
    "chdir": "jobs work in the folder that the command is called from, where relative paths begin",
}


def without_ours(options: dict[str, Any]) -> dict[str, Any]:
    """Return options in sbatch's own spelling; refuse those that are kapdist's to give."""
    for name in options:
        if not name[:1].isalpha():
            raise ValueError(f"options without dashes before them, not {name!r}")
        if own := OURS.get(name.replace("_", "-")):
            raise ValueError(f"no {name}, which kapdist sets itself ({own})")
    return {name.replace("_", "-"): value for name, value in options.items()}


def staying_here(words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse words for srun that would move the ranks to another folder."""
    for word in words:
        if word.partition("=")[0] == "--chdir" or word.startswith("-D"):
            raise ValueError(f"no {word} ({OURS['chdir']})")
    return words


def folders_in(mount: str) -> str:
    """Return a mount as both runtimes spell it; a folder alone has the same name inside."""
    if not re.fullmatch(r"/[^\s:,]*(:/[^\s:,]*(:r[ow])?)?", mount):
        raise ValueError("/folder, /folder:/inside or /folder:/inside:ro, without commas and spaces")
    return mount if ":" in mount else f"{mount}:{mount}"


MailKind = Literal[
    "BEGIN",
    "END",
    "FAIL",
    "REQUEUE",
    "INVALID_DEPEND",
    "TIME_LIMIT",
    "TIME_LIMIT_90",
    "TIME_LIMIT_80",
    "TIME_LIMIT_50",
    "ARRAY_TASKS",
    "ALL",
]
Mount = Annotated[str, AfterValidator(folders_in)]
Image = Annotated[str, Field(pattern=r"^[\w./~][\w.:/@#+=~-]*$", max_length=500)]
Options = Annotated[dict[str, str | int | float | bool], AfterValidator(without_ours)]
SignalSeconds = Annotated[int, Field(ge=1, le=65535)]  # sbatch takes no more


class JobConfig(Section):
    """What jobs of one kind ask for instead; what is not given here is as for all."""

    time_minutes: Natural | None = None
    """Time limit of one start."""
    partition: str | None = None
    """Partition, the queue; by default the cluster's own, as of the next three."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, such as `a100&ib`."""
    cpus_per_rank: Natural | None = None
    """CPUs of each rank; all jobs but trainings have one rank."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs on each node; a job of one rank takes one, or none if this is 0."""
    memory_gb: NonNegative | None = None
    """Memory of each node."""
    signal_seconds: SignalSeconds | None = None
    """How long before the time limit the ranks are told to save and leave."""
    sbatch: Options = Field(default_factory=dict)
    """Added to the cluster's `sbatch`, key by key; `false` takes a flag away."""


class MailConfig(Section):
    """Mail from Slurm; one value is the address."""

    stands_for = "user"

    user: Annotated[str, Field(pattern=r"^[\w][\w.@%+-]*$", max_length=254)] | None = None
    """Whom Slurm writes to; without one it writes to nobody."""
    kinds: Annotated[tuple[MailKind, ...], Field(min_length=1), BeforeValidator(one_word)] = ("END", "FAIL")
    """What it writes about, in Slurm's own words; of an array as a whole, unless ARRAY_TASKS is among them."""


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
    """Memory of each node, of a job of one rank that rank's share; 0 leaves it to the cluster's default."""
    time_minutes: Natural = 60
    """Time limit of one start of the job; a training that needs longer is requeued from its checkpoint."""
    partition: str | None = None
    """Partition, the queue; by default the cluster's own, as of the next three."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, such as `a100&ib`."""
    sbatch: Options = Field(default_factory=dict)
    """Further options of sbatch for all jobs, without the dashes: {reservation: night, exclusive: true}; true is a
    flag without a value, false leaves it out. What only trainings should have belongs in `train`."""
    srun: Annotated[tuple[str, ...], AfterValidator(staying_here)] = ()
    """Further words for srun, with their dashes."""
    setup: tuple[str, ...] = ()
    """Shell lines before anything else: module load, conda activate."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the ranks: NCCL_SOCKET_IFNAME, NCCL_IB_HCA, GLOO_SOCKET_IFNAME and the like."""
    python: str | None = None
    """Interpreter on the nodes; by default the one that submits."""
    container: Image | None = None
    """Image that ranks run in: a file, or what the runtime pulls. Aggregations and a study's page run outside."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What runs it: srun's own options (pyxis), or `apptainer exec --nv` around each rank."""
    container_python: str = "python3"
    """Interpreter inside of the image; `python` is the one outside, which has the last word of every job."""
    container_mounts: tuple[Mount, ...] = ()
    """Further folders, /outside:/inside[:ro]; the working directory, runs, code and data are mounted anyway."""
    mail: MailConfig = MailConfig()
    """Whom Slurm sends mail, and about what."""
    comment: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200)] | None = None
    """Stands in the comment of every job, before kapdist's own mark."""
    signal_seconds: SignalSeconds = 120
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
    """Elements of one array at most; 0 asks Slurm for what it allows. 1 makes every shard a job of its own."""
    train: JobConfig = JobConfig()
    """What trainings ask for instead, on all their nodes."""
    plan: JobConfig = JobConfig()
    """What the plan of an attack asks for instead; it needs the kind of GPU that the shards will have."""
    shard: JobConfig = JobConfig()
    """What each shard asks for instead."""
    aggregate: JobConfig = JobConfig()
    """What the aggregation asks for instead: it needs no GPU."""
    model: JobConfig = JobConfig()
    """What the job of each trained model of a study asks for instead: attacks, sanity, topography and the like."""
    study: JobConfig = JobConfig()
    """What the last job of a study asks for instead: the page, which needs no GPU."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def of(self, kind: Kind) -> ClusterConfig:
        """Return what one kind of job asks for: a training all nodes, any other job one rank and its share."""
        own: JobConfig = getattr(self, kind)
        given = {key: value for key, value in own if value is not None} | {"sbatch": self.sbatch | own.sbatch}
        if kind == "train":
            return self.model_copy(update=given)
        one = {"nodes": 1, "ranks_per_node": 1, "memory_gb": self.memory_gb / self.ranks_per_node} | given
        one |= {"container": None} if kind in OUTSIDE else {}
        return self.model_copy(update=one | {"gpus_per_node": min(1, one.get("gpus_per_node", self.gpus_per_node))})

    @model_validator(mode="after")
    def there_is_time_before_the_signal(self) -> ClusterConfig:
        for kind in KINDS:
            job = self.of(kind)
            if job.signal_seconds >= 60 * job.time_minutes:
                limit = f"the {60 * job.time_minutes} s of a job ({kind}: time_minutes={job.time_minutes})"
                raise ValueError(f"signal_seconds={job.signal_seconds} to be less than {limit}")
        return self


def load_cluster(path: Path | None, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read a cluster's file, or the defaults where there is none, and apply `key=value` words, without `cluster.`.

    Raises:
        InputError: as `load_config`.
    """
    return load_config(ClusterConfig, path, overrides, prefix=PREFIX)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (words for the job's config, words for the cluster's, without their `cluster.`)."""
    cluster = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
    return [word for word in words if not word.startswith(PREFIX)], cluster
