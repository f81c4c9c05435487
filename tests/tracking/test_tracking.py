"""What Weights & Biases and MLflow are told, read back from their stores of files and SQLite."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_store import Offline, read_offline

from kapdist.config import Config, TrainConfig
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError, TransientError
from kapdist.records.certificate import CertificateSummary, SmoothedSummary
from kapdist.records.corruptions import CorruptionSummary
from kapdist.records.evaluation import EvaluationResult
from kapdist.records.sanity import Sanity
from kapdist.records.summary import EpsSummary, Summary
from kapdist.records.tracked import read_tracked, write_tracked
from kapdist.records.worst import WorstCase
from kapdist.run.files import to_json
from kapdist.run.paths import RunDir
from kapdist.tracking import sender
from kapdist.tracking.__main__ import serve
from kapdist.tracking.command import track
from kapdist.tracking.mlflow_run import MlflowRun
from kapdist.tracking.told import LABELS, TOLD, results_of, settled_rows
from kapdist.tracking.trackers import asked, begin, check_trackers
from kapdist.train import loop
from kapdist.train.metrics import forget_after

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
    told = run.read_config().train.model_copy(update=train)
    for name in asked(told):
        begin(run, name, told, step)
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


def killed_and_continued(run: RunDir, name: str, look: Callable[[RunDir], None]) -> Said:
    """Tell a tracker of a run that is killed at step 130, goes on from 100, is stopped at 150, and then ends."""
    said: Said = []
    say = lambda level, text: said.append((level, text))  # noqa: E731
    continued(run, 0)
    looks = trained(run, range(10, 60, 10), 1), saved(run, 50), trained(run, range(60, 101, 10), 1)
    late = trained(run, range(110, 131, 10), 1)
    assert serve(run, name, Work(*looks, saved(run, 100), late, how="stopped"), say)
    continued(run, 100)
    assert serve(run, name, Work(trained(run, range(110, 151, 10), 2), saved(run, 150), how="stopped"), say)
    look(run)
    continued(run, 150)
    assert serve(run, name, Work(trained(run, range(160, 201, 10), 3), ended(run)), say)
    return said


def test_a_killed_run_is_one_offline_run_of_wandb_with_each_step_once(run: RunDir) -> None:
    said = killed_and_continued(run, "wandb", preempted_at_wandb)
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


def preempted_at_wandb(run: RunDir) -> None:
    found = read_offline(run.root)
    assert found.preempting
    assert found.exit_code == 1
    assert found.series == {step: row for step, row in truth(run).items() if step < 150}


def test_wandb_s_offline_store_goes_on_behind_what_was_sent(run: RunDir) -> None:
    continued(run, 0)
    trained(run, range(10, 101, 10), 1)()
    assert serve(run, "wandb", Work(saved(run, 100), how="stopped"), print)
    (first,) = (run.root / "wandb").glob("offline-run-*")
    (first / f"run-{first.name.rpartition('-')[2]}.wandb.synced").touch()  # as `wandb sync` does
    continued(run, 100)
    trained(run, range(110, 201, 10), 1)()
    ended(run)()
    assert serve(run, "wandb", Work(), print)
    behind = [*(run.root / "wandb").glob("offline-run-*")]
    behind.remove(first)
    (path,) = behind[0].glob("*.wandb")
    assert Offline(path).series == {step: row for step, row in truth(run).items() if step >= 100}


def test_mlflow_s_store_has_each_step_of_a_killed_run_once(run: RunDir) -> None:
    said = killed_and_continued(run, "mlflow", preempted_at_mlflow)
    assert_told(mlflow_run(run), run)
    assert {level for level, _ in said} == {logging.INFO}


def preempted_at_mlflow(run: RunDir) -> None:
    assert mlflow_run(run)[1].info.status == "KILLED"


def mlflow_run(run: RunDir) -> tuple[Any, Any]:
    """Return MLflow's client and the only run that its store beside the run has."""
    from mlflow import MlflowClient

    client = MlflowClient((run.root.parent / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("kap").experiment_id])
    return client, found


def assert_told(kept: tuple[Any, Any], run: RunDir) -> None:
    client, found = kept
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


