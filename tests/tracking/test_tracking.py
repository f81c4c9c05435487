"""What Weights & Biases and MLflow are told, read back from their stores of files and SQLite."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb_store import read_offline

from kapdist.config import Config
from kapdist.config.file import dump_config
from kapdist.records.tracked import read_tracked
from kapdist.run.files import to_json
from kapdist.run.paths import RunDir
from kapdist.tracking.__main__ import serve
from kapdist.tracking.trackers import begin

Said = list[tuple[int, str]]


class Work:
    """A starter whose work ends after some looks; before each, something happens in the run's directory."""

    def __init__(self, *events: Callable[[], object], how: str = "done") -> None:
        self.events, self.how = list(events), how

    def over(self, seconds: float) -> str | None:
        if not self.events:
            return self.how
        self.events.pop(0)()
        return None


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's says where to."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)  # what a tracker sets is taken back after the test


@pytest.fixture
def run(tmp_path: Path, alone: None) -> RunDir:
    """A run of a study of which nothing but the config is there yet."""
    study = tmp_path / "wide"
    run = RunDir(study / "runs" / "kap_seed3")
    run.checkpoints.mkdir(parents=True)
    (study / "study.json").write_text("{}")
    data = {"train": "train.beton", "validation": "test.beton"}
    train = {"wandb_project": "kap", "wandb_mode": "offline", "mlflow_experiment": "kap", "tracker_seconds": 300}
    run.config.write_text(dump_config(Config(name="kap_seed3", seed=3, data=data, train=train)))  # type: ignore[arg-type]
    return run


def continued(run: RunDir, step: int, **train: Any) -> None:
    """Let a training go on after a step, as `followed` and `MetricsLog` begin it."""
    from kapdist.train.metrics import forget_after

    begin(run, run.read_config().train.model_copy(update=train), step)
    forget_after(run, step)


def trained(run: RunDir, steps: range, attempt: float) -> Callable[[], None]:
    """Write the lines of some steps; their values tell the attempt."""

    def write() -> None:
        with run.metrics.open("a") as file:
            for step in steps:
                train = {"kind": "train", "step": step, "loss": attempt + 1 / step, "lr": 0.1, "data_wait": None}
                file.write(to_json(train | {"time": 1e9 + step}) + "\n")
                if step % 50 == 0:
                    found = {"kind": "evaluate", "step": step, "top1": step / 1000, "num_images": 10}
                    robust = {"kind": "robust", "step": step, "accuracy": step / 2000, "eps": 0.1}
                    file.writelines(to_json(line | {"time": 1e9 + step}) + "\n" for line in (found, robust))

    return write


def saved(run: RunDir, step: int) -> Callable[[], None]:
    return run.checkpoint(step).mkdir


def ended(run: RunDir) -> Callable[[], None]:
    def end() -> None:
        with run.metrics.open("a") as file:
            file.write(to_json({"kind": "end", "step": 200, "seconds": 9.5, "time": 1e9}) + "\n")
        run.done.write_text("{}")

    return end


def truth(run: RunDir) -> dict[int, dict[str, float]]:
    """{step: numbers} of metrics.jsonl as it is in the end, written from what the file is."""
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, run.metrics.read_text().splitlines()):
        for key, value in line.items():
            if type(value) is float and key != "time":
                name = f"{line['kind']}/{key}"
                assert name not in found.setdefault(line["step"], {})
                found[line["step"]][name] = value
    return found


def killed_and_continued(run: RunDir, name: str) -> Said:
    """Tell a tracker of a run that is killed at step 130, goes on from 100, is stopped at 150, and then ends."""
    said: Said = []
    say = lambda level, text: said.append((level, text))  # noqa: E731
    continued(run, 0)
    looks = trained(run, range(10, 60, 10), 1), saved(run, 50), trained(run, range(60, 101, 10), 1)
    late = trained(run, range(110, 131, 10), 1)
    assert serve(run, name, Work(*looks, saved(run, 100), late, how="stopped"), say)
    continued(run, 100)
    assert serve(run, name, Work(trained(run, range(110, 151, 10), 2), saved(run, 150), how="stopped"), say)
    continued(run, 150)
    assert serve(run, name, Work(trained(run, range(160, 201, 10), 3), ended(run)), say)
    return said


