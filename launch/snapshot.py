"""A copy of the code for one job, so that later edits do not change what is queued."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from kapdist.environment import git_state
from kapdist.errors import InputError
from kapdist.run.files import last_number, write_atomic, write_json

ROOT = Path(__file__).resolve().parents[1]
LARGEST_BYTES = 32 * 2**20  # of one file: nobody's code, somebody's data that git does not ignore


def snapshot(folder: Path, runs_dir: Path) -> Path:
    """Copy tracked, modified and untracked files that git does not ignore to `folder`/<n>; return it.

    Beside it `<n>.diff` holds the difference to the commit, and in it GIT.json names the commit, which is what
    environment.json of the job will say.

    Args:
        folder: where the snapshots of a run are.
        runs_dir: left out, whether git ignores it or not.
    """
    number = 1 + last_number(folder)
    target = folder / str(number)
    aside = folder / f".{number}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    for name in code_files():
        source = ROOT / name
        if runs_dir.resolve() in source.resolve().parents or not source.is_file():
            continue
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed: an editor's own, of a moment
            shutil.copy2(source, aside / name)
    state = git_state()
    write_json(aside / "GIT.json", state)
    write_atomic(folder / f"{number}.diff", state["diff"] if state else "")
    aside.rename(target)
    return target


def code_files() -> list[str]:
    """Return the files that make up the code, relative to the checkout; of an installed package its modules.

    Raises:
        InputError: one of them is too large to be code.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
    )
    if listed.returncode == 0 and (ROOT / ".git").exists():
        names = [name for name in os.fsdecode(listed.stdout).split("\0") if name]
    else:
        folders = (ROOT / "kapdist", ROOT / "launch")
        paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
        names = [str(path.relative_to(ROOT)) for path in paths]
    for name in names:
        path, size = ROOT / name, 0
        with contextlib.suppress(OSError):
            size = path.stat().st_size
        if size > LARGEST_BYTES:
            found = f"{size / 2**20:.0f} MiB (ignore it in .gitignore, or move it)"
            raise InputError(path, f"code files of at most {LARGEST_BYTES >> 20} MiB", found)
    return names


def describe(folder: Path) -> str:
    """Say in a line what a snapshot would hold."""
    state = git_state()
    commit = state["commit"][:12] if state else "no commit"
    return f"{folder}: {len(code_files())} files at {commit}{', modified' if state and state['diff'] else ''}"