def found_later(run: RunDir) -> None:
    """An evaluation, an attack and its sanity report, as far as they are told."""
    share = {"value": 0.4, "low": 0.3, "high": 0.5}
    attack = run.attack("aa+")
    sweep = [{"eps": 8 / 255, "robust_accuracy": share}]
    files: dict[Path, dict[str, Any]] = {
        attack.summary: {"robust_accuracy": share, "seconds": 3.0, "sweep": sweep},
        attack.sanity: {"verdict": "warn", "causes": []},
        run.evaluation("test"): {"top1": 0.9, "num_images": 10},
        attack.root / "report" / "index.html": {},
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    run.worst_case.write_text(json.dumps({"cases": [{"norm": "L2", "sweep": sweep}]}))


LATER = {
    "attack/aa+/robust_accuracy": 0.4,
    "attack/aa+/robust_accuracy_low": 0.3,
    "attack/aa+/robust_accuracy_high": 0.5,
    "attack/aa+/eps-0.03137/robust_accuracy": 0.4,
    "worst_case/norm-L2/eps-0.03137/robust_accuracy": 0.4,
    "evaluation/test/top1": 0.9,
}
FILES = {"config.yaml", "attacks/aa+/summary.json", "attacks/aa+/sanity.json", "attacks/worst_case.json"}
FILES |= {"evaluations/test.json"}


@pytest.fixture
def done(run: RunDir) -> RunDir:
    """The run when its training has ended, and nobody was told of it."""
    trained(run, range(10, 201, 10), 1)()
    ended(run)()
    return run


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "compared" / "index.html"
    page.parent.mkdir()
    page.write_text("<h1>Compared</h1>")
    return page


def test_wandb_is_told_what_comes_after_the_training(done: RunDir, page: Path) -> None:
    continued(done, 200)
    assert serve(done, "wandb", Work(), print)
    found_later(done)
    assert serve(done, "wandb", Work(), print, [page])
    found = read_offline(done.root)
    assert found.series == truth(done)
    assert {key: found.summary[key] for key in LATER} == LATER
    assert found.summary["sanity/aa+/verdict"] == "warn"
    assert set(found.artifacts["run"]) == FILES
    assert set(found.artifacts["report"]) == {"attacks/aa+/report/index.html", "compared/index.html"}


def test_mlflow_is_told_what_comes_after_the_training(done: RunDir, page: Path) -> None:
    continued(done, 200)
    assert serve(done, "mlflow", Work(), print)
    found_later(done)
    for _ in range(2):  # what has not changed is not told again
        assert serve(done, "mlflow", Work(), print, [page])
    client, found = mlflow_run(done)
    told = {key.replace("+", "_"): value for key, value in LATER.items()}
    assert {key: found.data.metrics[key] for key in told} == told
    assert len(client.get_metric_history(found.info.run_id, "evaluation/test/top1")) == 1
    assert found.data.tags["sanity/aa_/verdict"] == "warn"
    place = Path(found.info.artifact_uri.removeprefix("file://"))
    kept = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    pages = {"report/attacks/aa+/report/index.html", "report/compared/index.html"}
    assert kept == {f"run/{name}" for name in FILES} | pages


def test_two_runs_at_once_make_one_experiment(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of files does not see to it: one begins while the other is about to make it."""
    from mlflow import MlflowClient

    continued(run, 0)
    tracked, other = read_tracked(run.tracked("mlflow")), []
    second = threading.Thread(
        target=lambda: other.append(MlflowRun(run, tracked.model_copy(update={"id": "other"})))
    )
    make = MlflowClient.create_experiment

    def while_another_begins(*words: Any, **more: Any) -> str:
        monkeypatch.setattr(MlflowClient, "create_experiment", make)
        second.start()
        second.join(2)  # it waits, or is through before
        return str(make(*words, **more))

    monkeypatch.setattr(MlflowClient, "create_experiment", while_another_begins)
    first = MlflowRun(run, tracked)
    second.join()
    client = MlflowClient((run.root.parent / "mlruns").as_uri())
    assert [found.name for found in client.search_experiments()].count("kap") == 1
    assert {client.get_run(one.id).info.experiment_id for one in (first, *other)} == {
        client.get_experiment_by_name("kap").experiment_id
    }


def test_mlflow_takes_more_results_than_a_request_may_have(done: RunDir) -> None:
    continued(done, 200)
    share = {"value": 0.4, "low": 0.3, "high": 0.5}
    certified = [{"radius": number / 1000, "accuracy": share} for number in range(400)]
    summary = done.certified("c").summary
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"smoothed": [{"sigma": 0.5, "certified": certified}]}))
    said: Said = []
    assert serve(done, "mlflow", Work(), lambda level, text: said.append((level, text))), said
    assert sum(name.startswith("certificate/") for name in mlflow_run(done)[1].data.metrics) == 1200


def test_each_attack_s_page_is_kept(done: RunDir, page: Path) -> None:
    pages = [done.attack(name).root / "report" / "index.html" for name in ("a", "b")]
    for place in pages:
        place.parent.mkdir(parents=True)
        place.touch()
    assert sorted(results_of(done, [page, pages[0]]).files["report"].values()) == sorted([*pages, page])


def test_a_tracker_that_cannot_begin_keeps_no_other_from_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[AtOnce] = []
    monkeypatch.setattr(sender, "Sender", lambda run, name, pages=(): begun.append(AtOnce(run, name)) or begun[-1])
    run.tracking.mkdir()
    run.tracked("wandb").write_text("{")
    with sender.followed(run, run.read_config().train, 0, active=True):
        run.done.touch()
    assert [(one.name, one.told) for one in begun] == [("mlflow", True)]
    assert "Weights & Biases is not told of this attempt" in caplog.text


def test_the_records_have_what_is_told() -> None:
    assert {"clean_accuracy", "robust_accuracy", "sweep"} <= Summary.model_fields.keys() & TOLD
    assert {"eps", "robust_accuracy"} <= EpsSummary.model_fields.keys() & {*TOLD, *LABELS}
    assert {"norm", "sweep"} <= WorstCase.model_fields.keys() & {*TOLD, *LABELS}
    assert {"verdict"} <= Sanity.model_fields.keys() & TOLD
    assert {"top1", "top5", "loss", "ece"} <= EvaluationResult.model_fields.keys() & TOLD
    assert {"mean_corruption_accuracy", "clean_accuracy"} <= CorruptionSummary.model_fields.keys() & TOLD
    assert {"smoothed"} <= CertificateSummary.model_fields.keys() & TOLD
    assert {"sigma", "certified", "accuracy"} <= SmoothedSummary.model_fields.keys() & {*TOLD, *LABELS}


def test_nothing_that_may_be_gone_back_behind_is_told(run: RunDir) -> None:
    steps = lambda: [row.step for row in settled_rows(run)]  # noqa: E731
    assert steps() == []
    trained(run, range(10, 61, 10), 1)()
    assert steps() == []
    saved(run, 50)()
    assert steps() == [10, 20, 30, 40]
    saved(run, 80)()  # a full disk has kept back what belongs before it
    assert steps() == [10, 20, 30, 40, 50]
    with run.metrics.open("ab") as file:
        file.write(b"[1]\n" + b'{"kind": "train", "step": 70')
    assert steps() == [10, 20, 30, 40, 50]
    run.done.touch()
    assert steps() == [10, 20, 30, 40, 50, 60]


def test_a_run_that_lost_what_was_told_is_told_anew(run: RunDir) -> None:
    """Its newest checkpoints are damaged, say: what a tracker has of their steps cannot be taken back."""
    ids = []
    for step, told in ((0, 90), (100, 190), (150, -1)):
        continued(run, step)
        tracked = read_tracked(run.tracked("mlflow"))
        write_tracked(run.tracked("mlflow"), tracked.model_copy(update={"step": told}))
        ids.append(tracked.id)
    assert ids[0] == ids[1] != ids[2]


def test_a_tracker_that_is_not_there_is_named_once_and_told_when_it_is(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: Said = []
    continued(run, 0, mlflow_uri="http://127.0.0.1:9")  # nobody listens there
    there = lambda: continued(run, 100, mlflow_uri=None)  # noqa: E731
    looks = trained(run, range(10, 101, 10), 1), saved(run, 50), saved(run, 100), there
    last = trained(run, range(110, 201, 10), 1), ended(run)
    assert serve(run, "mlflow", Work(*looks, *last), lambda level, text: said.append((level, text)))
    assert [level for level, _ in said] == [logging.WARNING, logging.INFO, logging.INFO]
    assert f"`kapdist track {run.root}` tells it what it lacks" in said[0][1]
    assert said[-1][1] == "reached again"
    assert_told(mlflow_run(run), run)


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """A server that accepts and never answers; the event says that somebody came."""
    came, kept = threading.Event(), []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                kept.append(server.accept())
                came.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", came
        server.shutdown(socket.SHUT_RDWR)


def test_a_training_waits_for_no_tracker(tiny_config: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first attempt has a tracker that never answers, and fails; of the second one gets all."""
    words = ["train.wandb_project=kap", "train.checkpoint_every_steps=6", "train.log_every_steps=2"]
    words += [f"runs_dir={tiny_config.parent / 'runs'}"]
    run, failed, step_of = RunDir(tiny_config.parent / "runs" / "tiny"), [], loop.train_step

    with silent_server() as (address, came):

        def fails(job: Any, batches: Any, step: int, measure: bool) -> Any:
            if step == 9:  # nine steps were taken, whatever the tracker did
                assert came.wait(120)
                failed.append(time.monotonic())
                raise RuntimeError("killed")
            return step_of(job, batches, step, measure)

        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr(loop, "train_step", fails)
        with pytest.raises(RuntimeError, match="killed"):
            loop.train(load_config(Config, tiny_config, [*words, "train.tracker_seconds=2"]))
        assert time.monotonic() - failed[0] < 60  # 2, on a machine that others use too
    assert run.rank_log(1, 0).read_text().count("Weights & Biases: ") == 1
    assert f"`kapdist track {run.root}`" in run.rank_log(1, 0).read_text()

    monkeypatch.setattr(loop, "train_step", step_of)
    loop.train(load_config(Config, tiny_config, [*words, "train.wandb_mode=offline", "train.tracker_seconds=300"]))
    assert run.done.exists()
    found = read_offline(run.root)
    assert found.series == truth(run)
    assert {"train/loss", "evaluate/top1", "end/seconds"} <= set().union(*found.series.values())
    assert found.exit_code == 0


def test_only_rank_0_tells(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(sender, "Sender", lambda run, name: begun.append(name))
    with sender.followed(run, run.read_config().train, 0, active=False):
        pass
    assert begun == []
    assert not run.tracking.exists()


class AtOnce:
    """What tells a tracker, in this process."""

    title = "MLflow"
    seconds = 300.0

    def __init__(self, run: RunDir, name: str, pages: Any = ()) -> None:
        self.run, self.name, self.pages = run, name, pages

    def end(self, how: str) -> None:
        self.told = serve(self.run, self.name, Work(how=how), lambda level, text: None, self.pages)

    def wait(self, deadline: float) -> bool:
        return self.told


def test_a_run_can_be_told_later(
    done: RunDir, page: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sender, "Sender", AtOnce)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    untold = ["train.wandb_project=null", "train.mlflow_experiment=null"]
    with pytest.raises(InputError, match=r"expected train.wandb_project=PROJECT, .* found neither"):
        track(done.root, untold)
    untold = untold[:1]
    with pytest.raises(TransientError, match="not all was told"):
        track(done.root, [*untold, "train.mlflow_uri=http://127.0.0.1:9"])
    assert sender.tell([done.root]) is False  # as an attack on it would find
    for minutes in (0, math.inf, math.nan):
        with pytest.raises(InputError, match="tracker_seconds"):
            track(done.root, untold, minutes=minutes)
    with pytest.raises(InputError, match=r"absent.html: expected a report's page, found nothing"):
        track(done.root, untold, [page, page.parent / "absent.html"])
    track(done.root, untold, [page])
    assert read_tracked(done.tracked("mlflow")).seconds == 300  # as long as commands wait, not as this one did
    told = json.loads(capfd.readouterr().out)
    assert told["mlflow"]["project"] == "kap"
    client, found = mlflow_run(done)
    assert found.data.tags["kapdist.id"] == told["mlflow"]["id"]
    assert [file.path for file in client.list_artifacts(found.info.run_id, "report")] == ["report/compared"]


def test_a_package_that_is_not_there_is_named_before_anything_begins(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    trackers = ("wandb", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in trackers else found(name))
    for name, key in (("wandb", "wandb_project"), ("mlflow", "mlflow_experiment")):
        words = [f"train.{key}=kap", f"runs_dir={tiny_config.parent / 'runs'}"]
        with pytest.raises(InputError, match=rf"train.{key}: expected {name} \(pip .*kapdist\[{name}\]"):
            loop.train(load_config(Config, tiny_config, words))
    assert not (tiny_config.parent / "runs").exists()
    check_trackers(TrainConfig())
