"""Certificates of a linear model are those of the closed form; units, shards and kills change no bit of them."""

from __future__ import annotations

import html
import json
import re

import pytest
import torch
from certify.linear import LINEAR, directory, margins, records, settings
from polars.testing import assert_frame_equal
from scipy import stats

from kapdist.certify.plan import plan_certificate
from kapdist.certify.run import merge_alone, plan_alone, run_certify
from kapdist.certify.shard import Units, run_shard
from kapdist.errors import InputError
from kapdist.records.certificate import CertificateSummary, read_plan
from kapdist.records.sealed import read_json
from kapdist.report import write_report
from kapdist.run.paths import RunDir
from kapdist.statistics.binomial import lower_bound


def test_a_linear_model_s_radii_are_below_its_margins_and_near_them(world, linear) -> None:
    """At alpha 1e-6 none of 44 exceeds its margin by chance but once in 20,000 seeds."""
    draws, alpha = 4000, 1e-6
    run_certify(world.run, settings(world, **linear, sigma=[0.25, 0.5], draws=draws, alpha=alpha))
    found, exact = records(world), margins(world)
    assert found.height == 2 * len(world.images)
    for row, margin in zip(found.iter_rows(named=True), exact.repeat(2).tolist(), strict=True):
        sigma, size = row["sigma"], abs(margin)
        fewest = int(stats.binom.ppf(alpha, draws, stats.norm.cdf(size / sigma)))
        least = max(0.0, sigma * stats.norm.ppf(stats.beta.ppf(alpha, fewest, draws - fewest + 1)))
        assert least > 0.75 * min(size, 2.4 * sigma) - 0.2 * sigma
        assert least <= row["radius"] <= size
        assert row["predicted"] in ((int(margin > 0),) if least else (None, int(margin > 0)))
        assert (row["predicted"] is None) == (row["p_a_low"] <= 0.5) == (row["radius"] == 0)
    assert 0 < found["predicted"].null_count() < len(found) / 2  # images near the boundary


def test_the_records_are_the_counts_and_the_summary_their_shares(world) -> None:
    summary = run_certify(world.run, settings(world))
    found = records(world)
    for row in found.iter_rows(named=True):
        assert row["draws"] == 300
        assert row["p_a"] == row["count"] / 300
        assert row["p_a_low"] == lower_bound(row["count"], 300, 0.001)
        if row["selected"] == row["label"]:
            assert row["label_count"] == row["count"]
    smoothed = summary.smoothed[0]
    right = [row for row in found.iter_rows(named=True) if row["predicted"] == row["label"]]
    assert smoothed.num_correct == smoothed.certified[0].num_certified == len(right) > 5
    for at in smoothed.certified:
        assert at.num_certified == sum(row["radius"] >= at.radius for row in right)
        assert at.accuracy.low <= at.num_certified / len(found) <= at.accuracy.high
    assert smoothed.certified[-1].num_certified == 0
    assert smoothed.average_certified_radius == pytest.approx(sum(row["radius"] for row in right) / len(found))
    assert sum(smoothed.p_a_histogram) == len(found)
    assert smoothed.draw_accuracy.value == pytest.approx(found["label_count"].sum() / (300 * len(found)))
    assert CertificateSummary.model_validate_json(json.dumps(read_json(directory(world).summary))) == summary


