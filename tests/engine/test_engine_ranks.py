"""Who a process is among its job's ranks, where they meet, and what is said where they do not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import held_port

from kapdist.config import EngineConfig
from kapdist.engine import Ranks, join
from kapdist.engine.place import Place, place_from
from kapdist.engine.ranks import choose_device, refuse_shared_gpus, sharers
from kapdist.engine.rendezvous import look_up, loopback, master, meeting, publish
from kapdist.errors import InputError, TransientError

SOON = timedelta(seconds=0.3)
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}


def test_a_place_is_what_torchrun_or_srun_say() -> None:
    assert place_from({}) == Place(0, 1, 0, 1)
    assert place_from({"RANK": "0", "WORLD_SIZE": "1"}) == Place(0, 1, 0, 1)
    assert place_from(TORCHRUN) == Place(3, 8, 1, 2)
    assert place_from(SRUN) == Place(5, 6, 1, 2)
    assert place_from(SRUN | TORCHRUN) == Place(3, 8, 1, 2)  # torchrun within a step
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "4,1", "SLURM_NODEID": "1", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"}
    assert place_from(SRUN | uneven | {"SLURM_STEP_NUM_TASKS": "5"}) == Place(4, 5, 0, 1)


def test_the_shell_of_an_interactive_step_is_alone_and_srun_in_it_is_not() -> None:
    """salloc under use_interactive_step: the shell is a step of one task in an allocation of eight."""
    shell = SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"}
    shell |= {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    shell |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert place_from(shell) == Place(0, 1, 0, 1)
    inner = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"}
    assert place_from(shell | inner | {"SLURM_PROCID": "6", "SLURM_LOCALID": "2"}) == Place(6, 8, 2, 4)
    batch = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert place_from(batch) == Place(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("environ", "change", "name"),
    [
        (TORCHRUN, {"RANK": "a"}, "RANK"),
        (TORCHRUN, {"RANK": "-1"}, "RANK"),
        (TORCHRUN, {"RANK": ""}, "RANK"),
        (TORCHRUN, {"RANK": "8"}, "RANK"),
        (TORCHRUN, {"WORLD_SIZE": "many"}, "WORLD_SIZE"),
        (TORCHRUN, {"WORLD_SIZE": None}, "WORLD_SIZE"),
        (TORCHRUN, {"LOCAL_RANK": None}, "LOCAL_RANK"),
        (TORCHRUN, {"LOCAL_RANK": "2"}, "LOCAL_RANK"),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE"),
        (SRUN, {"SLURM_PROCID": None}, "SLURM_PROCID"),
        (SRUN, {"SLURM_STEP_NUM_TASKS": "5"}, "SLURM_PROCID"),
        (SRUN, {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE"),
    ],
)
def test_variables_that_make_no_sense_are_named(
    environ: Mapping[str, str], change: Mapping[str, str | None], name: str
) -> None:
    words = {key: value for key, value in {**environ, **change}.items() if value is not None}
    with pytest.raises(InputError, match=rf"^environment variable {name}: expected .*, found .*$"):
        place_from(words)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"MASTER_PORT": "29 500"}, "MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT"),
        ({"MASTER_PORT": ""}, "MASTER_PORT"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR"),
    ],
)
def test_a_place_to_meet_that_is_none_is_named(change: dict[str, str], name: str) -> None:
    with pytest.raises(InputError, match=f"^environment variable {name}: expected"):
        master({"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"} | change, 2)


def test_a_port_that_another_process_has_is_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"MASTER_PORT: expected a free port, found {port}, which another"):
            with meeting(0, 2, os.environ, SOON):
                pass


def test_ranks_that_wait_in_vain_may_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """A rank 0 that comes later than the limit, or has gone: nothing is wrong with the input."""
    path = tmp_path / "meeting.json"
    with pytest.raises(TransientError, match=r"rank 0 left no address in .*meeting\.json within 0.3 s"):
        look_up(path, 2, SOON)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: True)  # it was there a moment ago, of a rank 0 that has failed
        with pytest.raises(TransientError, match="rank 0 left no address"):
            look_up(path, 2, SOON)
    held = held_port()  # and nobody listens
    port = held.getsockname()[1]
    path.write_text(json.dumps({"hosts": ["127.0.0.1"], "port": port}))
    with pytest.raises(TransientError, match=f"rank 0 does not answer on port {port} of 127.0.0.1"):
        look_up(path, 2, SOON)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TransientError, match=f"rank 1 found no rank 0 at localhost port {port}"):
        with meeting(1, 2, os.environ, SOON):
            pass
    with pytest.raises(TransientError, match=f"not all of 2 ranks came to localhost port {port}"):
        with meeting(0, 2, os.environ, SOON):
            pass
    held.close()


AS_RANK = """
import os, sys
os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}
sys.argv = ["kapdist", "train", "tiny.yaml", "engine.timeout_minutes=0.01", "train.stall_minutes=0.005"]
from kapdist.cli import main
main()
"""


def test_a_process_that_is_told_nonsense_ends_with_one_line(run_ranks, tiny_config: Path, monkeypatch) -> None:
    """Late ranks end with 1, so that a job starts them again, and say why in FAILED."""
    folder = tiny_config.parent
    (folder / "runs" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("KAPDIST_RENDEZVOUS", str(tmp := folder / "nobody.json"))
    (folder / "program.py").write_text(AS_RANK)
    (late,) = run_ranks(["program.py", "3"])
    assert late.code == 1
    assert late.output.splitlines()[-1].startswith(f"kapdist: rank 0 left no address in {tmp} within 0.6 s")
    assert "Traceback" not in late.output
    assert (folder / "runs" / "tiny" / "FAILED").read_text().startswith("rank 0 left no address in ")
    (wrong,) = run_ranks(["program.py", "three"])
    assert wrong.code == 2
    assert wrong.output.splitlines() == [
        "kapdist: environment variable RANK: expected a whole number, found 'three'"
    ]


def test_the_store_is_reached_on_every_address_of_rank_0(tmp_path: Path) -> None:
    store = publish(tmp_path / "meeting.json", 2, timedelta(seconds=20))
    found = json.loads((tmp_path / "meeting.json").read_text())
    assert socket.gethostname() in found["hosts"]
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, found["port"]), 5).close()
    other = look_up(tmp_path / "meeting.json", 2, timedelta(seconds=20))
    store.set("word", "said")
    assert other.get("word") == b"said"


def test_a_host_with_ipv6_alone_has_a_loopback_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loopback() == "127.0.0.1"
    real = socket.socket

    def only_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET:
            raise OSError("no such family")
        return real(family, kind)

    monkeypatch.setattr("kapdist.engine.rendezvous.socket.socket", only_ipv6)
    assert loopback() == "::1"


IPV6_ALONE = """
set -e
printf 'fd00::5 %s\\n::1 localhost\\n' "$(hostname)" > "$1/hosts"
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
ip addr del 127.0.0.1/8 dev lo
ip -6 addr add fd00::5/64 dev lo
touch "$1/prepared"
export KAPDIST_RENDEZVOUS=$1/meeting.json WORLD_SIZE=2 LOCAL_WORLD_SIZE=2
RANK=1 LOCAL_RANK=1 "$2" -c "$3" & RANK=0 LOCAL_RANK=0 "$2" -c "$3"
wait $!
"""
SAY_HELLO = """
from kapdist.config import EngineConfig
from kapdist.engine import join
with join(EngineConfig(device="cpu", timeout_minutes=1, threads=1)) as ranks:
    assert ranks.gather(ranks.rank) == [0, 1]
