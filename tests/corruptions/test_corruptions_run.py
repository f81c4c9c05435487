"""A run under corruptions: its counts are those of a plain loop, whatever the chunks, processes and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import PIL.Image
import polars as pl
import pytest
import torch
from formats import cifar_c
from polars.testing import assert_frame_equal
from processes import warm_python

import kapdist.attack.fill as fill
import kapdist.attack.images as images_of
import kapdist.attack.units as units
from kapdist.config import AttackConfig
from kapdist.config.file import load_config
from kapdist.corruptions.corrupt import corrupt
from kapdist.corruptions.levels import KINDS
from kapdist.corruptions.plan import plan_corruptions
from kapdist.corruptions.run import run_corruptions
from kapdist.corruptions.shard import run_shard
from kapdist.corruptions.summary import csv_text
from kapdist.errors import InputError
from kapdist.models.factory import call_factory
from kapdist.models.weights import save_weights
from kapdist.records.corruptions import CorruptionSummary
from kapdist.records.sealed import read_json
from kapdist.report import write_report
from kapdist.run.paths import CorruptionsDir, RunDir

FEW = {"kinds": ["contrast", "gaussian_noise"], "severities": [1, 5], "noise_stds": [0.1]}

# A whole run, and one of its children, with images from a file in place of a beton.
CHILD = """
import sys
import torch
import kapdist.attack.images as images_of
from pathlib import Path

images, labels = torch.load("images.pt", weights_only=True)
images_of.beton_batches = lambda plan, batches: ((images[ids], labels[ids]) for ids in batches)

from kapdist.attack.units import child_main
from kapdist.corruptions.shard import Cells, run_shard
from kapdist.records.corruptions import read_plan
from kapdist.run.paths import CorruptionsDir

if sys.argv[1] == "slowly":  # and no further than half of it, until it is killed
    import time
    directory = CorruptionsDir(Path(sys.argv[2]))
    cells = Cells(directory, read_plan(directory))
    cells.do(cells.units, lambda *_: time.sleep(0.02 if len(list(directory.cells.glob("*"))) < 17 else 120))
else:
    sys.exit(child_main(run_shard, sys.argv[1:]))
"""

NOISY = """
import torch
from factory import build as plain

class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = plain()

    def forward(self, images):
        return self.network(images + 0.3 * torch.randn_like(images))

def build():
    return Noisy()
