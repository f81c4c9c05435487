"""The union over everything tried, and shards that are balanced by what was measured."""

import functools
import itertools
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import kapdist.attack.images as images_of
from kapdist.attack import merge as merge_module
from kapdist.attack.balance import image_seconds
from kapdist.attack.images import ImageSet
from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, read_plan, write_plan
from kapdist.records.metrics import Metrics
from kapdist.records.norms import read_across
from kapdist.records.sealed import read_json, write_json, write_table
from kapdist.records.sharding import deal, missing_shards
from kapdist.records.summary import read_summary
from kapdist.records.worst import write_worst_case
from kapdist.report.page import write_report
from kapdist.report.reading import Run, read_run
from kapdist.report.worst import worst_views
from kapdist.run.files import fingerprint
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir, RunDir
from kapdist.sanity.standing import verdicts_of
from kapdist.statistics.intervals import wilson

World = Any


def attacked(world: World, name: str, num_shards: int = 1, **fields: object) -> AttackDir:
    plan_attack(world.run, world.config(name=name, **fields))
    attack = AttackDir(world.run / "attacks" / name)
    for shard in reversed(range(num_shards)):
        run_shard(attack.root, shard, num_shards)
    merge(attack.root)
    return attack


def broken_at(attack: AttackDir, eps: float) -> set[int]:
    table = pl.read_parquet(attack.records)
    return set(table.filter(pl.col("broken_eps") <= eps)["image"])


def test_an_image_is_robust_only_if_nothing_tried_broke_it(world: World, short: None, tmp_path: Path) -> None:
    first = attacked(world, "a", eps=[0.01, 0.02], chunk_size=22)
    second = attacked(world, "b", eps=0.012, attacks=("apgd-dlr",), chunk_size=11)
    third = attacked(world, "c", eps=0.015, attacks=("hard-label",), hard_label_queries=500, chunk_size=22)
    right = set(pl.read_parquet(first.records).filter(pl.col("label") == pl.col("clean_prediction"))["image"])
    (case,) = write_worst_case(world.run).cases
    expected = {
        eps: right - broken_at(first, eps) - broken_at(second, eps) - broken_at(third, eps)
        for eps in (0.01, 0.012, 0.015, 0.02)
    }
    assert {at.eps: at.num_robust for at in case.sweep} == {eps: len(left) for eps, left in expected.items()}
    assert case.num_clean_correct == len(right) == 18
    counts = {(one.source, one.attack, one.eps): (one.num_broken_first, one.num_broken) for one in case.first}
    assert sum(first for first, _ in counts.values()) == 18 - case.sweep[-1].num_robust
    assert counts[("a", "apgd-ce", 0.01)][0] == len(broken_at(first, 0.01))
    assert counts[("c", "hard-label", 0.015)][1] == len(broken_at(third, 1)) > 0
    assert counts[("b", "apgd-dlr", 0.012)] == (
        len(broken_at(second, 1) - broken_at(first, 0.01)),
        len(broken_at(second, 1)),
    )
    page = write_report([world.run], tmp_path / "report").read_text()
    assert "Worst case over everything tried" in page
    assert "hard-label" in page
    assert "Plan fingerprint" in page


def written(run: Path, plan: AttackPlan, images: range, fallen: Mapping[int, float]) -> AttackDir:
    """Lay down a merged attack on these images, all of them right, of which some fell to apgd-ce at some eps."""
    update = {"images": tuple(images), "num_images": len(images), "images_sha256": fingerprint(list(images))}
    plan = AttackPlan.model_validate(plan.model_dump() | update)
    attack = RunDir(run).attack(plan.name)
    write_plan(attack, plan)
    stages = {stage.eps: stage.name for stage in plan.stages}
    rows = [
        {"plan": plan.fingerprint, "image": image, "label": 0, "clean_prediction": 0}
        | {"broken_by": stages.get(fallen.get(image, 0)), "broken_eps": fallen.get(image)}
        for image in images
    ]
    types = {"broken_by": pl.String, "broken_eps": pl.Float64}
    write_table(pl.DataFrame(rows, schema_overrides=types), attack.records)
    return attack


