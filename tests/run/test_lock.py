"""Who holds a lock, who is gone, and who cannot be asked for."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kapdist.errors import InputError, LockedError
from kapdist.run import lock as lock_module
from kapdist.run.lock import Holder, check_free, locked, locked_in_turn, other_at_work, this_process
from kapdist.run.slurm import answer

FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
SILENT = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
HOLD = "import sys, time; from pathlib import Path; from kapdist.run.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this process one that Slurm started."""

    def enter(job: str, restart: int = 0, step: int | None = 0, cluster: str = "c") -> None:
        values = {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": job, "SLURM_CLUSTER_NAME": cluster}
        values |= {"SLURM_RESTART_COUNT": str(restart)} if restart else {}
        values |= {"SLURM_STEP_ID": str(step)} if step is not None else {}
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return enter


@pytest.fixture
def slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put commands of Slurm in the place of PATH: shell lines that use nothing but the shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def says(**lines: str) -> None:
        for name, line in lines.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)

    return says


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path/LOCK, the first step of job 7."""
    values = {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_CLUSTER_NAME": "c"}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "LOCK")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | values) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


ELSEWHERE = Holder(
    host="elsewhere", pid=1, started="1", since="noon", boot="b", user=os.getuid(), job="7", step="0", cluster="c"
)


def leave(path: Path, holder: Holder) -> None:
    path.write_text(json.dumps(asdict(holder)))


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "LOCK"), pytest.raises(LockedError, match=f"process {os.getpid()} on"):
        with locked(tmp_path / "LOCK"):
            pass
    with locked(tmp_path / "LOCK"):
        pass
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, held: subprocess.Popen[str]) -> None:
    lock = tmp_path / "LOCK"
    with pytest.raises(InputError, match=f"process {held.pid}"), locked(lock):
        pass
    held.kill()
    os.waitid(os.P_PID, held.pid, os.WEXITED | os.WNOWAIT)  # dead, though nobody has waited for it
    with locked(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("restart", [0, 1])
def test_a_living_process_of_the_same_job_keeps_its_lock(tmp_path, held, in_job, restart: int) -> None:
    in_job("7", restart, step=1)
    with pytest.raises(LockedError, match=rf"process {held.pid} on .* \(Slurm job 7\)"), locked(tmp_path / "LOCK"):
        pass
    held.kill()
    held.wait(240)
    with locked(tmp_path / "LOCK"):
        pass


def test_another_namespace_of_processes_is_another_machine(tmp_path: Path) -> None:
    """A container of the same host name: its process 4194000 is not ours, and is not seen."""
    leave(tmp_path / "LOCK", replace(this_process(), pid=4194000, namespace="pid:[1]"))
    with pytest.raises(LockedError, match=r"process 4194000 .*; nothing here says whether it lives"):
        check_free(tmp_path / "LOCK")


def test_a_process_that_proc_hides_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    leave(tmp_path / "LOCK", replace(this_process(), pid=4194000))
    check_free(tmp_path / "LOCK")
    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(LockedError):
        check_free(tmp_path / "LOCK")


def test_without_proc_a_process_that_is_there_holds_its_lock(tmp_path: Path, held, monkeypatch) -> None:
    monkeypatch.setattr(lock_module, "process_start", lambda pid: None)
    with pytest.raises(LockedError):
        check_free(tmp_path / "LOCK")
    held.kill()
    held.wait(240)
    check_free(tmp_path / "LOCK")


@pytest.mark.parametrize(
    ("words", "free"),
    [
        ({}, False),
        ({"squeue": "echo 7 RUNNING 0; test $2 = --steps && echo 7.0"}, False),
        ({"squeue": "test $2 = --steps && echo 7.1 || echo 7 RUNNING 0"}, True),  # that step has ended
        ({"squeue": "exit 0"}, False),  # a job that is left out, whyever
        ({"squeue": "exit 0", "sacct": "echo COMPLETED"}, True),
        ({"squeue": "echo 7 RUNNING 1"}, True),  # started again since
        ({"squeue": "echo 7 PENDING 1"}, True),
        ({"squeue": "echo 7 COMPLETING 1"}, False),  # about to
        ({"squeue": "echo 7 SUSPENDED 0"}, False),
        ({"squeue": "echo 7 FAILED 0"}, True),
        ({"squeue": "echo; echo a word of the site; echo 7 FAILED 0"}, True),
        ({"squeue": SILENT, "sacct": "echo ' '; echo COMPLETED"}, True),
        ({"squeue": FORGOTTEN}, True),
        ({"squeue": SILENT}, False),
        ({"squeue": SILENT, "sacct": "echo 'CANCELLED by 0'"}, True),
        ({"squeue": SILENT, "sacct": "echo RUNNING"}, False),
        ({"squeue": SILENT, "sacct": "exit 1"}, False),
    ],
)
@pytest.mark.parametrize("asked", ["in a job", "on a login node"])
def test_of_a_job_on_another_node_slurm_is_asked(tmp_path, in_job, slurm_says, words, free: bool, asked) -> None:
    lock = tmp_path / "LOCK"
    leave(lock, ELSEWHERE)
    slurm_says(scontrol="echo 'ClusterName = c'", **words)
    if asked == "in a job":
        in_job("8")
    if not free:
        with pytest.raises(LockedError, match=r"process 1 on elsewhere since noon \(Slurm job 7\)"):
            check_free(lock)
    else:
        with locked(lock):
            assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("wish", ["SQUEUE_PARTITION", "SQUEUE_QOS", "SQUEUE_NAMES", "SLURM_CLUSTERS"])
def test_what_the_user_s_shell_says_to_squeue_frees_no_lock(
    tmp_path, monkeypatch, in_job, slurm_says, wish: str
) -> None:
    """SQUEUE_PARTITION=gpu in a profile: squeue leaves a job of another partition out, with exit code 0."""
    leave(tmp_path / "LOCK", ELSEWHERE)
    lives = "echo 7 RUNNING 0; test $2 = --steps && echo 7.0"
    slurm_says(squeue=f'test -n "${wish}" || {{ {lives}; }}\nexit 0')
    in_job("8")
    monkeypatch.setenv(wish, "another")
    with pytest.raises(LockedError, match=r"since noon \(Slurm job 7\)$"):
        check_free(tmp_path / "LOCK")


def test_a_step_in_a_hidden_partition_holds_its_lock(tmp_path, in_job, slurm_says) -> None:
    """As Slurm 22.05 says it to who is not root: the job, and of its steps none but to who asks for all."""
    leave(tmp_path / "LOCK", ELSEWHERE)
    slurm_says(squeue='test $2 != --steps && echo 7 RUNNING 0\ntest "$2 $3" = "--steps --all" && echo 7.0\nexit 0')
    in_job("8")
    with pytest.raises(LockedError, match=r"since noon \(Slurm job 7\)$"):
        check_free(tmp_path / "LOCK")


def test_what_is_no_utf_8_is_read(slurm_says) -> None:
    """A path, or the comment of another job."""
    slurm_says(scontrol="printf 'JobState=RUNNING Comment=caf\\351 Restarts=0'")
    done = answer("scontrol", "show", "job", "7")
    assert done is not None
    assert done.stdout.split()[::2] == ["JobState=RUNNING", "Restarts=0"]


def test_what_slurm_denies_of_others_proves_nothing(tmp_path, in_job, slurm_says) -> None:
    leave(tmp_path / "LOCK", replace(ELSEWHERE, user=os.getuid() + 1))
    slurm_says(squeue=FORGOTTEN)
    in_job("8")
    with pytest.raises(LockedError, match="nothing here says whether it lives"):
        check_free(tmp_path / "LOCK")


def test_another_cluster_has_jobs_of_the_same_numbers(tmp_path, in_job, slurm_says) -> None:
    leave(tmp_path / "LOCK", ELSEWHERE)
    slurm_says(squeue=FORGOTTEN)
    in_job("7", restart=1, cluster="d")
    with pytest.raises(LockedError):
        check_free(tmp_path / "LOCK")


@pytest.mark.parametrize(
    ("mine", "free"),
    [({"restart": 1}, True), ({"step": 0}, False), ({"step": 1}, False)],  # Slurm says nothing of the steps
)
def test_of_one_job_the_earlier_start_is_dead_and_the_same_one_lives(
    tmp_path, in_job, slurm_says, mine, free
) -> None:
    leave(tmp_path / "LOCK", ELSEWHERE)
    in_job("7", **mine)
    if free:
        check_free(tmp_path / "LOCK")
    else:
        with pytest.raises(LockedError):
            check_free(tmp_path / "LOCK")
    assert other_at_work(tmp_path / "LOCK") is None  # the last word of the same job


def test_a_later_start_of_one_job_is_at_work_as_another(tmp_path, in_job, slurm_says) -> None:
    """An earlier one that ends on a node that Slurm had lost has no say any more."""
    leave(tmp_path / "LOCK", replace(ELSEWHERE, restart=1))
    in_job("7", step=None)
    slurm_says(squeue="test $2 = --steps && echo 7.0 || echo 7 RUNNING 1")
    found = other_at_work(tmp_path / "LOCK")
    assert found is not None
    assert found.restart == 1
    slurm_says(squeue="test $2 = --steps && echo 7.1 || echo 7 RUNNING 1")
    assert other_at_work(tmp_path / "LOCK") is None


def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path) -> None:
    for left in (b"", b"{", b"\0\xff\xfe"):
        (tmp_path / "LOCK").write_bytes(left)
        with locked(tmp_path / "LOCK"):
            pass


def test_a_lock_taken_while_another_was_found_dead_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes find the same dead holder, one is faster; the other must not remove its fresh lock."""
    lock = tmp_path / "LOCK"
    leave(lock, replace(this_process(), pid=4194000))
    fast = json.dumps(asdict(this_process("fast")))

    def slow(path: Path) -> None:
        monkeypatch.undo()
        path.write_text(fast)

    monkeypatch.setattr(lock_module, "check_free", slow)
    with pytest.raises(LockedError), locked(lock):
        pass
    assert lock.read_text() == fast
    assert os.listdir(tmp_path) == ["LOCK"]


def test_a_lock_whose_first_answer_was_lost_is_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of NFS that is asked a second time finds what it made the first time."""
    link = os.link

    def asked_twice(*paths: Path) -> None:
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", asked_twice)
    for left in (None, replace(this_process(), pid=4194000)):
        if left:
            leave(tmp_path / "LOCK", left)
        with locked(tmp_path / "LOCK"):
            assert os.listdir(tmp_path) == ["LOCK"]
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [("ENOSPC", OSError), ("ESTALE", OSError), ("EROFS", InputError), ("EOPNOTSUPP", InputError)],
)
def test_what_another_start_may_mend_is_no_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, kind: type
) -> None:
    """Wrong input is given up for good."""

    def refused(*_: object) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises((OSError, InputError)) as error, locked(tmp_path / "LOCK"):
        pass
    assert isinstance(error.value, kind)
    assert os.listdir(tmp_path) == []


def test_those_who_wait_for_a_lock_get_it_in_turn(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with locked_in_turn(tmp_path / "LOCK", 60):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 8
    with locked(tmp_path / "LOCK"), pytest.raises(LockedError), locked_in_turn(tmp_path / "LOCK", 0.1):
        pass
