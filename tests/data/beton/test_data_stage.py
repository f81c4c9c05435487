"""Staging: one whole copy, whoever asks, whatever ends them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from kapdist.data.beton import stage as staging
from kapdist.data.beton.layout import BetonInfo, open_beton
from kapdist.data.beton.stage import EndedError, Staging, staged
from kapdist.errors import InputError


def run(wanted: list[Path], folder: Path) -> list[Path]:
    thread = Staging(wanted, folder)
    thread.start()
    thread.join()
    return thread.result()


def test_it_is_copied_once_and_used_again(fashion: BetonInfo, copied: Path, tmp_path: Path) -> None:
    (first,) = run([fashion.path], tmp_path / "node")
    assert first.parent == tmp_path / "node"
    assert first.read_bytes() == fashion.path.read_bytes()
    assert open_beton(first).fingerprint == fashion.fingerprint
    begun = first.stat().st_mtime_ns
    # The same images elsewhere, under another name, are the same bytes; so is a second job's wish.
    again, moved = run([fashion.path, copied], tmp_path / "node")
    assert again == first
    assert first.stat().st_mtime_ns == begun
    assert moved.read_bytes() == first.read_bytes()
    assert not [path for path in first.parent.iterdir() if path.suffix in (".partial", ".lock", ".tmp")]


KILLED = """
import os, signal, sys
from pathlib import Path
from kapdist.data.beton import stage
stage.BLOCK = 1 << 16
turns = 0
def ended():
    global turns
    turns += 1
    if turns > 3:
        os.kill(os.getpid(), signal.SIGKILL)
stage.staged(Path(sys.argv[1]), Path(sys.argv[2]), ended)
"""


def test_what_a_killed_copier_left_is_never_used(fashion: BetonInfo, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(fashion.path), str(tmp_path)], timeout=240)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name.rpartition(".")[2] for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert left == ["lock", "partial"]
    copy = staged(fashion.path, tmp_path)
    assert copy.read_bytes() == fashion.path.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {copy.name, f"{copy.name}.json"}


def test_a_copy_that_was_cut_short_is_made_again(fashion: BetonInfo, tmp_path: Path) -> None:
    copy = staged(fashion.path, tmp_path)
    os.truncate(copy, 1000)
    assert staged(fashion.path, tmp_path) == copy
    assert copy.read_bytes() == fashion.path.read_bytes()


def test_asked_to_end_it_leaves_nothing(fashion: BetonInfo, tmp_path: Path) -> None:
    with pytest.raises(EndedError):
        staged(fashion.path, tmp_path, lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_others_wait_for_the_one_that_copies(fashion: BetonInfo, tmp_path: Path, monkeypatch) -> None:
    made = []
    copied = staging.copied

    def slowly(*words):
        made.append(words[0])
        time.sleep(0.5)
        return copied(*words)

    monkeypatch.setattr(staging, "copied", slowly)
    threads = [Staging([fashion.path], tmp_path) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (place,) = {thread.result()[0] for thread in threads}
    assert place.read_bytes() == fashion.path.read_bytes()
    assert made == [fashion.path]


def test_a_copier_that_hangs_is_not_waited_for(fashion: BetonInfo, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(staging, "PATIENCE_SECONDS", 0.3)
    lock = tmp_path / f"{staged(fashion.path, tmp_path / 'a').name}.lock"
    with staging.locked(lock):  # and nothing grows
        assert staged(fashion.path, tmp_path) == fashion.path
    assert "is read where it is" in caplog.text


def test_a_copy_that_is_done_between_two_looks_at_it_is_no_error(tmp_path: Path, monkeypatch) -> None:
    """It has another name by then; whoever waited for it would have ended with the training."""
    monkeypatch.setattr(Path, "exists", lambda path: True)  # as it was just now
    assert not staging.Patience(tmp_path / "renamed.partial").over()


def test_without_room_it_is_read_where_it_is(fashion: BetonInfo, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free=1000))
    assert staged(fashion.path, tmp_path) == fashion.path
    assert f"no room for {fashion.path}" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".lock", "", ".json"])
def test_what_others_left_and_nobody_here_may_remove_costs_the_copy_alone(
    fashion: BetonInfo, tmp_path: Path, monkeypatch, caplog, suffix: str
) -> None:
    """In a sticky folder such as /tmp a lock or a copy of another user is what a folder in its place is here."""
    name = staged(fashion.path, tmp_path / "elsewhere").name
    (tmp_path / "node" / f"{name}{suffix}").mkdir(parents=True)
    monkeypatch.setattr(staging, "copied", lambda *words: pytest.fail("copied, and for nothing"))
    assert run([fashion.path], tmp_path / "node") == [fashion.path]
    assert "it is read where it is" in caplog.text


def test_a_damaged_copy_s_room_is_there_for_the_next_one(fashion: BetonInfo, tmp_path: Path, monkeypatch) -> None:
    copy = staged(fashion.path, tmp_path)
    os.truncate(copy, 1000)
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=1000 if copy.exists() else 1 << 40))
    assert staged(fashion.path, tmp_path) == copy


def test_bytes_that_are_not_the_manifest_s_are_refused(copied: Path, tmp_path: Path) -> None:
    content = bytearray(copied.read_bytes())
    content[-200_000] ^= 1
    copied.write_bytes(content)
    with pytest.raises(InputError, match=r"copy\.beton: expected sha256 .* \(its manifest\), found"):
        run([copied], tmp_path / "node")
    assert list((tmp_path / "node").iterdir()) == []


def test_folders_are_those_of_the_environment(fashion: BetonInfo, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    (copy,) = run([fashion.path], Path("$NODE_DISK/betons"))
    assert copy.parent == tmp_path / "disk" / "betons"
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(InputError, match=r"data\.stage = \$NODE_DISK/betons: expected variables that"):
        Staging([fashion.path], Path("$NODE_DISK/betons"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder that can be made"):
        Staging([fashion.path], tmp_path / "file" / "below")
