"""A run, its attacks and all that was asked of it, written before the code was moved into rooms.

old_run.tar.xz was made of 70 test images of Fashion-MNIST by the commands of the README; nothing in it may become
unreadable, and nothing that is added up again may come out otherwise. Its noise has no average beside it.

noise_before.tar.xz has the config and the plans of a run of the same time whose noise came before its average.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig, Config, KapConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import load_config
from kapdist.corruptions.summary import write_summary
from kapdist.data.beton.layout import open_beton
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.weights import load_weights
from kapdist.records.attack_plan import read_plan
from kapdist.records.corruptions import read_corruption_summary
from kapdist.records.corruptions import read_plan as read_corruption_plan
from kapdist.records.evaluation import EvaluationResult
from kapdist.records.sanity import read_sanity
from kapdist.records.sealed import read_json, read_table
from kapdist.records.summary import read_summary
from kapdist.records.worst import read_worst_cases, write_worst_case
from kapdist.report import write_report
from kapdist.report.export.merged import read_all
from kapdist.report.reading import read_runs
from kapdist.run.paths import RunDir, as_ended
from kapdist.train.evaluate_run import evaluate_run

OLD = Path(__file__).with_name("old_run.tar.xz")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    shutil.unpack_archive(OLD, tmp_path)
    monkeypatch.chdir(tmp_path)
    return RunDir(Path("runs/old"))


def test_the_training_is_read(old: RunDir) -> None:
    config = old.load_config()
    assert (config.name, config.kap.noise_std, config.train.epochs) == ("old", 0.2, 2)
    load_weights(build_model(config.model, config.kap), as_ended(old.weights))
    (run,) = read_runs([old.root])
    assert run.status == "finished"
    assert [line["step"] for line in run.metrics.train] == [3, 6, 9, 12, 14]
    assert run.metrics.end is not None


def test_an_attack_is_merged_again_to_the_same_records_and_numbers(old: RunDir) -> None:
    attack = old.attack("a")
    records, summary = read_table(attack.records), read_summary(attack.summary)
    assert read_plan(attack).fingerprint == summary.plan_fingerprint
    again = merge(attack.root)
    assert again == summary
    assert read_table(attack.records).equals(records)


def test_the_worst_case_is_the_same(old: RunDir) -> None:
    """But for the number of images at each eps, which it did not say: there it is all of them."""
    before = read_worst_cases(old.worst_case).describe()
    for case in before["cases"]:
        for at in case["sweep"]:
            assert at["num_images"] is None
            at["num_images"] = case["num_images"]
    assert write_worst_case(old.root).describe() == before


def test_the_cells_of_corruptions_add_up_to_the_same(old: RunDir) -> None:
    directory = old.corrupted("a")
    before = read_corruption_summary(directory.summary)
    records = read_table(directory.records)
    plan = read_corruption_plan(directory)
    assert plan.fingerprint == before.plan_fingerprint
    assert before.shape is None  # which summaries did not say
    assert write_summary(directory, plan, None) == before.model_copy(update={"shape": plan.shape})
    assert read_table(directory.records).equals(records)


def test_the_sanity_report_says_the_same(old: RunDir) -> None:
    path = old.attack("a").sanity
    written = read_json(path)
    assert read_sanity(path).describe() == written


def test_an_evaluation_is_the_same(old: RunDir) -> None:
    before = read_json(old.evaluation("evaluation"))
    found = evaluate_run(old.root, load_config(EvaluationConfig, None, ["device=cpu", "threads=1", "workers=1"]))
    assert found is not None
    again = found.describe()
    other = "loss", "loss_sum", "ece", "bins", "settings"  # to the last bit on one kind of CPU alone; named anew
    assert {key: again[key] for key in before if key not in other} == {
        key: before[key] for key in before if key not in other
    }
    assert (
        EvaluationResult.model_validate(before).written
        == found.written
        == {key: value for key, value in before["settings"].items() if value is not None}
    )
    assert again["loss"] == pytest.approx(before["loss"], rel=1e-5)


def test_the_page_has_the_same_table(old: RunDir, tmp_path: Path) -> None:
    """But for the columns that it has had since."""
    page = write_report([old.root], tmp_path / "page")
    found, before = (pl.read_csv(path / "table.csv") for path in (page.parent, tmp_path))
    assert found.columns == [*before.columns, "setting", "doubt"]
    assert found.select(before.columns).equals(before)


def test_noise_alone_means_what_it_meant(old: RunDir) -> None:
    """As much noise at the same places; its draws are others, since they are counted."""
    before, quiet = read_json(old.evaluation("noisy")), read_json(old.evaluation("evaluation"))
    words = ["device=cpu", "threads=1", "workers=1", "noise=fresh", "draws=3", "name=noisy"]
    found = evaluate_run(old.root, load_config(EvaluationConfig, None, words))
    assert found is not None
    again = found.describe()
    assert [each["num_images"] for each in again["classes"]] == [each["num_images"] for each in before["classes"]]
    of_noise = abs(before["loss"] - quiet["loss"])
    assert of_noise > 1e-3, "or the noise decides nothing here"
    assert 1e-5 < abs(again["loss"] - quiet["loss"]) < 5 * of_noise


def test_a_run_of_noise_alone_goes_on_with_today_s_defaults(old: RunDir) -> None:
    """Its config.yaml says a layout, the default of its time, of an average that there is not."""
    config = old.load_config()
    assert config.kap.layout == "line"
    old.check(config.model_copy(update={"kap": KapConfig(noise_std=config.kap.noise_std)}))


def test_the_images_are_those_that_were_attacked(old: RunDir) -> None:
    """They lie beside the run; the plan names the place that they had on another machine."""
    plan = read_plan(old.attack("a"))
    assert not plan.data.path.exists()
    assert open_beton(Path("test.beton")).fingerprint == plan.data.fingerprint


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run whose noise came before its average, read-only."""
    folder = tmp_path_factory.mktemp("before")
    shutil.unpack_archive(OLD.with_name("noise_before.tar.xz"), folder)
    return RunDir(folder / "runs" / "old")