"""


def settings(world, **fields: object) -> AttackConfig:
    corruptions = FEW | fields.pop("corruptions", {})
    values = {"name": "c", "version": "standard", "attacks": (), "eps": (0.1, 0.2), "corruptions": corruptions}
    return world.config(**values | fields)


def directory(world, run: str = "run") -> CorruptionsDir:
    return RunDir(world.folder / run).corrupted("c")


def records(where: CorruptionsDir) -> pl.DataFrame:
    return pl.read_parquet(where.records, glob=False)


def test_the_counts_are_those_of_a_plain_loop(world) -> None:
    summary = run_corruptions(world.run, settings(world, seed=3))
    scope: dict = {}
    exec((world.folder / "factory.py").read_text(), scope)
    model, total = scope["build"]().eval(), len(world.images)
    pixels = (world.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for kind in summary.kinds:
        right = np.zeros(total, dtype=int)
        for cell in kind.severities:
            made = [corrupt(pixels[i], kind.kind, cell.severity, seed=3, image_id=i) for i in range(total)]
            batch = torch.from_numpy(np.stack(made) / np.float32(255)).permute(0, 3, 1, 2)
            correct = model(batch).argmax(1) == world.labels
            right += correct.numpy()
            assert cell.num_correct == int(correct.sum())
            assert cell.accuracy.low < cell.num_correct / total < cell.accuracy.high
        assert kind.mean_accuracy.value == pytest.approx(right.sum() / (2 * total))
    assert summary.num_clean_correct == int((model(world.images).argmax(1) == world.labels).sum())
    means = [kind.mean_accuracy.value for kind in summary.kinds]
    assert summary.mean_corruption_accuracy.value == pytest.approx(np.mean(means))
    assert [(kind.kind, [cell.level for cell in kind.severities]) for kind in summary.random_noise] == [
        ("random_gaussian", [0.1]),
        ("random_uniform", [0.1, 0.2]),
    ]
    where = directory(world)
    assert CorruptionSummary.model_validate_json(json.dumps(read_json(where.summary))) == summary
    assert where.table.read_text() == csv_text(summary)
    assert len(records(where)) == total * (1 + 4 + 3)
    contrast = records(where).filter((pl.col("kind") == "contrast") & (pl.col("severity") == 5))
    assert contrast["image"].to_list() == list(range(total))


def test_chunks_and_processes_do_not_change_a_prediction(world, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder / "child.py").write_text(CHILD)
    command = [str(warm_python()), str(world.folder / "child.py")]
    monkeypatch.setattr(
        units,
        "shard_command",
        lambda work, *words: [*command, str(work.directory.root), *map(str, words)],
    )
    whole = run_corruptions(world.folder / "whole", settings(world, chunk_size=22))
    parts = run_corruptions(world.folder / "parts", settings(world, chunk_size=5, num_shards=2))
    ours = [records(directory(world, run)).drop("plan") for run in ("whole", "parts")]
    assert_frame_equal(*ours)
    assert whole.kinds[0].mean_accuracy == parts.kinds[0].mean_accuracy


def test_what_was_done_before_a_kill_is_not_done_again(world) -> None:
    """The child is killed by -9 in the middle; the cells that it left are the ones that count."""
    (world.folder / "child.py").write_text(CHILD)
    config = settings(world, corruptions={"kinds": list(KINDS)})
    whole = run_corruptions(world.run, config)
    other = directory(world, "other")
    other.root.mkdir(parents=True)
    other.plan.write_bytes(directory(world).plan.read_bytes())
    words = [str(warm_python()), "child.py", "slowly", str(other.root)]
    child = subprocess.Popen(words, cwd=world.folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while len(list(other.cells.glob("*.parquet"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = {path: path.stat() for path in other.cells.glob("*.parquet")}
    assert 4 <= len(left) < 34
    again = run_corruptions(world.folder / "other", config)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in left} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in left.items()
    }
    assert_frame_equal(records(other), records(directory(world)))
    assert again.kinds[3].mean_accuracy == whole.kinds[3].mean_accuracy


def test_a_damaged_cell_is_done_again_and_a_foreign_one_is_kept(world) -> None:
    run_corruptions(world.run, settings(world))
    where = directory(world)
    before, cell = records(where), where.cell("contrast-5")
    cell.write_bytes(cell.read_bytes()[:40])
    run_corruptions(world.run, settings(world))
    assert_frame_equal(records(where), before)
    pl.read_parquet(cell, glob=False).with_columns(plan=pl.lit("another")).write_parquet(cell)
    with pytest.raises(InputError, match="a cell of this plan"):
        run_corruptions(world.run, settings(world))


@pytest.mark.parametrize("fields", [{"seed": 4}, {"corruptions": {"severities": [1, 2]}}, {"eps": 0.3}], ids=str)
def test_a_foreign_plan_is_refused(world, fields: dict) -> None:
    run_corruptions(world.run, settings(world))
    foreign = settings(world, **fields)
    with pytest.raises(InputError, match="as this was planned"):
        run_corruptions(world.run, foreign)
    run_corruptions(world.run, settings(world, rescore=7, timeout_minutes=3))  # decides no prediction


def test_a_plan_for_a_gpu_keeps_its_rows_whatever_the_shards(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no config says are as many as fit beside the other processes of a GPU."""
    monkeypatch.setattr(fill, "device_kind", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    monkeypatch.setattr(fill, "rows_that_fit", lambda model, side, processes: 32 // processes)
    where = directory(world)
    one, two, four = (settings(world, num_shards=n, chunk_size=0, images_per_pass=0) for n in (1, 2, 4))
    plan = plan_corruptions(world.run, two, where)
    assert (plan.subject.chunk_size, plan.subject.images_per_pass) == (16, 16)
    for config in (one, four, two):
        assert plan_corruptions(world.run, config, where).fingerprint == plan.fingerprint
    for written in ({"chunk_size": 8}, {"images_per_pass": 8}):
        with pytest.raises(InputError, match="= 16 as this was planned"):
            plan_corruptions(world.run, settings(world, num_shards=2, **{"chunk_size": 0} | written), where)
    other = plan_corruptions(world.folder / "other", four, directory(world, "other"))
    assert other.subject.chunk_size == 8


def test_other_photographs_of_frost_are_another_plan(world) -> None:
    folder = world.folder / "photographs"
    folder.mkdir()
    PIL.Image.new("RGB", (90, 70), (200, 210, 220)).save(folder / "1.png")
    config = settings(world, corruptions={"kinds": ["frost"], "frost": folder})
    summary = run_corruptions(world.run, config)
    assert len(summary.frost) == 64
    assert not summary.notes[1:]  # of 8 pixels alone: this frost is photographed
    PIL.Image.new("RGB", (90, 70), (0, 0, 0)).save(folder / "1.png")
    with pytest.raises(InputError, match="frost = "):
        run_corruptions(world.run, config)
    directory(world).cell("frost-1").unlink()
    with pytest.raises(InputError, match="photographs that were planned with"):
        run_shard(directory(world).root, 0, 1)
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="expected a photograph"):
        run_corruptions(world.folder / "other", config)


def test_errors_relative_to_a_reference_run(world) -> None:
    first = run_corruptions(world.folder / "first", settings(world))
    (world.folder / "other.py").write_text((world.folder / "factory.py").read_text().replace("seed(1)", "seed(2)"))
    config = settings(world, model={"factory": "other.py:build"}, corruptions={"reference": world.folder / "first"})
    second = run_corruptions(world.run, config)
    total, ratios = len(world.images), []
    for own, other in zip(second.kinds, first.kinds, strict=True):
        wrong = [sum(total - cell.num_correct for cell in kind.severities) for kind in (own, other)]
        assert own.corruption_error == pytest.approx(wrong[0] / wrong[1])
        ratios.append(wrong[0] / wrong[1])
    assert second.mean_corruption_error == pytest.approx(np.mean(ratios))
    assert second.reference.weights_sha256 == first.weights_sha256
    assert first.mean_corruption_error is None
    itself = settings(world, corruptions={"reference": world.folder / "first"})
    assert run_corruptions(world.folder / "first", itself).mean_corruption_error == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"corruptions": {"kinds": ["contrast"]}}, "the same kinds and severities"),
        ({"corruptions": {"severities": [1]}}, "the same kinds and severities"),
        ({"seed": 5}, "the same seed"),
        ({"num_images": 10}, "the same images"),
    ],
    ids=str,
)
def test_a_reference_that_is_not_comparable_is_refused(world, fields: dict, expected: str) -> None:
    run_corruptions(world.folder / "first", settings(world))
    asked = fields.get("corruptions", {}) | {"reference": world.folder / "first"}
    with pytest.raises(InputError, match=expected):
        run_corruptions(world.run, settings(world, **fields | {"corruptions": asked}))
    assert not directory(world).cells.exists()  # before any work


