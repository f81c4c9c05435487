"""A run at Weights & Biases, or in its offline store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kapdist.records.tracked import Tracked
from kapdist.run.files import write_atomic
from kapdist.run.paths import RunDir
from kapdist.tracking.told import Results, Row, about, group_of

LAST_STEP = "last_step.txt"  # in the folder of a session


class WandbRun:
    """The run of an id, which the server continues after the last step that it has.

    An offline store is a folder for each session, and one that was killed leaves half a folder. So each is written
    from the first step on, and those before it are removed when it is closed; but what `wandb sync` has sent of
    them stays sent, and sends a later folder behind it.
    """

    def __init__(self, run: RunDir, tracked: Tracked) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # an extra: only those who ask for it need it

        study, setting = group_of(run) or (None, None)
        self.package, self.id, self.folder = wandb, tracked.id, run.root / "wandb"
        wandb.teardown(exit_code=1)  # after an error its service has the id still, and refuses it
        self.run = wandb.init(
            project=tracked.project,
            id=tracked.id,
            name=run.name,
            group=study,
            tags=[setting] if setting else None,
            dir=run.root,
            mode=tracked.store,  # type: ignore[arg-type]  # checked by the config
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=tracked.seconds),
        )
        self.address = self.run.url or str(self.own)
        self.next_step = self.run.starting_step
        if self.run.offline:
            sent = (last_step(folder) for folder in self.earlier() if is_sent(folder))
            self.next_step = 1 + max(sent, default=-1)
        self.run.config.update(about(run), allow_val_change=True)

    @property
    def own(self) -> Path:
        """The folder of this session."""
        return Path(self.run.dir).parent

    def earlier(self) -> list[Path]:
        """Return the offline folders of earlier sessions."""
        found = self.folder.glob(f"offline-run-*-{self.id}")
        return [folder for folder in found if folder.resolve() != self.own.resolve()]

    def log(self, rows: Sequence[Row]) -> None:
        new = [row for row in rows if row.step >= self.next_step]
        for row in new:
            self.run.log(row.values | {"_timestamp": row.time}, step=row.step, commit=True)
        if new:  # once they are told: what comes twice the server leaves out, what never came it cannot know
            write_atomic(self.own / LAST_STEP, str(new[-1].step))
            self.next_step = new[-1].step + 1

    def keep(self, results: Results) -> None:
        self.run.summary.update(results.numbers | results.words)
        for kind, files in results.files.items():
            artifact = self.package.Artifact(f"{kind}-{self.id}", kind)
            for name, path in files.items():
                artifact.add_file(str(path), name)
            if files:
                self.run.log_artifact(artifact)

    def end(self, how: str) -> None:
        if how == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code=int(how != "done"))
        self.package.teardown()  # a run that has finished may not be on the disk until its service has ended
        if self.run.offline:
            for folder in self.earlier():
                if not is_sent(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def is_sent(folder: Path) -> bool:
    """Return whether `wandb sync` has marked an offline folder."""
    return any(folder.glob("*.synced"))


def last_step(folder: Path) -> int:
    noted = folder / LAST_STEP
    return int(noted.read_text()) if noted.exists() else -1
