"""The union over norms against the sets of images that each attack broke."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from records.test_worst import attacked
from typer.testing import CliRunner

from kapdist.cli import app
from kapdist.errors import InputError
from kapdist.records.attack_plan import read_plan
from kapdist.records.norms import read_across
from kapdist.records.sealed import write_json
from kapdist.records.worst import read_worst_cases
from kapdist.report.page import write_report
from kapdist.run.paths import AttackDir, RunDir
from kapdist.statistics.intervals import wilson

World = Any
EPS = {"Linf": 0.0088, "L2": 0.154, "L1": 0.697}


def attack_each(world: World, **fields: object) -> dict[str, AttackDir]:
    shared = {"attacks": ("fmn",), "fmn_steps": 15, "chunk_size": 22} | fields
    return {norm: attacked(world, norm.lower(), norm=norm, eps=eps, **shared) for norm, eps in EPS.items()}


def test_an_image_counts_if_no_attack_of_any_norm_broke_it(world: World, short: None, tmp_path: Path) -> None:
    attacks = attack_each(world)
    attacks["second"] = attacked(world, "second", eps=0.005, attacks=("apgd-ce",), chunk_size=22)
    tables = {name: pl.read_parquet(attack.records) for name, attack in attacks.items()}
    right = set(tables["L1"].filter(pl.col("label") == pl.col("clean_prediction"))["image"])
    fallen = {name: set(table.filter(pl.col("broken_by").is_not_null())["image"]) for name, table in tables.items()}
    fallen["Linf"] |= fallen.pop("second")
    found = read_across([attack.root for attack in attacks.values()])
    assert [(one.norm, one.eps, one.num_robust) for one in found.norms] == [
        (norm, EPS[norm], len(right - fallen[norm])) for norm in EPS
    ]
    left = right - fallen["Linf"] - fallen["L2"] - fallen["L1"]
    assert 0 < len(left) < min(one.num_robust for one in found.norms)
    assert (found.num_robust, found.robust_accuracy) == (len(left), wilson(len(left), 22))
    assert found.norms[0].sources == ("linf", "second")
    cases = read_worst_cases(RunDir(world.run).worst_case)
    assert cases.across[0].num_robust == found.num_robust
    assert cases.apart is None
    page = write_report([world.run], tmp_path / "report").read_text()
    assert "Union of Linf, L2 and L1" in page
    assert "gone" not in page
    said = CliRunner().invoke(app, ["attack", "norms", *(str(attack.root) for attack in attacks.values())])
    assert said.exit_code == 0
    assert f'"num_robust": {len(left)}' in said.stdout
    shutil.rmtree(attacks["second"].root)
    page = write_report([world.run], tmp_path / "report").read_text()
    gone = (
        "Also of attacks that are gone or were made anew since (kapdist attack worst works it out again): second."
    )
    assert page.count(gone) == 2, "of the norm, and of several"
    worst, plan = RunDir(world.run).worst_case, read_plan(attacks["L2"]).fingerprint
    write_json(worst, json.loads(worst.read_text().replace(plan, "0" * 64)))  # as if l2 were made anew since
    page = write_report([world.run], tmp_path / "report").read_text()
    assert page.count("works it out again): l2.") == 1
    assert page.count("works it out again): second, l2.") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_images": 9}, "expected the number of images of linf (22), found 9"),
        ({"seed": 1, "num_images": 21}, "expected the number of images of linf (22), found 21"),
        ({"noise": "fixed"}, "expected the noise of linf (off), found fixed"),
        ({"model": {"factory": "other.py:build"}}, "expected the model of linf (weights"),
    ],
)
def test_other_images_models_or_noise_are_refused_by_name(
    world: World, short: None, fields: dict[str, Any], said: str
) -> None:
    (world.folder / "other.py").write_text((world.folder / "factory.py").read_text().replace("seed(1)", "seed(2)"))
    shared = {"attacks": ("fmn",), "fmn_steps": 2, "chunk_size": 22}
    one = attacked(world, "linf", eps=0.006, **shared)
    other = attacked(world, "l2", norm="L2", eps=0.06, **shared | fields)
    with pytest.raises(InputError) as error:
        read_across([one.root, other.root])
    assert said in str(error.value)
    cases = read_worst_cases(RunDir(world.run).worst_case)
    assert cases.across == ()
    with pytest.raises(InputError, match="attacks of at least two norms, found Linf"):
        read_across([one.root, one.root])
    with pytest.raises(InputError, match=r"an attack directory .*found no plan.json"):
        read_across([one.root, world.folder])