def test_only_what_was_attacked_at_an_eps_has_withstood_it(
    tmp_path: Path, make_plan: Callable[..., AttackPlan]
) -> None:
    """At 8 of 255 six of the twelve are attacked, and all fall; then come five more, three of them at both."""
    small, large = 2 / 255, 8 / 255
    made = {name: make_plan("Linf", eps, ("apgd-ce",), name=name) for name, eps in (("a", small), ("b", large))}
    made["c"] = make_plan("Linf", large, ("apgd-ce",), smaller_eps=(small,), name="c")
    written(tmp_path, made["a"], range(12), {0: small})
    written(tmp_path, made["b"], range(3, 9), dict.fromkeys(range(3, 9), large))
    (case,) = write_worst_case(tmp_path).cases
    assert [(at.eps, at.num_images, at.num_robust) for at in case.sweep] == [(small, 12, 11), (large, 6, 0)]
    assert case.sweep[1].robust_accuracy == wilson(0, 6)
    assert case.num_images == 12
    written(tmp_path, made["c"], range(12, 15), {12: small, 13: large})
    written(tmp_path, made["b"].model_copy(update={"name": "d"}), range(20, 22), {20: large})
    (case,) = write_worst_case(tmp_path).cases
    assert [(at.num_images, at.num_robust) for at in case.sweep] == [(15, 13), (11, 2)]


def test_a_size_is_the_same_however_many_digits_it_was_written_in(
    tmp_path: Path, make_plan: Callable[..., AttackPlan]
) -> None:
    """What fell to either attack at 8 of 255 has not withstood everything at it; the page calls both sizes so."""
    for name, eps, images, fallen in (("a", 0.0313725, range(12), 0), ("b", 8 / 255, range(6), 1)):
        written(tmp_path, make_plan("Linf", eps, ("apgd-ce",), name=name), images, {fallen: eps})
    (case,) = write_worst_case(tmp_path).cases
    assert [(at.eps, at.num_images, at.num_robust) for at in case.sweep] == [(8 / 255, 12, 10)]


def test_a_case_of_before_says_that_it_may_count_what_was_not_attacked(
    tmp_path: Path, make_plan: Callable[..., AttackPlan]
) -> None:
    plans = [make_plan("Linf", eps, ("apgd-ce",), name=name) for name, eps in (("a", 2 / 255), ("b", 8 / 255))]
    written(tmp_path, plans[0], range(12), {})
    written(tmp_path, plans[1], range(6), dict.fromkeys(range(6), 8 / 255))
    write_worst_case(tmp_path)
    run = Run(RunDir(tmp_path), "r", None, None, None, Metrics(), (), ())
    assert [line for line in worst_views(run)[0].lines if "withstood" in line][1].endswith(
        " of 6 images withstood everything."
    )
    values = read_json(RunDir(tmp_path).worst_case)
    for at in values["cases"][0]["sweep"]:
        del at["num_images"]
    write_json(RunDir(tmp_path).worst_case, values)
    (view,) = worst_views(run)
    assert "kapdist attack worst counts anew" in view.lines[1]


