"""What is said of machines that are known: files of /proc, clusters, drivers, file systems as others have."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from kapdist.doctor import compilers, gpus, machine, packages, slurm, storage
from kapdist.doctor.finding import Finding
from kapdist.doctor.gpus import GIB, Driver, Gpu, NvmlError

MOUNTS = r"""22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/export/home rw,vers=4.2
31 22 0:41 / /scratch rw shared:7 - lustre 10.0.0.1@o2ib:/scratch rw,flock
32 22 0:42 / /scratch/my\040data rw - tmpfs tmpfs rw
33 22 0:43 / /homework rw - xfs /dev/sdb rw
"""


def by_name(found: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/me/runs", "nfs4"),
        ("/home", "nfs4"),
        ("/homework/x", "xfs"),
        ("/scratch/runs", "lustre"),
        ("/scratch/my data/runs", "tmpfs"),
        ("/var/tmp", "ext4"),
    ],
)
def test_the_file_system_of_a_folder_is_the_innermost_mount(folder: str, kind: str) -> None:
    mount = storage.mount_of(folder, MOUNTS)
    assert mount is not None
    assert mount.kind == kind
    told = storage.kind_told(Path(folder), mount)
    assert told.status == ("note" if kind == "tmpfs" else "ok")
    assert ("shared" in told.found) == (kind in ("nfs4", "lustre"))


def room(free_gib: float, files: int, inodes_there: int = 10**6) -> Finding:
    block = 4096
    free = int(free_gib * GIB / block)
    return storage.room_told(
        os.statvfs_result((block, block, 10**9, free, free, inodes_there, files, files, 0, 255))
    )


def test_room() -> None:
    assert room(500, 10**6).status == "ok"
    assert room(10, 10**6).status == "note"
    assert room(1, 10**6).status == "wrong"
    assert room(500, 100).status == "note"
    assert room(500, 0).status == "wrong"
    assert room(500, 0, inodes_there=0).status == "ok"  # btrfs has no such number


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    found = by_name(storage.storage(tmp_path))
    assert list(found) == ["file system", "room", "files", "locks", "clock"]
    assert found["locks"].status == "ok"
    assert found["files"].status != "wrong"
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    told = by_name(storage.storage(tmp_path))["locks"]
    assert told.status == "wrong"
    assert "hard links do not work" in told.found
    monkeypatch.setattr(os, "link", lambda *_: None)  # says that it did, as some network file systems
    assert by_name(storage.storage(tmp_path))["locks"].found == "taken twice at once"


def test_a_rename_that_keeps_the_old_content_and_a_folder_that_takes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write_atomic
    monkeypatch.setattr(storage, "write_atomic", lambda path, content: path.exists() or write(path, content))
    assert by_name(storage.storage(tmp_path))["files"].status == "wrong"
    told = by_name(storage.storage(Path("/proc")))["files"]
    assert told.status == "wrong"
    assert told.found.startswith("/proc: ")


@pytest.mark.parametrize(
    ("skew", "status", "word"),
    [(0.5, "ok", "the same"), (-90.0, "note", "90.0 s behind"), (90.0, "note", "ahead"), (1e5, "wrong", "ahead")],
)
def test_clocks(skew: float, status: str, word: str) -> None:
    told = storage.clock_told(skew, 0.01)
    assert (told.status, word in told.found) == (status, True)
    assert storage.clock_told(2.5, uncertain=1.0).status == "ok"  # the file took a second to be written


def test_a_known_hazard_is_told_where_it_is_one() -> None:
    """oneDNN 3.12 came with torch 2.13 and needs AVX-512; torch 2.11's are of any CPU."""

    def told(flags: str, torch: str) -> list[str]:
        return [finding.status for finding in machine.hazards(frozenset(flags.split()), torch)]

    assert told("avx2 avx512f", "2.13.0+cu130") == ["note"]
    assert told("avx2", "2.13.0+cpu") == ["ok"]
    assert told("avx2 avx512f", "2.12.1") == ["ok"]
    assert told("avx2", "2.11.0") == ["note"]