def test_a_killed_run_is_one_offline_run_of_wandb_with_each_step_once(run: RunDir) -> None:
    said = killed_and_continued(run, "wandb")
    found, tracked = read_offline(run.root), read_tracked(run.tracked("wandb"))
    assert found.series == truth(run)
    assert sorted(found.series) == list(range(10, 201, 10))
    assert found.series[110]["train/loss"] == 2 + 1 / 110
    assert found.series[150] == {"train/loss": 2 + 1 / 150, "train/lr": 0.1} | {
        "evaluate/top1": 0.15,
        "robust/accuracy": 0.075,
        "robust/eps": 0.1,
    }
    assert (found.run.run_id, found.run.project, found.run.display_name) == (tracked.id, "kap", "kap_seed3")
    assert (found.run.run_group, list(found.run.tags)) == ("wide", ["kap"])
    assert found.config["train.wandb_project"] == "kap"
    assert found.config["seed"] == 3
    assert found.exit_code == 0
    assert {level for level, _ in said} == {logging.INFO}
    assert tracked.step == 200


def test_mlflow_s_stores_have_each_step_of_a_killed_run_once(run: RunDir, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    said = killed_and_continued(run, "mlflow")
    files = MlflowClient((run.root.parent / "mlruns").as_uri())
    assert_told(files, run)
    continued(run, 200, mlflow_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")  # all of it once more, elsewhere
    assert serve(run, "mlflow", Work(), lambda level, text: said.append((level, text)))
    database = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert_told(database, run)
    assert (tmp_path / "mlruns").is_dir()
    assert {level for level, _ in said} == {logging.INFO}


def assert_told(client: Any, run: RunDir) -> None:
    experiment = client.get_experiment_by_name("kap").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "kap_seed3"
    assert (found.data.tags["study"], found.data.tags["setting"]) == ("wide", "kap")
    assert found.data.params["seed"] == "3"
    assert found.data.params["train.epochs"] == str(run.read_config().train.epochs)
    series: dict[int, dict[str, float]] = {}
    for key in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, key):
            assert key not in series.setdefault(metric.step, {})
            series[metric.step][key] = metric.value
    assert series == truth(run)
    names = {file.path for file in client.list_artifacts(found.info.run_id, "run")}
    assert names == {"run/config.yaml"}


@pytest.mark.parametrize("name", ["wandb"])
def test_what_comes_after_the_training_is_told_too(run: RunDir, name: str, tmp_path: Path) -> None:
    continued(run, 0)
    trained(run, range(10, 201, 10), 1)()
    ended(run)()
    assert serve(run, name, Work(), print)
    share = {"value": 0.4, "low": 0.3, "high": 0.5}
    attack = run.attack("aa")
    files = {
        attack.summary: {
            "robust_accuracy": share,
            "seconds": 3.0,
            "sweep": [{"eps": 8 / 255, "robust_accuracy": share}],
        },
        attack.sanity: {"verdict": "warn", "causes": []},
        run.evaluation("test"): {"top1": 0.9, "num_images": 10},
        attack.root / "report" / "index.html": {},
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    page = tmp_path / "compared" / "index.html"
    page.parent.mkdir()
    page.write_text("<h1>Compared</h1>")
    assert serve(run, name, Work(), print, [page])
    found = read_offline(run.root)
    assert found.series == truth(run)
    assert found.summary["attack/aa/robust_accuracy"] == 0.4
    assert found.summary["attack/aa/robust_accuracy/high"] == 0.5
    assert found.summary["attack/aa/sweep/eps-0.03137/robust_accuracy"] == 0.4
    assert found.summary["sanity/aa/verdict"] == "warn"
    assert found.summary["evaluation/test/top1"] == 0.9
    assert set(found.artifacts["run"]) == {
        "config.yaml",
        *(f"attacks/aa/{it}.json" for it in ("summary", "sanity")),
    } | {"evaluations/test.json"}
    assert set(found.artifacts["report"]) == {"report/index.html", "compared/index.html"}
