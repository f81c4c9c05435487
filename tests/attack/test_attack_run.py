"""`attack run`: shards in processes, one failing, one too slow, one ended; and the example from outside."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from processes import WarmProcess, warm_python

import kapdist.attack.units as units
from kapdist import cli
from kapdist.attack.classifier import check_classifier
from kapdist.attack.merge import merge_chunks
from kapdist.attack.plan import plan_attack
from kapdist.attack.run import run_attack
from kapdist.attack.shard import run_shard
from kapdist.errors import InputError
from kapdist.models.factory import call_factory
from kapdist.run.asked import STARTER, started_here
from kapdist.run.paths import AttackDir

World = Any


@pytest.fixture
def children(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose shards see the images in processes of their own, too."""
    monkeypatch.setattr(
        units, "shard_command", lambda work, *words: world.child_command(work.directory.root, *words)
    )
    return world


def test_two_processes_give_the_records_of_one_shard(children: World, capfd: pytest.CaptureFixture) -> None:
    summary = run_attack(children.run, children.config(num_shards=2, num_images=12))
    attack = AttackDir(children.run / "attacks" / "aa")
    assert summary.num_images == 12
    assert "3/3 chunks" in capfd.readouterr().err
    assert all("shard" in attack.shard_log(shard).read_text() for shard in (0, 1))
    assert not attack.lock.exists()
    config = children.config(name="alone", num_images=12)
    plan = plan_attack(children.run, config)
    alone = AttackDir(children.run / "attacks" / "alone")
    run_shard(alone.root, 0, 1)
    merge_chunks(alone, plan)
    tables = [pl.read_parquet(one.records) for one in (attack, alone)]
    first, second = (table.drop(pl.selectors.contains("seconds")) for table in tables)
    assert first.equals(second)