def test_flags_of_two_kinds_of_cpu() -> None:
    assert machine.flags_of("processor: 0\nflags\t\t: fpu avx2 avx512f\n\nflags\t: sse") == {
        "fpu",
        "avx2",
        "avx512f",
    }
    assert machine.flags_of("Features\t: fp asimd") == {"fp", "asimd"}
    assert machine.flags_of("") == frozenset()


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, "ok"),
        ({"OMP_NUM_THREADS": "4"}, "ok"),
        ({"OMP_NUM_THREADS": "64"}, "note"),
        ({"OMP_PROC_BIND": "false"}, "ok"),
        ({"OMP_PROC_BIND": "spread"}, "note"),
        ({"KMP_AFFINITY": "granularity=fine,compact"}, "note"),
    ],
)
def test_variables_of_threads(environ: dict[str, str], status: str) -> None:
    assert machine.threads_told(environ, usable=8).status == status


CLUSTER = """Configuration data as of 2026-11-26T12:00:00
ClusterName             = big
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
ProctrackType           = proctrack/cgroup
SlurmctldParameters     = preempt_send_user_signal,enable_configless
SLURM_VERSION           = 23.11.4
TaskPlugin              = task/affinity,task/cgroup
Slurmctld(primary) at big1 is UP
"""


def told_of(text: str) -> dict[str, Finding]:
    return by_name(slurm.told(slurm.settings(text)))


def test_a_cluster_as_most_are_and_what_others_lack() -> None:
    found = told_of(CLUSTER)
    assert found["Slurm"].found == "23.11.4, cluster big"
    assert {finding.status for finding in found.values()} == {"ok"}
    assert (
        "kapdist divides"
        in told_of(CLUSTER.replace("task/affinity,task/cgroup", "task/none"))["Slurm's tasks"].remedy
    )
    assert "locks" in told_of(CLUSTER.replace("proctrack/cgroup", "proctrack/linuxproc"))["Slurm's tasks"].remedy
    unwarned = told_of(CLUSTER.replace("preempt_send_user_signal,", ""))["Slurm's preemption"]
    assert "preempt_send_user_signal" in unwarned.remedy
    assert (
        told_of(CLUSTER.replace("REQUEUE", "OFF").replace("preempt_send", "x"))["Slurm's preemption"].status == "ok"
    )


def commands(folder: Path, scontrol: str, names: tuple[str, ...] = slurm.COMMANDS) -> None:
    for name in names:
        script = folder / name
        script.write_text(f"#!/bin/sh\n{scontrol}\n")
        script.chmod(0o755)


@pytest.mark.parametrize(
    ("scontrol", "status", "said"),
    [
        ("echo 'SLURM_VERSION = 22.05.8'", "ok", "22.05.8"),
        ("echo 'fatal: Could not establish a configuration source' >&2; exit 1", "note", "is not configured"),
        (
            "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1",
            "wrong",
            "Unable to contact",
        ),
    ],
)
def test_what_scontrol_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str, status: str, said: str
) -> None:
    commands(tmp_path, scontrol)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    told = next(slurm.cluster())
    assert (told.status, said in told.found) == (status, True)


def test_no_slurm_or_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(slurm.cluster()).status == "ok"
    commands(tmp_path, "exit 0", ("squeue", "scontrol"))
    assert next(slurm.cluster()).found == "no sbatch, srun, scancel"


def torch_of(cuda: str | None) -> packages.Torch:
    return packages.Torch(Path("torch"), "2.13.0", cuda)


def driver(cuda: str, *used: float) -> Driver:
    return Driver("550.54", cuda, tuple(Gpu("H100", 80 * GIB, int(share * 80 * GIB)) for share in used))


@pytest.mark.parametrize(
    ("serves", "built", "visible", "used", "statuses"),
    [
        ("12.8", "12.8", None, (0.0, 0.0), ["ok", "ok"]),
        ("12.4", "12.8", "0,1", (0.0, 0.0), ["ok", "ok"]),  # of one major version any will do
        ("12.8", "13.0", None, (0.0,), ["ok", "wrong"]),
        ("12.8", None, None, (0.0,), ["wrong", "ok"]),
        ("12.8", "12.8", "", (0.0,), ["note", "ok"]),
        ("12.8", "12.8", None, (0.0, 0.9), ["note", "ok"]),
        ("12.8", "12.8", None, (), ["ok", "ok"]),
    ],
)
def test_gpus_and_torch_go_together(
    serves: str, built: str | None, visible: str | None, used: tuple[float, ...], statuses: list[str]
) -> None:
    found = list(gpus.told(driver(serves, *used), torch_of(built), visible))
    assert [finding.status for finding in found] == statuses
    assert found[0].found == (f"{len(used)} x H100, 80 GiB" if used else "none")


