"""A run on a server of MLflow, or in its store of files or SQLite."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kapdist.records.tracked import Tracked
from kapdist.run.lock import locked_in_turn
from kapdist.run.paths import RunDir
from kapdist.tracking.told import Results, Row, about, group_of

if TYPE_CHECKING:  # an extra
    from mlflow.entities import Experiment

ID = "kapdist.id"  # the tag that tells the run
STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
SQLITE = "sqlite:///"


class MlflowRun:
    """The run with a tag; the store itself says what it has, so that nothing is told it twice."""

    def __init__(self, run: RunDir, tracked: Tracked) -> None:
        waits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": math.ceil(tracked.seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": 1}
        said = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
        for key, value in (waits | said).items():
            os.environ.setdefault(key, str(value))
        from mlflow import MlflowClient  # an extra: only those who ask for it need it
        from mlflow.entities import Metric, Param

        self.metric = Metric
        beside = (run.root.resolve().parent / "mlruns").as_uri()
        uri = tracked.store or os.environ.get("MLFLOW_TRACKING_URI") or beside
        self.client = MlflowClient(uri)
        experiment = self.experiment(tracked.project, uri, tracked.seconds)
        found = self.client.search_runs([experiment], f"tags.`{ID}` = '{tracked.id}'")
        tags = tags_of(run, tracked)
        this = found[0] if found else self.client.create_run(experiment, tags=tags, run_name=run.name)
        self.id = this.info.run_id
        self.address = f"experiment {tracked.project}, run {self.id}"  # the store's may have a password in it
        new = [Param(key, str(value)) for key, value in about(run).items() if key not in this.data.params]
        self.client.log_batch(self.id, params=new)  # what it has it never changes
        self.client.update_run(self.id, status="RUNNING")
        self.steps = {key: self.last_step(key) for key in this.data.metrics}

    def experiment(self, name: str, uri: str, seconds: float) -> str:
        """Return the number of the experiment, which another run may make at the same time."""
        look = self.client.get_experiment_by_name
        found = look(name)
        if found is None:
            with alone_in(uri, seconds):
                found = look(name) or self.created(name, uri)
        return str(found.experiment_id)

    def created(self, name: str, uri: str) -> Experiment:
        """Make an experiment; a database has no place of its own for files, so they go beside it."""
        from mlflow.exceptions import MlflowException

        beside = str(Path(uri.removeprefix(SQLITE)).resolve().parent / "mlruns") if uri.startswith(SQLITE) else None
        try:
            return self.client.get_experiment(self.client.create_experiment(name, artifact_location=beside))
        except MlflowException:  # a server takes a name once
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found

    def last_step(self, key: str) -> int:
        return max(metric.step for metric in self.client.get_metric_history(self.id, key))

    def log(self, rows: Sequence[Row]) -> None:
        new = [
            self.metric(named(key), value, int(row.time * 1000), row.step)
            for row in rows
            for key, value in row.values.items()
            if row.step > self.steps.get(named(key), -1)
        ]
        self.client.log_batch(self.id, metrics=new)
        self.steps |= {metric.key: metric.step for metric in new}

    def keep(self, results: Results) -> None:
        have = self.client.get_run(self.id).data
        now = int(time.time() * 1000)
        changed = [
            (named(key), value) for key, value in results.numbers.items() if have.metrics.get(named(key)) != value
        ]
        self.client.log_batch(self.id, metrics=[self.metric(key, value, now, 0) for key, value in changed])
        for key, word in results.words.items():
            self.client.set_tag(self.id, named(key), word)
        for kind, name, path in ((kind, *item) for kind, files in results.files.items() for item in files.items()):
            self.client.log_artifact(self.id, str(path), str(PurePosixPath(kind, name).parent))

    def end(self, how: str) -> None:
        self.client.set_terminated(self.id, STATUS[how])


@contextlib.contextmanager
def alone_in(uri: str, seconds: float) -> Iterator[None]:
    """Keep other runs out of a store of files, where two would make two experiments of one name."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    lock = Path(local_file_uri_to_path(uri)) / ".kapdist-lock" if is_local_uri(uri) else None
    with locked_in_turn(lock, seconds) if lock else contextlib.nullcontext():
        yield


def tags_of(run: RunDir, tracked: Tracked) -> dict[str, str]:
    group = group_of(run)
    return {ID: tracked.id} | (dict(zip(("study", "setting"), group, strict=True)) if group else {})


def named(key: str) -> str:
    """Return a name with what MLflow takes in none written as _."""
    return re.sub(r"[^\w.:/ -]", "_", key)
