"""A run at Weights & Biases, or in its offline store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kapdist.records.tracked import Tracked
from kapdist.run.paths import RunDir
from kapdist.tracking.told import Results, Row, about, group_of


class WandbRun:
    """The run of an id, which the server continues after the last step that it has.

    Nothing continues an offline store, and of two with one id `wandb sync` lets the later one replace the earlier:
    so each is written from the first step on, and those before it are removed when it is closed.
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
        self.run.config.update(about(run), allow_val_change=True)

    @property
    def own(self) -> Path:
        """The folder of this session."""
        return Path(self.run.dir).parent

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.step >= self.next_step:
                self.run.log(row.values | {"_timestamp": row.time}, step=row.step, commit=True)
                self.next_step = row.step + 1

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
        if self.run.offline:
            for folder in self.folder.glob(f"offline-run-*-{self.id}"):
                if folder.resolve() != self.own.resolve():
                    shutil.rmtree(folder, ignore_errors=True)