STUB = """
#include <string.h>
struct memory { unsigned long long total, free, used; };
extern "C" {
int nvmlInit_v2() { return FAILS; }
int nvmlSystemGetDriverVersion(char *text, unsigned) { strcpy(text, "580.65.06"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *number) { *number = 12090; return 0; }
int nvmlDeviceGetCount_v2(unsigned *number) { *number = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(index + 1UL); return 0; }
int nvmlDeviceGetName(void *handle, char *text, unsigned) {
  strcpy(text, handle == (void *)1 ? "A" : "B");
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory *found) {
  if (handle == (void *)2 && UNTOLD) return UNTOLD;
  *found = {80ULL << 30, 0, (unsigned long long)handle};
  return 0;
}
}
"""


def test_the_driver_is_asked_as_its_header_says(tmp_path: Path) -> None:
    """A library with NVML's functions: its structure, its numbers, its errors."""
    if shutil.which("g++") is None:
        pytest.fail("g++ is there wherever kapdist is installed from a checkout")
    (tmp_path / "nvml.cpp").write_text(STUB)
    for fails, untold in ((0, 0), (999, 0), (0, 3), (0, 4), (0, 15)):
        words = ["g++", "-shared", "-fPIC", f"-DFAILS={fails}", f"-DUNTOLD={untold}", str(tmp_path / "nvml.cpp")]
        subprocess.run([*words, "-o", str(tmp_path / f"nvml{fails}-{untold}.so")], check=True, timeout=120)

    def ask(fails: int, untold: int) -> Driver:
        return gpus.ask(ctypes.CDLL(str(tmp_path / f"nvml{fails}-{untold}.so")))

    first = Gpu("A", 80 * GIB, 1)
    assert ask(0, 0) == Driver("580.65.06", "12.9", (first, Gpu("B", 80 * GIB, 2)))
    with pytest.raises(NvmlError, match=r"error 999 \(nvmlInit_v2\)"):
        ask(999, 0)
    for not_told in (3, 4):  # a GPU that has the machine's own memory, and a part of one that is lent
        assert ask(0, not_told).gpus == (first, Gpu("B", 0, 0))
    assert [one.status for one in gpus.told(ask(0, 3), torch_of("12.8"), None)] == ["ok", "ok"]
    with pytest.raises(NvmlError, match=r"error 15 \(nvmlDeviceGetMemoryInfo\)"):
        ask(0, 15)


@pytest.mark.parametrize(("code", "version"), [(22703, "2.27.3"), (21903, "2.19.3"), (2708, "2.7.8")])
def test_nccl_s_number(code: int, version: str) -> None:
    """NCCL_VERSION_CODE of nccl.h: 1000 X + 100 Y + Z until 2.8, then 10000 X + 100 Y + Z."""
    assert packages.nccl_version(code) == version


def test_packages_that_are_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=1.26", "polars>=999", "no-such-package>=1", 'scipy>=1; extra == "dev"']
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda _: wanted)
    (told,) = packages.requirements()
    assert told.status == "wrong"
    assert "1 of 3 packages" in told.found
    assert "no-such-package" in told.found
    assert "(>=999)" in told.found
    assert not packages.within("3.9.1", ">=3.10,<3.13")
    assert packages.within("3.12.9", ">=3.10,<3.13")


def test_torch_as_it_lies_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packages.find_torch()
    assert found is not None
    assert found.version == importlib.metadata.version("torch")
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cu128'\ncuda: Optional[str] = '12.8'\nhip = None\n")
    monkeypatch.setattr(packages, "folder_of", lambda name: tmp_path if name == "torch" else None)
    told = by_name(packages.torch())
    assert told["torch"].found == "2.9.1+cu128, built for CUDA 12.8"
    assert told["torch"].status == "wrong"  # its libraries are gone
    assert told["NCCL"].status == "note"


def test_a_library_that_ffcv_links_to_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then simplejpeg reads; without it too, nothing does."""
    (tmp_path / "_libffcv.cpython-311-x86_64-linux-gnu.so").write_bytes(b"no library")
    monkeypatch.setattr(packages, "folder_of", lambda _: tmp_path)
    told = by_name(packages.decoders())
    assert (told["FFCV"].status, told["simplejpeg"].status) == ("note", "ok")
    monkeypatch.setitem(packages.sys.modules, "simplejpeg", None)
    assert {finding.status for finding in packages.decoders()} == {"wrong"}


def test_compilers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compilers, "find_torch", lambda: torch_of("12.8"))
    monkeypatch.setattr(compilers, "package_version", lambda _: None)
    assert [finding.status for finding in compilers.compilers()] == ["note", "note"]