def test_models_of_the_same_weights_are_cases_of_their_own(
    tmp_path: Path, make_plan: Callable[..., AttackPlan]
) -> None:
    """The weights are one file: what the factory does with them, and what it is called with, is not."""
    plan = make_plan("Linf", 0.1, ("apgd-ce",))
    own = {"factory": None, "architecture": {"model": {"name": "resnet18"}, "kap": {"noise_std": 0.2}}}
    later = {"model": {"name": "resnet18", "members": 1}, "kap": {"noise_std": 0.2, "layout": "sheet"}}
    file = {"factory": "d.py:build", "factory_sha256": "0" * 64}
    models = {
        "own": own,
        "own, by a later version, not folded": {**own, "architecture": later, "folded": True},
        "own, other noise": {**own, "architecture": {"model": {"name": "resnet18"}, "kap": {"noise_std": 0.3}}},
        "file": file,
        "file elsewhere": {**file, "factory": "../code/d.py:build"},
        "function": {**file, "factory": "d.py:other"},
        "arguments": {**file, "arguments": {"width": 2}},
        "mean": {**file, "mean": (0.1, 0.2, 0.3)},
        "classes": {**file, "num_classes": 7},
    }
    for number, model in enumerate(models.values()):
        planned = {"model": plan.model.model_copy(update=model), "name": f"a{number}"}
        written(tmp_path, plan.model_copy(update=planned), range(3), {number % 3: 0.1})
    cases = write_worst_case(tmp_path).cases
    names = [[list(models)[int(source.name[1:])] for source in case.sources] for case in cases]
    assert sorted(names, key=lambda group: list(models).index(group[0])) == [
        ["own", "own, by a later version, not folded"],
        ["own, other noise"],
        ["file", "file elsewhere"],
        *([name] for name in ("function", "arguments", "mean", "classes")),
    ]
    assert {case.factory for case in cases} == {None, "d.py:build", "d.py:other"}


def test_records_of_an_earlier_plan_are_left_out_with_the_reason(world: World, short: None, tmp_path: Path) -> None:
    """Whoever removes plan.json and plans again has the records of before until the merge."""
    small = {"num_images": 4, "chunk_size": 4}
    attacked(world, "a", **small)
    before = read_summary(attacked(world, "b", eps=0.3, **small).summary)
    other = RunDir(world.run).attack("b")
    other.plan.unlink()
    plan_attack(world.run, world.config(name="b", attacks=("apgd-dlr",), eps=0.3, **small))
    cases = write_worst_case(world.run)
    assert [source.name for case in cases.cases for source in case.sources] == ["a"]
    reason = (
        r"expected the records of this plan's 4 images \(kapdist attack merge .*\), found those of another plan"
    )
    assert re.search(f"^b: .*{reason}$", cases.left_out[0])
    with pytest.raises(InputError, match=reason):
        read_across([other.root])
    assert verdicts_of(other, read_plan(other)) == (
        None,
        ["the attack of this name was planned anew and not merged since: nothing is said of its number"],
    )
    page = write_report([world.run], tmp_path / "report").read_text()
    assert "Attacks planned anew and not merged since" in page
    assert before.plan_fingerprint not in page
    shutil.rmtree(other.chunks)
    run_shard(other.root, 0, 1)
    merge(other.root)
    assert [len(case.sources) for case in write_worst_case(world.run).cases] == [2]


def test_what_cannot_be_read_is_said_once(world: World, short: None) -> None:
    for name in "ab":
        attacked(world, name, num_images=4, chunk_size=4, seed=ord(name))
    RunDir(world.run).attack("b").records.write_bytes(b"PAR1 and no more")
    write_worst_case(world.run)
    (view,) = worst_views(read_run(world.run, "run"))
    assert sum("b: " in line or line.endswith(" b.") for line in view.lines) == 1
    assert any(line.startswith("Could not be read, and so not in it: b: ") for line in view.lines)


