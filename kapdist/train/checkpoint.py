"""Checkpoints: written aside by all ranks, sealed by a manifest and one rename; damaged ones are passed over."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.rundir import RunDir, file_sha256, sync, write_atomic, write_json

log = logging.getLogger(__name__)

State = dict[str, Any]


def save(run: RunDir, step: int, shared: State, own: State, ranks: Ranks, keep: int) -> None:
    """Write the checkpoint of a step: `shared` by rank 0, `own` by each rank.

    Either the whole checkpoint appears under its name or none of it. The newest `keep` stay.
    """
    final = run.checkpoint(step)
    aside = final.with_name(f".{final.name}.tmp")
    if ranks.first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_payload(aside / "shared.pt", shared | {"step": step})
    ranks.barrier()
    write_payload(aside / f"rank-{ranks.rank}.pt", own)
    ranks.barrier()
    if ranks.first:
        seal(aside, final, step, ranks.world_size)
        write_atomic(run.latest, final.name + "\n")
        prune(run, keep)
    ranks.barrier()


def write_payload(path: Path, state: State) -> None:
    torch.save(state, path)
    sync(path)


def seal(aside: Path, final: Path, step: int, world_size: int) -> None:
    """Write the manifest and give the directory its name; a checkpoint of the same step is replaced."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(aside.glob("*.pt"))}
    write_json(aside / "manifest.json", {"format": 1, "step": step, "world_size": world_size, "files": files})
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    sync(final.parent)


def prune(run: RunDir, keep: int) -> None:
    for path in sealed(run)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def sealed(run: RunDir) -> list[Path]:
    """Return the checkpoint directories, newest first."""
    return sorted(run.checkpoints.glob("step-*"), reverse=True)


def newest(run: RunDir) -> Path | None:
    """Return the newest checkpoint that is whole, None when there is none at all.

    Raises:
        InputError: there are checkpoints and every one is damaged; nothing is deleted.
    """
    paths = sealed(run)
    for path in paths:
        damage = next(damages(path), None)
        if damage is None:
            return path
        log.warning("passing over checkpoint %s: %s", path, damage)
    if paths:
        raise InputError(run.checkpoints, "one whole checkpoint", f"{len(paths)} damaged (see the log)")
    return None


def damages(path: Path) -> Iterator[str]:
    """Say what is wrong with a checkpoint, cheapest checks first."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        yield f"manifest.json: {error}"
        return
    for name, expected in files.items():
        size = (path / name).stat().st_size if (path / name).exists() else None
        if size != expected["bytes"]:
            yield f"{name}: expected {expected['bytes']} bytes, found {'no file' if size is None else size}"
        elif file_sha256(path / name) != expected["sha256"]:
            yield f"{name}: its sha256 is not the manifest's"


def load(path: Path, ranks: Ranks) -> tuple[State, State | None]:
    """Return (shared state, this rank's own state); the latter is None when the number of ranks changed."""
    shared = torch.load(path / "shared.pt", map_location="cpu", weights_only=True)
    world_size = json.loads((path / "manifest.json").read_text())["world_size"]
    if world_size != ranks.world_size:
        return shared, None
    return shared, torch.load(path / f"rank-{ranks.rank}.pt", map_location="cpu", weights_only=True)