def test_shards_that_have_no_chunk_are_said_to(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("kapdist.attack.run.do_all", lambda *_, **__: None)
    monkeypatch.setattr("kapdist.attack.run.merge_chunks", lambda *_: None)
    idle = "note: 3 of 4 processes (num_shards) have a chunk to do; a chunk_size below 4 makes more chunks"
    for num_shards, here, said in ((3, False, []), (4, False, [idle]), (4, True, [])):
        run_attack(world.run, world.config(num_shards=num_shards, num_images=12, chunk_size=4), here=here)
        assert [line for line in capsys.readouterr().err.splitlines() if "num_shards" in line] == said


def test_a_shard_that_finds_wrong_input_ends_the_attack_with_its_line(children: World) -> None:
    labels = children.labels.clone()
    labels[3] = 5
    torch.save((children.images, labels), children.folder / "images.pt")
    with pytest.raises(InputError, match=r"shard-0.log: .* expected labels of the model's 5 classes") as caught:
        run_attack(children.run, children.config())
    assert "\n" not in str(caught.value)


def test_a_shard_that_fails_shows_its_last_lines_and_ends_the_others(
    children: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen] = []
    scripts = ["import sys; print('a'); sys.exit('boom on the way')", "import time; time.sleep(60)"]
    monkeypatch.setattr(units, "shard_command", lambda work, shard, n: [sys.executable, "-c", scripts[shard]])
    real = subprocess.Popen
    monkeypatch.setattr(units.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    with pytest.raises(RuntimeError, match=r"(?s)shard 0 ended with exit code 1; .*shard-0.log.*boom on the way"):
        run_attack(children.run, children.config(num_shards=2))
    assert [child.poll() for child in started] == [1, -signal.SIGTERM]


def test_a_shard_that_dies_of_a_signal_is_said_to(children: World, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os, sys
from pathlib import Path
from kapdist.run.ends import fatal_file, stacks_at_death
with stacks_at_death(fatal_file(Path(sys.argv[1]), 0)):
    os.kill(os.getpid(), int(sys.argv[2]))
"""
    for number, stacks in ((signal.SIGSEGV, r" \(stacks in .*fatal-0\.txt\)"), (signal.SIGKILL, "")):
        words = [str(AttackDir(children.run / "attacks" / "aa").logs), str(int(number))]
        command = [sys.executable, "-c", script, *words]
        monkeypatch.setattr(units, "shard_command", lambda *_, command=command: command)
        with pytest.raises(RuntimeError, match=f"shard 0 died of {number.name}{stacks}; the last lines of"):
            run_attack(children.run, children.config())


def test_an_attack_that_takes_too_long_is_ended_and_says_what_is_kept(
    children: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(units, "shard_command", lambda work, shard, n: command)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="timeout_minutes are over; 0 chunks are done and kept"):
        run_attack(children.run, children.config(timeout_minutes=0.01))
    assert time.monotonic() - began < 30


LOUD = """
import ctypes, os, subprocess
import factory
print("imported")

def build():
    print("a word of Python's")
    ctypes.CDLL(None).puts(b"a word of C's, which stays in its buffer")
    os.write(1, b"a word past both\\n")
    subprocess.run(["echo", "a word of a child's"], check=True)
    return factory.build()
"""


def test_standard_output_is_the_result_alone_though_a_factory_prints(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (world.folder / "loud.py").write_text(LOUD)
    words = ["model.factory=loud.py:build", "data=images.beton", "num_images=4", "num_classes=5", "chunk_size=4"]
    words += ["eps=0.02", "version=custom", "attacks=[apgd-ce]", "screen=0", "threads=1", "device=cpu"]
    (world.folder / "aa.yaml").write_text("name: aa\n")

    def printed(*command: str) -> str:
        """Return what is on standard output; the factory's words are on the other."""
        monkeypatch.setattr(sys, "argv", ["kapdist", "attack", *command])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        assert caught.value.code == 0, err
        if command[0] != "merge":  # which needs no model
            for said in (
                "imported",
                "a word of Python's",
                "a word of C's",
                "a word past both",
                "a word of a child's",
            ):
                assert said in err
        return out

    assert json.loads(printed("plan", "run", "aa.yaml", *words))["num_images"] == 4
    assert printed("shard", "run/attacks/aa") == ""
    assert json.loads(printed("merge", "run/attacks/aa"))["num_images"] == 4


def in_a_pipe(words: str, folder: Path) -> subprocess.CompletedProcess:
    """A shell's command with `kapdist` as this interpreter starts it."""
    kapdist = f"{shlex.quote(sys.executable)} -m kapdist.cli"
    script = f"set -o pipefail; {words.replace('kapdist', kapdist)}"
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_result_that_finds_no_room_is_said_and_one_that_nobody_reads_is_not(tmp_path: Path) -> None:
    full = in_a_pipe("kapdist --help > /dev/full", tmp_path)
    said = "kapdist: standard output: expected a place that can be written, found No space left on device\n"
    assert (full.returncode, full.stderr) == (2, said)
    unread = in_a_pipe("kapdist --help | true", tmp_path)
    assert unread.returncode in (0, 1)  # 0 where the reader was slower to go
    assert unread.stderr == ""


PARENT = """
import sys
from pathlib import Path
import kapdist.attack.units as units
from kapdist.attack.shard import Chunks
from kapdist.records.attack_plan import read_plan
from kapdist.run.asked import ended_by_sigterm
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir

child = "import sys, time; from kapdist.run.asked import end_with_parent; end_with_parent();"
child += "open(sys.argv[1], 'w').write('up'); time.sleep(600)"
units.shard_command = lambda work, shard, n: [sys.executable, "-c", child, f"up-{shard}"]
attack = AttackDir(Path(sys.argv[1]))
with locked(attack.lock), ended_by_sigterm():
    units.do_all(Chunks(attack, read_plan(attack)), 2, 60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ending_the_attack_ends_its_shards(world: World, number: signal.Signals) -> None:
    plan_attack(world.run, world.config())
    attack = AttackDir(world.run / "attacks" / "aa")
    (world.folder / "parent.py").write_text(PARENT)
    parent = WarmProcess(["parent.py", str(attack.root)], world.folder, dict(os.environ))
    deadline = time.monotonic() + 240
    while len(list(world.folder.glob("up-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    children = children_of(parent.pid)
    assert len(children) == 2
    parent.send_signal(number)
    assert parent.wait(240) != 0
    while any(is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_alive(child) for child in children)
    assert attack.lock.exists() == (number == signal.SIGKILL)


@pytest.mark.parametrize("module", ["attack", "certify", "corruptions", "study.task"])
def test_a_child_whose_parent_goes_while_it_starts_goes_too(module: str) -> None:
    """Torch takes seconds to load."""
    program = f"""
import runpy, sys
import kapdist.run.asked as asked
asked.end_with_parent = lambda: sys.exit("torch" in sys.modules)
runpy.run_module("kapdist.{module}", run_name="__main__")
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=240).returncode == 0


def test_a_child_whose_parent_went_before_it_could_say_so_goes_too() -> None:
    """Killed while the child's interpreter started: the kernel tells of no death before it is asked to."""
    program = "from kapdist.run.asked import end_with_parent; end_with_parent(); print('stays')"
    gone = subprocess.Popen(["true"])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # its number is nobody else's yet
    stayed, left = (0, "stays\n"), (128 + signal.SIGTERM, "")
    for variables, end in (({}, stayed), (started_here(), stayed), ({STARTER: str(gone.pid)}, left)):
        command, environment = [sys.executable, "-c", program], os.environ | variables
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
        assert (done.returncode, done.stdout) == end
    gone.wait()


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_module_gives_exit_code_2_and_one_line_for_wrong_input(tmp_path: Path) -> None:
    words = [str(warm_python()), "-m", "kapdist.attack", str(tmp_path), "0", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 2
    assert re.fullmatch(r".*: expected an attack directory \(.*\), found no plan.json\n", done.stderr)


def test_the_example_is_a_classifier_that_can_be_attacked() -> None:
    example = Path(__file__).parents[2] / "examples" / "external_model.py"
    model = call_factory(f"{example}:build").eval()
    check_classifier(model, "the example", 10, 32, gradients=True)
