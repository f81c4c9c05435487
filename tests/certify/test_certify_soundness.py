"""Attacks on the smoothed model break no image within its certified radius, and those of too large a radius."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
import torch
from certify.linear import directory, margins, records, settings

import kapdist.attack.images as images_of
import kapdist.sanity.certified as certified
from kapdist.certify.run import plan_alone, run_certify
from kapdist.config.attack import SanityConfig
from kapdist.errors import InputError
from kapdist.records.certificate import read_plan
from kapdist.records.sealed import read_json, write_json, write_table
from kapdist.sanity.certified import broken_certificates
from kapdist.sanity.run import run_sanity

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certified, "STEPS", 10)
    monkeypatch.setattr(certified, "MOST_IMAGES", 12)


def broken(world) -> float | None:
    return broken_certificates(world.run, read_plan(directory(world)).subject.model, CPU)


@pytest.mark.parametrize("sigma", [0.15, 0.6])
def test_no_image_of_a_network_breaks_within_its_radius(world, sigma: float) -> None:
    run_certify(world.run, settings(world, sigma=sigma, draws=1000))
    assert records(world)["predicted"].drop_nulls().len() >= 5
    assert broken(world) == 0


def test_radii_up_to_the_margin_hold_and_larger_ones_are_broken(world, linear) -> None:
    """The attack reaches what there is to reach: it breaks every image of the linear model beyond its margin."""
    run_certify(world.run, settings(world, **linear, sigma=0.25, draws=1000))
    assert broken(world) == 0
    found, exact = records(world), margins(world).abs()
    for factor, expected in ((0.99, 0.0), (1.5, 1.0)):
        radii = pl.Series(factor * exact).cast(pl.Float64)
        widened = found.with_columns(radius=radii).filter(pl.col("radius") > 0.1)
        assert len(widened) > 5
        write_table(widened, directory(world).records)
        assert broken(world) == expected


def test_without_certificates_of_these_weights_nothing_is_asked(world, linear) -> None:
    run_certify(world.run, settings(world, draws=20))
    subject = read_plan(directory(world)).subject.model
    other = subject.model_copy(update={"weights_sha256": "another"})
    assert broken_certificates(world.run, other, CPU) is None
    assert broken_certificates(world.folder / "nowhere", subject, CPU) is None


def test_other_machines_certificates_are_attacked_and_those_whose_images_are_gone_are_named(
    world, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_certify(world.run, settings(world, draws=100, num_images=5))
    plan = read_plan(directory(world))
    elsewhere = plan.subject.model_copy(update={"device": "a GPU", "packages": {"torch": "0"}})
    theirs = plan.model_copy(update={"subject": elsewhere})
    write_json(directory(world).plan, theirs.model_dump(mode="json"))
    summary = read_json(directory(world).summary) | {"plan_fingerprint": theirs.fingerprint}
    write_json(directory(world).summary, summary)
    assert broken(world) == 0

    def gone(plan: object, batches: list[list[int]]) -> None:
        raise InputError("images.beton", "a beton", "nothing")

    monkeypatch.setattr(images_of, "beton_batches", gone)
    assert broken(world) is None
    assert "images.beton: expected a beton, found nothing" in caplog.text


@pytest.mark.parametrize("again", [{"num_images": 4}, {"sigma": 0.1}])
def test_records_of_an_earlier_plan_are_named_and_not_attacked_by_the_next(
    world, again: dict, caplog: pytest.LogCaptureFixture
) -> None:
    run_certify(world.run, settings(world, draws=100))
    write_table(records(world).with_columns(radius=pl.lit(9.0)), directory(world).records)
    directory(world).plan.unlink()
    shutil.rmtree(directory(world).chunks)
    plan_alone(world.run, settings(world, draws=100, **again))
    assert broken(world) is None
    assert "records.parquet: expected records of this plan (kapdist certify --merge writes them)" in caplog.text
    run_certify(world.run, settings(world, draws=100, **again))
    assert broken(world) == 0


def test_the_sanity_report_asks_it(world) -> None:
    run_certify(world.run, settings(world, draws=400))
    least = SanityConfig(num_images=6, iterations=2, restarts=2, queries=5)
    rows = records(world).with_columns(radius=pl.lit(9.0), predicted=pl.col("selected"))
    write_table(rows, directory(world).records)
    found = run_sanity(world.run, world.config(name="s", sanity=least))
    check = next(check for check in found.checks if check.name == "certified")
    assert (check.value, check.status) == (1, "fail")
    assert "broken certificate" in found.causes


def test_the_attack_stays_within_the_radius(world, monkeypatch: pytest.MonkeyPatch) -> None:
    run_certify(world.run, settings(world, draws=400, num_images=5))
    seen = []
    whole = certified.ascended

    def ascended(copies, image, one):
        point = whole(copies, image, one)
        seen.append((float((point - image).double().norm()), one.radius))
        return point

    monkeypatch.setattr(certified, "ascended", ascended)
    broken(world)
    assert seen
    assert all(0.9 * radius < length < radius for length, radius in seen)
    assert torch.is_grad_enabled()