def test_a_count_is_that_of_the_noise_that_belongs_to_the_image(world) -> None:
    """The noise is drawn here again, by its identity alone, all of it at once."""
    from kapdist.rng import derive_seed

    run_certify(world.run, settings(world, images_per_pass=300, num_images=0, seed=4))
    scope: dict = {}
    exec((world.folder / "factory.py").read_text(), scope)
    model, found = scope["build"]().eval(), records(world)
    for image_id in (0, 13):
        seed = derive_seed(4, "certify", "estimation", image_id, "0.25", 0)
        noise = torch.empty(300, 3, 8, 8).normal_(0, 0.25, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            counts = model(world.images[image_id] + noise).argmax(1).bincount(minlength=5)
        row = found.row(image_id, named=True)
        assert row["count"] == counts[row["selected"]]
        assert row["label_count"] == counts[row["label"]]


@pytest.mark.parametrize("fields", [{"unit_draws": 70}, {"stop_radius": 0.2}], ids=str)
def test_one_and_seven_shards_give_the_same_certificates(world, fields: dict) -> None:
    config = settings(world, sigma=[0.1, 0.3], draws=400, **fields)
    one = run_certify(world.folder / "one", config)
    plan = plan_alone(world.folder / "seven", config)
    assert plan.num_blocks == (6 if "unit_draws" in fields else 1)
    with pytest.raises(InputError, match="none of unit 0, 1, 2"):
        merge_alone(world.folder / "seven", config)
    for shard in reversed(range(7)):
        run_shard(directory(world, "seven").root, shard, 7)
    seven = merge_alone(world.folder / "seven", config)
    assert_frame_equal(records(world, "one"), records(world, "seven"))
    assert one.smoothed == seven.smoothed


def test_units_that_are_done_are_kept_and_a_damaged_one_is_done_again(world) -> None:
    config = settings(world)
    run_certify(world.run, config)
    where, before = directory(world), records(world)
    kept, damaged = where.chunk(0), where.chunk(1)
    stat = kept.stat()
    damaged.write_bytes(damaged.read_bytes()[:50])
    run_certify(world.run, config)
    assert_frame_equal(records(world), before)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_a_run_that_goes_on_ends_as_one_that_was_left_alone(world) -> None:
    config = settings(world, unit_draws=200)
    whole = run_certify(world.folder / "whole", config)
    plan, where = plan_alone(world.run, config), directory(world)
    units = Units(where, plan)
    units.do(units.units[3:7], lambda done, note: None)
    left = {path: path.stat().st_mtime_ns for path in where.chunks.glob("*.parquet")}
    assert len(left) == 4
    assert run_certify(world.run, config).smoothed == whole.smoothed
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert_frame_equal(records(world), records(world, "whole"))


def test_noise_of_the_model_s_own_is_a_part_of_it(world, linear) -> None:
    """A model that adds noise itself, deviation s, smoothed by sigma is the linear one under both."""
    noisy = LINEAR.replace("images.flatten(1)", "(images + 0.3 * torch.randn_like(images)).flatten(1)")
    (world.folder / "noisy.py").write_text(noisy)
    config = settings(world, model={"factory": "noisy.py:build"}, num_classes=2, sigma=0.4, draws=2000)
    with pytest.raises(InputError, match="deterministic"):
        run_certify(world.run, config)
    fresh = config.model_copy(update={"noise": "fresh"})
    summary = run_certify(world.run, fresh)
    assert "own noise is a part of the smoothed model" in summary.notes[0]
    chances = torch.special.ndtr(margins(world).abs() / 0.5)
    found = torch.tensor(records(world)["p_a"].to_list(), dtype=torch.double)
    found = torch.where(found < 0.5, 1 - found, found)  # where the selection chose the other class
    assert (found - chances).abs().max() < 5 * 0.5 / 2000**0.5
    assert summary == run_certify(world.folder / "again", fresh).model_copy(
        update={"run": summary.run, "seconds": summary.seconds}
    )


def test_a_model_that_draws_once_for_a_whole_batch_is_shown_one_copy_at_a_time(world, linear) -> None:
    shared = LINEAR.replace("+ self.b", "+ self.b + 40 * torch.randn(())")
    (world.folder / "shared.py").write_text(shared)
    config = settings(
        world, model={"factory": "shared.py:build"}, num_classes=2, noise="fresh", draws=200, num_images=4
    )
    run_certify(world.run, config)
    assert not read_plan(directory(world)).subject.draws_together
    found = records(world)
    assert ((found["p_a"] > 0.3) & (found["p_a"] < 0.95)).all()  # of one draw for all it would be 0 or 1


def test_stopping_early_saves_draws_and_says_enough(world, linear) -> None:
    config = settings(world, **linear, sigma=0.5, draws=8000, stop_radius=0.5)
    summary = run_certify(world.run, config)
    found, exact = records(world), margins(world).abs()
    stopped = found.filter(found["draws"] < 8000)
    assert len(stopped) > len(found) / 2
    assert set(found["draws"]) <= set(summary.looks) == {125, 250, 500, 1000, 2000, 4000, 8000}
    for row, margin in zip(found.iter_rows(named=True), exact.tolist(), strict=True):
        assert row["radius"] <= margin
        assert row["p_a_low"] == lower_bound(row["count"], row["draws"], 0.001 / 7)
        assert row["draws"] == 8000 or (row["radius"] >= 0.5) == (margin > 0.5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"draws": 9},
            "draws: expected at least 10, as with fewer no image gets any radius at alpha = 0.001, found 9",
        ),
        ({"draws": 12, "alpha": 1e-5}, "draws: expected at least 17"),
        ({"stop_radius": 3}, "stop_radius: expected at most 0."),
        ({"sigma": None}, "sigma: expected the standard deviation of the noise, such as sigma=0.25"),
        ({"num_images": 23}, "num_images: expected at least 23 images"),
    ],
    ids=str,
)
def test_what_cannot_be_certified_is_one_line(world, fields: dict, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        run_certify(world.run, settings(world, **fields))
    assert str(caught.value).startswith(expected)
    assert not directory(world).plan.exists()


def test_a_model_in_training_mode_is_refused(world) -> None:
    stubborn = (
        (world.folder / "factory.py")
        .read_text()
        .replace("return nn.Sequential(", "return type('Stubborn', (nn.Sequential,), {'eval': lambda self: self})(")
    )
    (world.folder / "stubborn.py").write_text(stubborn)
    with pytest.raises(InputError, match="training mode"):
        run_certify(world.run, settings(world, model={"factory": "stubborn.py:build"}))


def test_logits_that_are_not_finite_under_noise_are_refused(world) -> None:
    (world.folder / "log.py").write_text(
        (world.folder / "factory.py").read_text().replace("nn.Tanh()", "Log()")
        + "\nclass Log(nn.Module):\n    def forward(self, x):\n        return (1.5 + x).log()\n"
    )
    with pytest.raises(
        InputError, match=r"finite logits under noise of sigma 2, found NaN .* a noisy copy of image"
    ):
        run_certify(world.run, settings(world, model={"factory": "log.py:build"}, sigma=2))


@pytest.mark.parametrize("fields", [{"draws": 301}, {"alpha": 0.01}, {"sigma": 0.3}, {"seed": 1}], ids=str)
def test_a_foreign_plan_is_refused(world, fields: dict) -> None:
    plan_certificate(world.run, settings(world), directory(world))
    with pytest.raises(InputError, match="as this was planned"):
        plan_certificate(world.run, settings(world, **fields), directory(world))
    plan_certificate(world.run, settings(world, num_shards=2, timeout_minutes=3), directory(world))


def test_the_same_images_as_an_attack_of_that_seed(world) -> None:
    from kapdist.attack.plan import make_plan

    attack = make_plan(world.run, world.config(num_images=6, seed=9), RunDir(world.run).attack("aa"))
    assert plan_alone(world.run, settings(world, num_images=6, seed=9)).subject.images == attack.images


def test_time_that_is_over_keeps_what_is_done(world) -> None:
    with pytest.raises(TimeoutError, match="finished units are kept"):
        run_certify(world.run, settings(world, timeout_minutes=1e-9))
    assert not directory(world).summary.exists()
    assert not directory(world).lock.exists()


def test_the_page_shows_the_curve_and_says_what_the_average_hides(world) -> None:
    summary = run_certify(world.run, settings(world, sigma=[0.2, 0.4]))
    page = html.unescape(write_report([world.run], world.folder / "page").read_text())
    assert "Certified by randomized smoothing" in page
    assert "each sigma is another smoothed model" in page
    for smoothed in summary.smoothed:
        assert f"{smoothed.average_certified_radius:.3f}" in page
        assert f"{100 * smoothed.accuracy.value:.1f}" in page
    assert "alone misleads" in re.sub(r"\s+", " ", page)
    assert (world.folder / "page" / "certified-accuracy-run-c.png").stat().st_size > 5000
    assert (world.folder / "page" / "certified-chances-run-c.png").exists()