@pytest.mark.parametrize("again", [False, True], ids=["other weights", "planned anew"])
def test_a_reference_that_its_summary_says_nothing_of_any_more_is_refused(world, again: bool) -> None:
    first, weights = world.folder / "first", world.folder / "w.safetensors"
    own = {"model": {"factory": world.factory, "weights": weights}}
    save_weights(call_factory(world.factory), weights)
    run_corruptions(first, settings(world, **own))
    beside = settings(world, corruptions={"reference": first})
    assert run_corruptions(world.run, beside).mean_corruption_error == 1
    changed = call_factory(world.factory)
    torch.nn.init.zeros_(changed[3].weight)
    save_weights(changed, weights)
    if again:
        place = RunDir(first).corrupted("c")
        place.plan.unlink()
        plan_corruptions(first, settings(world, **own), place)
    expected = "a summary of its plan .*, found one of an earlier plan" if again else "expected the weights that c "
    with pytest.raises(InputError, match=expected):
        run_corruptions(world.run, beside)


def test_a_reference_without_numbers_is_refused(world) -> None:
    with pytest.raises(InputError, match=r"a run with corruptions/c/summary\.json"):
        run_corruptions(world.run, settings(world, corruptions={"reference": world.folder / "nowhere"}))


def test_a_noisy_model_is_averaged_over_draws_and_its_numbers_repeat(world) -> None:
    (world.folder / "noisy.py").write_text(NOISY)
    with pytest.raises(InputError, match="deterministic"):
        run_corruptions(world.run, settings(world, model={"factory": "noisy.py:build"}))
    accuracies = []
    for draws in (1, 60):
        config = settings(world, model={"factory": "noisy.py:build"}, noise="fresh", eot=draws)
        runs = [run_corruptions(world.folder / f"{name}-{draws}", config) for name in ("a", "b")]
        assert_frame_equal(*(records(directory(world, f"{name}-{draws}")) for name in ("a", "b")))
        accuracies.append(runs[0].clean_accuracy.value)
        assert any("one noisy draw" in note for note in runs[0].notes) == (draws == 1)
    assert accuracies[1] > accuracies[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("corruptions.kinds=[haze]", "'gaussian_noise'"),
        ("corruptions.severities=[0]", "greater than or equal to 1"),
        ("corruptions.severities=[6]", "less than or equal to 5"),
        ("corruptions.kinds=[fog,fog]", "each one once"),
        ("corruptions.noise_stds=[-1]", "greater than 0"),
        ("corruptions.severity=[1]", "corruptions.severities"),
    ],
)
def test_wrong_settings_are_one_line(override: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(AttackConfig, None, ["name=c", override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_are_not_rgb_are_refused(world, monkeypatch: pytest.MonkeyPatch) -> None:
    def grey(plan: object, batches: list[list[int]]):
        for images, labels in world.batches(plan, batches):
            yield images[:, :1], labels

    monkeypatch.setattr(images_of, "beton_batches", grey)
    with pytest.raises(InputError, match="expected RGB images, found 1 channels"):
        run_corruptions(world.run, settings(world))


def test_time_that_is_over_ends_the_run_and_keeps_what_is_done(world, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(world, timeout_minutes=1e-9)
    with pytest.raises(TimeoutError, match="finished cells are kept"):
        run_corruptions(world.run, config)
    assert not directory(world).summary.exists()
    assert not directory(world).lock.exists()


FASHION = """
import torch
from torch import nn

def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(64, 10))
"""


def test_the_command_on_a_beton_and_its_page(tmp_path: Path, small_betons: tuple[Path, Path], kapdist) -> None:
    (tmp_path / "f.py").write_text(FASHION)
    words = [f"data={small_betons[1]}", "model.factory=f.py:build", "num_images=20", "threads=1", "device=cpu"]
    cifar_c(tmp_path / "CIFAR-10-C", 10, ("fog",), images=20)
    words += ["corruptions.kinds=[fog,frost]", "corruptions.severities=[1,4]", "corruptions.published=CIFAR-10-C"]
    done = kapdist("attack", "corruptions", "out", *words)
    assert done.code == 0, done.output
    assert "frost is drawn" in done.output
    assert "CIFAR-10-C as published: 20 images" in done.output
    found = json.loads((tmp_path / "out" / "corruptions" / "corruptions" / "summary.json").read_text())
    assert [kind["kind"] for kind in found["kinds"]] == ["fog", "frost"]
    assert f"{100 * found['kinds'][0]['mean_accuracy']['value']:.1f}" in done.output
    page = write_report([tmp_path / "out"], tmp_path / "page").read_text()
    assert "Under common corruptions" in page
    assert "Severity 4" in page
    assert "frost is drawn" in page
    assert "CIFAR-10-C as published, 20 images a cell" in page