def test_attacks_on_other_pixels_of_the_same_images_are_another_case(
    world: World, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = images_of.describe_images

    def described(*words: object, **size: object) -> ImageSet:
        found = describe(*words)
        return replace(found, data=found.data.model_copy(update=size))

    whole = {"num_images": 4, "chunk_size": 4}
    attacked(world, "a", **whole)
    for number, size in enumerate(({"crop_ratio": 0.5}, {"crop": "random-resized"}, {"crop": "random-resized"})):
        monkeypatch.setattr(images_of, "describe_images", functools.partial(described, **size))
        attacked(world, f"b{number}", **whole)
    cases = write_worst_case(world.run).cases
    assert [[source.name for source in case.sources] for case in cases] == [["a", "b0"], ["b1", "b2"]]


NOISY = """
import torch
from torch import nn
from torch.nn import functional as F
from factory import build as network

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images):
        return self.network(images + 0.02 * torch.randn_like(images))
"""


def test_seven_shards_have_the_records_of_one_with_noise_averages_and_an_eps_list(
    world: World, short: None
) -> None:
    (world.folder / "noisy.py").write_text(NOISY)
    fields = {
        "model": {"factory": "noisy.py:Noisy"},
        "noise": "fresh",
        "eot": 3,
        "rescore": 4,
        "images_per_pass": 2,
    }
    fields |= {"eps": [0.1, 0.3], "screen": 2, "num_images": 7, "chunk_size": 1}
    one, seven = (attacked(world, f"n{count}", count, **fields) for count in (1, 7))
    tables = [pl.read_parquet(attack.records).drop(pl.selectors.contains("seconds")) for attack in (one, seven)]
    assert tables[0].equals(tables[1])
    assert read_plan(one).fingerprint == read_plan(seven).fingerprint
    assert read_plan(seven).costs  # measured by the first
    assert tables[0]["adversarial_draws_correct"].null_count() == 0
    assert set(tables[0]["clean_draws_correct"]) - {0, 4}


def test_shards_are_balanced_by_what_an_earlier_attack_took(world: World) -> None:
    attack = attacked(world, "first", eps=0.3)
    seconds = image_seconds(attack)
    table = pl.read_parquet(attack.records)
    wrong = table.filter(pl.col("label") != pl.col("clean_prediction"))["image"]
    assert seconds.filter(pl.col("image").is_in(wrong.implode()))["seconds"].sum() == 0
    total = table.group_by("chunk").first()["chunk_stage_seconds"].list.sum().sum()
    assert seconds["seconds"].sum() == pytest.approx(total)
    plan_attack(world.run, world.config(name="second", eps=0.3))
    attack_of_plan = AttackDir(world.run / "attacks" / "second")
    plan = read_plan(attack_of_plan)
    hands = deal(plan.num_chunks, 2, plan.costs)
    run_shard(attack_of_plan.root, 0, 2)  # the login node knows what is left as the shard does
    assert missing_shards(attack_of_plan, 2) == {1: hands[1]}
    shutil.rmtree(attack_of_plan.chunks)
    assert sum(plan.costs) == pytest.approx(total, rel=1e-3)
    costs = (5.0, 4.0, 3.0, 3.0, 3.0, 0.0)
    assert deal(6, 2, costs) == [[0, 3, 5], [1, 2, 4]]  # loads 8 and 10: 5 | 4, 3 | 3, | 3
    assert sorted(itertools.chain(*deal(6, 7, costs))) == list(range(6))
    assert missing_shards(attack_of_plan, 1) == {0: list(range(6))}


def test_a_merge_that_is_killed_before_its_last_file_is_not_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody merges again what has a summary: the worst case would be without it for good."""
    plan_attack(world.run, world.config(name="a", num_images=4, eps=0.3, attacks=("apgd-ce",)))
    run_shard(world.run / "attacks" / "a", 0, 1)
    attack = AttackDir(world.run / "attacks" / "a")
    for write in ("write_worst_case", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(merge_module, write, raise_killed)
            with pytest.raises(KeyboardInterrupt):
                merge(attack.root)
        assert not attack.summary.exists()
    assert '"name": "a"' in RunDir(world.run).worst_case.read_text()


def raise_killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_merges_of_one_run_at_once_both_count(world: World) -> None:
    for name, attacks in (("a", ("apgd-ce",)), ("b", ("apgd-dlr",))):
        plan_attack(world.run, world.config(name=name, num_images=4, eps=0.3, attacks=attacks))
        run_shard(world.run / "attacks" / name, 0, 1)
    threads = [threading.Thread(target=merge, args=(world.run / "attacks" / name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sources = RunDir(world.run).worst_case.read_text()
    assert '"name": "a"' in sources
    assert '"name": "b"' in sources
    attack = AttackDir(world.run / "attacks" / "a")
    with locked(attack.lock), pytest.raises(InputError, match="nobody else at work"):
        merge(attack.root)
