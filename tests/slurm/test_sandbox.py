"""The sandbox is a Slurm: two nodes, accounting, preemption, arrays, a link that can be cut, and a clean end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RESTARTS = '#!/bin/sh\necho $SLURM_RESTART_COUNT >> restarts\ntest -n "$SLURM_RESTART_COUNT" || exec sleep 60\n'


@pytest.fixture
def clean(slurm):
    """The sandbox, without a job of an earlier test and with all that belongs to it running."""
    slurm.restore()
    return slurm


def test_a_step_runs_on_both_nodes_and_accounting_remembers_it(clean) -> None:
    assert clean.node_states() == {"n1": "idle", "n2": "idle"}
    shown = clean.run(["srun", "-N2", "--job-name=both", "sh", "-c", "echo $SLURMD_NODENAME"]).stdout
    assert sorted(shown.split()) == ["n1", "n2"]

    def recorded() -> bool:
        lines = clean.run(["sacct", "-nPX", "--name=both", "-o", "state,nnodes,partition"]).stdout.split()
        return lines == ["COMPLETED|2|low"]

    clean.wait_until(recorded, "sacct knows the job")


def test_no_other_database_server_removes_its_temporary_tables(slurm) -> None:
    """One that starts removes all that lie in its folder for them, whoever made these: it was /tmp for all."""
    client = ["mariadb", "--no-defaults", "-S", slurm.directory / "mariadb" / "socket", "-Ne", "SELECT @@tmpdir"]
    assert Path(slurm.run(list(map(str, client))).stdout.strip()).is_relative_to(slurm.directory)


def test_a_job_in_high_sends_one_in_low_back_to_the_queue(clean, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(RESTARTS)
    low = clean.submit("-p", "low0", "-N2", "--exclusive", "job.sh", cwd=tmp_path)
    clean.wait_for_state(low, ["RUNNING"])
    clean.wait_until((tmp_path / "restarts").exists, "the script has started")
    high = clean.submit("-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1", cwd=tmp_path)
    clean.wait_for_state(high, ["COMPLETED"])
    clean.wait_for_state(low, ["COMPLETED"])
    assert (tmp_path / "restarts").read_text() == "\n1\n"
    assert clean.job(low)["Restarts"] == "1"


def test_an_array_runs_no_more_tasks_at_a_time_than_its_throttle(clean, tmp_path: Path) -> None:
    script = "echo + >> trace; sleep 0.5; echo - >> trace"  # each line is one write at the end of the file
    array = clean.submit("--array=0-5%2", "-o", "/dev/null", "--wrap", script, cwd=tmp_path)
    trace = tmp_path / "trace"
    clean.wait_until(lambda: trace.exists() and trace.read_text().count("-") == 6, f"array {array} has ended")
    running = [trace.read_text()[: 2 * n].count("+") - trace.read_text()[: 2 * n].count("-") for n in range(1, 13)]
    assert max(running) == 2
    assert running[-1] == 0


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()"


def test_the_nodes_meet_over_a_link_that_can_be_cut(clean) -> None:
    if not clean.facts["namespaces"]:
        pytest.skip("network namespaces cannot be made here, Slurm's nodes share an address")
    port = clean.facts["ports"]["n2"]

    def reached(host: str) -> bool:
        return clean.run([sys.executable, "-c", CONNECT, host, port], check=False).returncode == 0

    assert reached("n2")
    assert not reached("n1")  # commands run on n1, and n2's daemon is not there
    assert not reached("localhost")
    clean.cut()
    assert not reached("n2")
    clean.mend()
    clean.wait_until(lambda: reached("n2"), "n1 reaches n2 again")


def test_a_node_can_be_stopped_and_started(clean) -> None:
    job = clean.submit("-w", "n2", "-o", "/dev/null", "--wrap", "sleep 1234")
    clean.wait_until(lambda: "sleep\x001234" in command_lines(), "the job has started")
    clean.stop_node("n2", hard=True)
    assert "sleep\x001234" not in command_lines()
    refused = clean.run(["srun", "-w", "n2", "--immediate=1", "true"], timeout=30, check=False)
    assert refused.returncode != 0
    clean.start_node("n2")
    clean.run(["scancel", job])
    assert clean.run(["srun", "-w", "n2", "sh", "-c", "echo $SLURMD_NODENAME"]).stdout == "n2\n"


def command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return "\n".join(found)


def test_nothing_is_left_of_a_sandbox_after_down(
    clean, sandbox_tool: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = tmp_path_factory.mktemp("second") / "s"
    kind = ["--namespaces"] if clean.facts["namespaces"] else []
    try:
        up = sandbox_tool("up", *kind, "--dir", second)
        assert up.returncode == 0, up.stdout
        assert "up already" in sandbox_tool("up", "--dir", second).stdout
        busy = type(clean)(second)
        facts = busy.facts
        job = busy.submit("-N2", "--wrap", "srun -N2 sleep 77")
        busy.wait_for_state(job, ["RUNNING"])
    finally:
        down = sandbox_tool("down", "--dir", second)
    assert down.returncode == 0, down.stdout
    assert not second.exists()
    assert not processes_that_mention(str(second))  # nor are its ports in use, unless by another sandbox by now
    for name in facts["namespaces"]:
        assert not Path("/run/netns", name).exists()
        assert not Path("/etc/netns", name).exists()
    assert sandbox_tool("status", "--dir", second).returncode == 1
    assert set(clean.node_states().values()) == {"idle"}  # the first sandbox has not noticed


def processes_that_mention(text: str) -> list[str]:
    """Command lines of processes that name something in their command or environment, this one excepted."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = [(folder / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
        except OSError:
            continue
        if any(text in word for word in words):
            found.append(words[0].replace("\0", " "))
    return found


@pytest.mark.parametrize("where", ["inside the repository", "a directory with files", "a path too long"])
def test_up_refuses_a_directory_that_is_not_its_own(where: str, sandbox_tool: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = {
        "inside the repository": Path(__file__).parent / "sandbox",
        "a directory with files": tmp_path,
        "a path too long": tmp_path / ("x" * 100),
    }
    done = sandbox_tool("up", "--dir", places[where])
    assert done.returncode == 2
    assert done.stdout.startswith("slurm sandbox: --dir: expected")
    assert (tmp_path / "file").exists()


def test_the_doctor_asks_the_controller(slurm) -> None:
    """With what the sandbox is: no tasks bound to CPUs, no cgroups, preemption that tells the job."""
    words = [sys.executable, "-m", "kapdist.cli", "doctor", "--json", "--seconds", "60"]
    said = json.loads(slurm.run(words, timeout=120, check=False).stdout)
    found = {finding["name"]: finding for finding in said["findings"]}
    version = slurm.run(["sinfo", "--version"]).stdout.split()[1]
    assert found["Slurm"]["status"] == "ok"
    assert found["Slurm"]["found"].startswith(f"{version}, cluster ")
    assert "kapdist divides" in found["Slurm's tasks"]["remedy"]
    assert found["Slurm's preemption"]["status"] == "ok"