"""


def test_ranks_meet_on_a_host_with_ipv6_alone(tmp_path: Path) -> None:
    command = ["unshare", "--net", "--mount", "sh", "-c", IPV6_ALONE, "sh", tmp_path, sys.executable, SAY_HELLO]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200)
    if not (tmp_path / "prepared").exists():
        pytest.skip(f"no network namespace can be made here: GPU boxes and containers: {done.stderr}")
    assert done.returncode == 0, done.stderr


def test_two_ranks_on_one_gpu_are_refused_by_the_first_of_them() -> None:
    assert sharers(["a 1", "a 2", "b 1", "b 2"]) == []
    assert sharers(["", "", ""]) == []  # ranks on the CPU
    assert sharers(["a 1", "a 2", "a 3", "a 2", "a 1"]) == [0, 4]


def test_ranks_tell_one_another_which_gpu_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        uuid = "GPU-1"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    store = dist.HashStore()
    store.set("gpu-1", f"{socket.gethostname()} GPU-1")
    place = {"world_size": 2, "local_world_size": 2, "device": torch.device("cuda", 0)}
    with pytest.raises(
        InputError, match=r"engine\.device: expected a GPU for each of the 2 ranks .*, found ranks 0, 1"
    ):
        refuse_shared_gpus(Ranks(rank=0, **place), store, SOON)
    with pytest.raises(SystemExit, match="2"):
        refuse_shared_gpus(Ranks(rank=1, **place), store, SOON)
    store.set("gpu-1", "another GPU-1")
    refuse_shared_gpus(Ranks(rank=0, **place), store, SOON)


def test_gpus_that_slurm_gave_and_cuda_does_not_find_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has lost its driver: on its CPUs a training would go on, a hundred times as slowly."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    given = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    with pytest.raises(TransientError, match=rf"none of the 4 GPUs .* on {socket.gethostname()} \(nvidia-smi"):
        choose_device("auto", 0, given)
    for wanted, environ in (
        ("cpu", given),
        ("auto", {}),
        ("auto", given | {"CUDA_VISIBLE_DEVICES": ""}),
        ("auto", given | {"SLURM_GPUS_ON_NODE": "0"}),
    ):
        assert choose_device(wanted, 0, environ).type == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)  # torch for CPUs
    assert choose_device("auto", 0, given).type == "cpu"


def test_a_rank_without_a_gpu_among_others_with_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose driver is lost: its rank would wait in gloo and the others in NCCL, until the time limit."""

    class Gpu:
        uuid = "GPU-1"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    store = dist.HashStore()
    store.set("gpu-1", "")
    store.set("gpu-2", "")
    store.set("gpu-0", "first GPU-0")
    place = {"world_size": 3, "device": torch.device("cpu")}
    with pytest.raises(TransientError, match=rf"rank 1, 2 without .*{socket.gethostname()}.*, and rank 0 has one"):
        refuse_shared_gpus(Ranks(rank=1, **place), store, SOON)
    for rank, device in ((2, place["device"]), (0, torch.device("cuda", 0))):
        with pytest.raises(SystemExit, match="1"):
            refuse_shared_gpus(Ranks(rank=rank, **place | {"device": device}), store, SOON)


def test_a_group_of_one_is_left_after_an_error_too() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), join(EngineConfig(name="deepspeed", device="cpu", threads=1)):
            raise ValueError("x")
    assert not dist.is_initialized()


@pytest.mark.parametrize("fault", [None, ValueError("x")])
def test_who_has_left_has_as_many_threads_as_before(fault: Exception | None) -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(ValueError), join(EngineConfig(device="cpu", threads=before + 1)):
        assert torch.get_num_threads() == before + 1
        if fault:
            raise fault
    assert torch.get_num_threads() == before