READERS = {
    "its config": lambda run: run.load_config(),
    "evaluated": lambda run: evaluate_run(run.root, load_config(EvaluationConfig, None, ["device=cpu"])),
    "attacked": lambda run: plan_attack(run.root, AttackConfig(name="new", eps=0.03)),
    "its attack gone on with": lambda run: run_shard(run.attack("a").root, 0, 1),
    "merged": lambda run: merge(run.attack("a").root),
    "corrupted": lambda run: read_corruption_plan(run.corrupted("a")),
    "exported": lambda run: read_all([run.attack("a").root]),
    "reported": lambda run: write_report([run.root], run.root / "page"),
    "gone on with": lambda run: run.check(asked_again()),
}


def asked_again() -> Config:
    data = {"train": "train.beton", "validation": "test.beton"}
    return Config.model_validate({"name": "old", "data": data, "kap": {"pool_size": 3, "noise_std": 0.2}})


@pytest.mark.parametrize("reader", READERS)
def test_noise_before_an_average_is_refused_by_its_key(before: RunDir, reader: str) -> None:
    expected = r"kap\.noise_std: expected noise that comes after the average.*, found .* 0\.2 before the average"
    with pytest.raises(InputError, match=expected):
        READERS[reader](before)
    assert not (before.root / "page").exists()


@pytest.mark.parametrize("kap", [{"pool_size": 1}, {"noise_std": 0.0}, {"norm_first": False}])
def test_what_kept_its_meaning_is_read(tmp_path: Path, kap: dict[str, object]) -> None:
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    written = {"pool_size": 3, "layout": "line", "noise_std": 0.2} | kap
    section = ", ".join(f"{key}: {str(value).lower()}" for key, value in written.items())
    run.config.write_text(f"data: {{train: train.beton, validation: test.beton}}\nkap: {{{section}}}\n")
    assert run.load_config().kap == KapConfig(**written)
