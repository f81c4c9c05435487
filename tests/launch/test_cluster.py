"""What each kind of job asks of a cluster, and what is refused before anything is queued. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from kapdist.errors import InputError
from launch import slurm
from launch.cluster import ClusterConfig, Kind, load_cluster
from launch.submission import submission

GPU_NODES = Path(__file__).parents[2] / "configs" / "cluster" / "gpu_nodes.yaml"


def options(cluster: ClusterConfig, kind: Kind) -> dict[str, str | None]:
    """{sbatch's option: its value, None for a flag} of a job of some kind."""
    script = submission(
        "name", Path("/runs/x"), cluster.of(kind), Path("/code"), "launch.after", kind=kind
    ).script()
    words = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    pairs = [shlex.split(word)[0].partition("=") for word in words]
    return {name: value if equals else None for name, equals, value in pairs}


@pytest.mark.parametrize(
    ("kind", "nodes", "gpus"),
    [("train", "4", "8"), ("plan", "1", "1"), ("shard", "1", "1"), ("aggregate", "1", None)],
)
def test_only_a_training_takes_whole_nodes(kind: Kind, nodes: str, gpus: str | None) -> None:
    found = options(load_cluster(GPU_NODES), kind)
    assert found["nodes"] == nodes
    assert found.get("gpus-per-node") == gpus
    assert ("exclusive" in found) == (kind == "train")


def test_the_interfaces_are_named_for_both_ways_of_talking() -> None:
    named = load_cluster(GPU_NODES).environment
    assert named["GLOO_SOCKET_IFNAME"] == named["NCCL_SOCKET_IFNAME"]


def test_a_kind_s_own_words_come_first() -> None:
    words = ["partition=gpu", "memory_gb=64", "ranks_per_node=4", "sbatch={exclusive: true, hold: true, nice: 5}"]
    words += ["aggregate={partition: cpu, time_minutes: 20, cpus_per_rank: 3, memory_gb: 6}"]
    words += ["aggregate.sbatch={exclusive: false, mail_type: END}"]
    with pytest.raises(InputError, match="signal_seconds=1200 to be less than the 1200 s of a job"):
        load_cluster(None, [*words, "aggregate.signal_seconds=1200"])
    cluster = load_cluster(None, words)
    found = options(cluster, "aggregate")
    assert (found["partition"], found["time"], found["cpus-per-task"], found["mem"]) == ("cpu", "20", "3", "6144M")
    assert (found["hold"], found["nice"], found["mail-type"]) == (None, "5", "END")
    assert "exclusive" not in found
    found = options(cluster, "shard")
    assert (found["partition"], found["time"], found["mem"]) == (
        "gpu",
        "60",
        "16384M",
    )  # a rank's share of the node
    assert found["exclusive"] is None
    assert options(cluster, "train")["mem"] == "65536M"


@pytest.mark.parametrize("word", ["{exclusive: false}", "{exclusive: true}", "{gres: 'gpu:2', mem: 0}"])
def test_true_is_a_flag_and_false_is_nothing(word: str) -> None:
    expected = {"false": {}, "true": {"exclusive": None}}.get(word[12:-1], {"gres": "gpu:2", "mem": "0"})
    found = options(load_cluster(None, [f"sbatch={word}"]), "train")
    assert {key: found[key] for key in ("exclusive", "gres", "mem") if key in found} == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sbatch={nodes: 3}", "no nodes, which kapdist sets itself (nodes=)"),
        ("sbatch={cpus_per_task: 3}", "(cpus_per_rank=)"),
        ("train.sbatch={no_requeue: true}", "whatever was stopped is started again"),
        ("shard.sbatch={output: x}", "logs are in slurm/"),
        ("sbatch={chdir: /tmp}", "where relative paths begin"),
        ("sbatch={clusters: other}", "the cluster that the command asks"),
        ("srun=[--chdir=/tmp]", "where relative paths begin"),
        ("sbatch={--exclusive: true}", "options without dashes before them"),
        ("sbatch={test-only: true}", "what sbatch answers"),
        ("signal_seconds=3600", "to be less than the 3600 s of a job (train: time_minutes=60)"),
        ("aggregate.time_minutes=2", "to be less than the 120 s of a job (aggregate"),
        ("signal_seconds=70000", "less than or equal to 65535"),
        ("shard.partitoin=x", "nearest: shard.partition"),
    ],
)
def test_what_is_refused(word: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_cluster(None, [word])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# What Slurm says


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("MaxArraySize            = 1001\n", 1001),
        ("MaxArraySize            = 0\n", 1),  # arrays are switched off
        ("MaxArraySize = 2001\nSchedulerParameters     = max_array_tasks=5,sched_interval=1\n", 5),
        (None, 1001),
    ],
)
def test_the_size_of_an_array(monkeypatch: pytest.MonkeyPatch, said: str | None, size: int) -> None:
    monkeypatch.setattr(slurm, "ask", lambda *words, **more: said)
    assert slurm.max_array_size() == size


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[0,2-4%2]", ["7_0", "7_2", "7_3", "7_4"]),
        ("7_[10-11]", ["7_10", "7_11"]),
        ("7_[0-12:4%2]", ["7_0", "7_4", "7_8", "7_12"]),  # as Slurm 22.05 writes regular ones
    ],
)
def test_the_elements_of_an_array_that_never_started(name: str, jobs: list[str]) -> None:
    assert slurm.elements(name) == jobs
