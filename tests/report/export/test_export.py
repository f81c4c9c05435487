"""Exports of merged attacks: every number is counted here again, by hand, from what each image's fate was."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch
from report.test_report_sanity import sanity

from kapdist import cli
from kapdist.attack.chunk import AttackOutcome, ChunkOutcome
from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.rescore import Votes
from kapdist.attack.rows import chunk_table
from kapdist.attack.shard import run_shard
from kapdist.attack.stock import resolve, standard_list
from kapdist.config.networks import NetworkName
from kapdist.data.beton.manifest import Manifest, write_manifest
from kapdist.errors import InputError
from kapdist.records.attack_plan import ROBUSTBENCH_LIST_SHA256, AttackPlan, PlannedModel, read_plan, write_plan
from kapdist.records.sealed import write_json, write_table
from kapdist.report.export import run as exports
from kapdist.report.export.images import COLUMNS
from kapdist.report.export.latex import escape, latex_table, protocol_text, protocol_texts
from kapdist.report.export.merged import read_all
from kapdist.report.export.robustbench import SPELLED, Entry, architecture_of
from kapdist.run.files import fingerprint
from kapdist.run.paths import AttackDir
from kapdist.statistics.intervals import wilson

World = Any
MakePlan = Callable[..., AttackPlan]
ROBUST, WRONG = -1, -2  # any other fate is the number of the stage that breaks the image
FATES = (WRONG,) * 5 + (0,) * 10 + (1,) * 6 + (ROBUST,) * 19  # 40 images: 35 right, 19 robust

export = functools.partial(exports.export, standard=standard_list)


def made_up(plan: AttackPlan, chunk: int, fates: Sequence[int]) -> ChunkOutcome:
    """A chunk's outcome by the fate of each of its images; image i of class i % 10 is broken into the next one."""
    mine = torch.tensor(fates[chunk * plan.chunk_size : (chunk + 1) * plan.chunk_size])
    labels = labels_of(plan, chunk)
    attacks = []
    for number, stage in enumerate(plan.stages):
        attacked = (mine == ROBUST) | (mine >= number)
        broke = mine == number
        norm, prediction = stage.eps * broke * (1 - labels.double() / 100), (labels + broke) % 10
        attacks.append(AttackOutcome(stage.name, stage.eps, attacked, broke, norm, prediction, 1, 1, 1, 1, 0.5))
    votes = None
    if plan.rescore:  # robust images are right in every draw but one, the others in none
        right = (mine == ROBUST) * (plan.rescore - 1)
        counts = torch.zeros(len(mine), 10, dtype=torch.int64)
        counts[torch.arange(len(mine)), labels] = right
        counts[torch.arange(len(mine)), (labels + 1) % 10] = plan.rescore - right
        votes = Votes(counts)
    prediction = (labels + (mine == WRONG)) % 10
    smallest = torch.stack([torch.where(attack.broke, attack.norm, torch.inf) for attack in attacks]).amin(0)
    smallest[mine == WRONG] = 0
    return ChunkOutcome(prediction, tuple(attacks), torch.empty(0), smallest, votes, votes, 0, 1.0)


def labels_of(plan: AttackPlan, chunk: int) -> torch.Tensor:
    return torch.tensor(plan.chunk_images(chunk)) % 10


def attacked(root: Path, plan: AttackPlan, fates: Sequence[int] = FATES, merged: bool = True) -> AttackDir:
    """Write an attack with these fates as shards do, and merge it."""
    images = tuple(range(0, 3 * len(fates), 3))
    update = {"images": images, "num_images": len(fates), "images_sha256": fingerprint(list(images))}
    plan = AttackPlan.model_validate(plan.model_dump() | update | {"run": root.parent.parent.name})
    attack = AttackDir(root)
    write_plan(attack, plan)
    for chunk in range(plan.num_chunks):
        table = chunk_table(plan, chunk, labels_of(plan, chunk), made_up(plan, chunk, fates))
        write_table(table, attack.chunk(chunk))
    if merged:
        merge(root)
    return attack


CIFAR10 = {"path": "x", "fingerprint": "f", "resolution": 32, "crop": "none", "crop_ratio": 1}


@pytest.fixture
def standard(make_plan: MakePlan) -> MakePlan:
    """A plan that RobustBench's CIFAR-10 leaderboard takes, but for what is said otherwise."""

    def make(norm: str = "Linf", eps: float = 8 / 255, version: str = "standard", **fields: object) -> AttackPlan:
        fields = {"data": CIFAR10} | fields
        return make_plan(norm, eps, fields.pop("attacks", ()), version, **fields)

    return make


def test_csv_and_parquet_say_of_every_image_what_became_of_it(tmp_path: Path, make_plan: MakePlan) -> None:
    plan = make_plan("L2", 0.5, ("apgd-ce", "square"), smaller_eps=(0.25,), screen=3, chunk_size=16)
    fates = (WRONG, 0, 1, 2, ROBUST, 3, 4, 5) * 5
    attack = attacked(tmp_path / "runs" / "r,1" / "attacks" / "aa", plan, fates)
    expected = []
    for row, fate in enumerate(fates):
        label = 3 * row % 10
        by, eps = (None, None) if fate < 0 else (("screen", "apgd-ce", "square")[fate % 3], (0.25, 0.5)[fate // 3])
        expected.append(
            {
                "image": 3 * row,
                "label": label,
                "clean_prediction": (label + (fate == WRONG)) % 10,
                "clean_correct": fate != WRONG,
                "robust": fate == ROBUST,
                "broken_by": by,
                "broken_eps": eps,
                "smallest": 0.0 if fate == WRONG else None if eps is None else eps * (1 - label / 100),
                "adversarial_norm": None if eps is None else eps * (1 - label / 100),
                "adversarial_prediction": None if eps is None else (label + 1) % 10,
                "chunk": row // 16,
                "chunk_row": row % 16,
            }
        )
    out = tmp_path / "out"
    found = export([attack.root], out, ["csv", "parquet"])
    names = ["images.csv", "images.csv-metadata.json", "images.parquet"]
    assert [path.name for path in found.files] == ["curves.csv", *names[:2], "curves.parquet", names[2]]
    curves = pl.read_parquet(out / "curves.parquet")
    assert curves.write_csv() == (out / "curves.csv").read_text()
    assert curves.select("norm", "eps", "num_robust").rows() == [("L2", 0, 35), ("L2", 0.25, 20), ("L2", 0.5, 5)]
    for row in curves.iter_rows(named=True):
        assert (row["robust"], row["robust_low"]) == (row["num_robust"] / 40, wilson(row["num_robust"], 40).low)
    parquet = pl.read_parquet(out / "images.parquet")
    norms = [row.pop("adversarial_norm") for row in expected]
    assert parquet.select(*expected[0]).to_dicts() == expected
    assert parquet["adversarial_norm"].to_list() == norms
    with (out / "images.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == list(COLUMNS) == parquet.columns
    assert [tuple(line) for line in lines] == [tuple(map(as_csv, row)) for row in parquet.iter_rows()]
    assert set(parquet["run"]) == {"r,1"}
    assert parquet["num_draws"].null_count() == 40
    described = json.loads((out / "images.csv-metadata.json").read_text())
    assert [column["name"] for column in described["tableSchema"]["columns"]] == header
    of_curves = json.loads(pl.read_parquet_metadata(out / "curves.parquet")["kapdist.columns"])
    assert list(of_curves) == curves.columns
    assert of_curves["robust"] == "num_robust / num_images"
    metadata = pl.read_parquet_metadata(out / "images.parquet")
    assert list(json.loads(metadata["kapdist.columns"])) == header
    (source,) = json.loads(metadata["kapdist.attacks"])
    assert described["notes"] == [source]
    assert source["plan_fingerprint"] == fingerprint(source["plan"]) == parquet["plan"][0]
    assert source["summary"]["num_robust"] == 5 == parquet["robust"].sum()


def as_csv(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_rows_of_a_real_attack_are_those_of_the_images_that_it_kept(world: World, tmp_path: Path) -> None:
    """chunk and chunk_row find the adversarial image, and its distance from the clean one is adversarial_norm."""
    plan_attack(world.run, world.config(eps=[0.01, 0.04], keep_adversarial=True, num_images=9))
    attack = world.run / "attacks" / "aa"
    run_shard(attack, 0, 1)
    merge(attack)
    export([attack], tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "images.csv").read_text())))
    assert len(rows) == 9
    broken = 0
    for row in rows:
        kept = np.load(attack / "adversarial" / f"chunk-{int(row['chunk']):06d}.npy")[int(row["chunk_row"])]
        distance = np.abs(kept.astype(float) - world.images[int(row["image"])].double().numpy()).max()
        assert distance == pytest.approx(float(row["adversarial_norm"] or 0), abs=1e-12)
        assert int(row["label"]) == world.labels[int(row["image"])]
        broken += row["broken_by"] == "apgd-ce"
    assert 0 < broken < 9


KEYS = ["link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture"]
KEYS += ["eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable"]
PAPER = Entry(
    model_id="Ours2026Kernels",
    name="Kernels",
    authors="A. B, C. D",
    link="https://example.org/1",
    venue="Unpublished",
    architecture="ResNet-18",
    additional_data=False,
    number_forward_passes=1,
    dataset="cifar10",
)


def written_info(out: Path) -> dict[str, Any]:
    (path,) = out.rglob("model_info/*/*/*.json")
    return json.loads(path.read_text()) | {"path": path.relative_to(out).as_posix()}


def test_model_info_of_a_whole_test_set_is_robustbench_s(tmp_path: Path, standard: MakePlan) -> None:
    fates = (WRONG,) * 1250 + (0,) * 3000 + (1,) * 1249 + (ROBUST,) * 4501
    attack = attacked(tmp_path / "r" / "attacks" / "aa", standard(chunk_size=10_000), fates)
    found = export([attack.root], tmp_path / "out", ["model-info"], PAPER)
    info = written_info(tmp_path / "out")
    assert info.pop("path") == "model_info/cifar10/Linf/Ours2026Kernels.json"
    assert info == {
        "link": "https://example.org/1",
        "name": "Kernels",
        "authors": "A. B, C. D",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "Unpublished",
        "architecture": "ResNet-18",
        "eps": "8/255",
        "clean_acc": "87.50",
        "reported": "45.01",
        "autoattack_acc": "45.01",
        "unreliable": False,
    }
    assert list(info) == [key for key in KEYS if key != "footnote"]
    assert found.remarks == ()


def test_more_images_than_the_test_set_has_are_not_the_test_set(tmp_path: Path, standard: MakePlan) -> None:
    attack = attacked(tmp_path / "r" / "attacks" / "aa", standard(chunk_size=10_001), (ROBUST,) * 10_001)
    with pytest.raises(InputError, match="at most the 10,000 test images of cifar10, found 10,001"):
        export([attack.root], tmp_path / "out", ["model-info"], PAPER)


def test_model_info_of_fewer_images_says_so_and_names_what_only_its_authors_know(
    tmp_path: Path, standard: MakePlan
) -> None:
    run = {"architecture": {"model": {"name": "resnet18", "width": 0.5}}, "factory": None, "folded": True}
    run["architecture"]["kap"] = {"pool_size": 3, "layout": "sheet", "noise_std": 0.3, "norm_first": False}
    plan = standard(screen=10, smaller_eps=(4 / 255,))
    plan = plan.model_copy(update={"model": plan.model.model_copy(update=run)})
    # Ten fall to the screen at 4/255, six to APGD there, one to Square at 8/255: 18 of 40 are left.
    fates = (*FATES[:-1], 9)
    attack = attacked(tmp_path / "runs" / "kap" / "attacks" / "aa", plan, fates)
    found = export([attack.root], tmp_path / "out", ["model-info"], Entry(dataset="cifar10"))
    info = written_info(tmp_path / "out")
    low, high = (100 * bound for bound in (wilson(18, 40).low, wilson(18, 40).high))
    assert info["path"] == "model_info/cifar10/Linf/kap.json"
    assert (info["clean_acc"], info["autoattack_acc"]) == ("87.50", "45.00")
    assert info["footnote"] == (
        "Evaluated on 40 images chosen by seed 3, not on the 10,000 that RobustBench evaluates on: 95% interval of "
        f"the robust accuracy {low:.2f} to {high:.2f}. A 10-step APGD before the standard list counts too. Images "
        "that fell at a smaller eps were not attacked again. Switched off is the noise of training: activation "
        "noise σ = 0.3. Square, without gradients, broke 2.5% that gradients had left: they may be masked."
    )
    assert info["unreliable"] is True
    assert info["architecture"] == "ResNet-18, width 0.5, KAP 3 (sheet)"
    assert {info[key] for key in ("link", "name", "authors", "venue")} == {"TO BE FILLED IN"}
    assert (info["additional_data"], info["number_forward_passes"]) == (None, 1)
    assert list(info)[:-1] == KEYS
    filled, footnote, unreliable = found.remarks
    assert filled == "model-info: to be filled in: link, name, authors, additional_data, venue"
    assert footnote.endswith(info["footnote"])
    assert "unreliable" in unreliable


def test_passes_that_were_not_in_fp32_are_said(tmp_path: Path, standard: MakePlan) -> None:
    """The whole image at its own size is the image, whatever a run calls its crop."""
    plan = standard(precision="bf16", data=CIFAR10 | {"crop": "random-resized"})
    attack = attacked(tmp_path / "r" / "attacks" / "aa", plan)
    export([attack.root], tmp_path / "out", ["model-info"], PAPER)
    assert "The attacks' passes were in bf16, verdicts in fp32." in written_info(tmp_path / "out")["footnote"]


def test_of_imagenet_robustbench_s_own_list_is_told_from_others(tmp_path: Path, standard: MakePlan) -> None:
    plan, entry = standard(eps=4 / 255, num_classes=1000), Entry(**{**vars(PAPER), "dataset": "imagenet"})
    rest = "the fixed list of 5,000 that RobustBench evaluates on"
    cases = [
        ("robustbench", ROBUSTBENCH_LIST_SHA256, 5000, None),
        ("list:ids.txt", ROBUSTBENCH_LIST_SHA256, 5000, None),  # that very file
        ("robustbench", ROBUSTBENCH_LIST_SHA256, 40, "40 images at the head of its list"),
        ("list:ids.txt", "0" * 64, 5000, f"5,000 images of a list with sha256 {'0' * 64}"),
        ("first", None, 5000, "5,000 images at the head of the beton"),
        ("random", None, 5000, "5,000 images chosen by seed 3"),
    ]
    for number, (chosen, sha256, count, said) in enumerate(cases):
        told = plan.model_copy(update={"chosen": chosen, "list_sha256": sha256, "chunk_size": count})
        attack = attacked(tmp_path / f"r{number}" / "attacks" / "aa", told, (ROBUST,) * count)
        export([attack.root], tmp_path / f"out{number}", ["model-info"], entry)
        footnote = written_info(tmp_path / f"out{number}").get("footnote")
        assert footnote is None if said is None else footnote.startswith(f"Evaluated on {said}, not on {rest}: 95%")


def test_the_accuracy_at_the_leaderboard_s_eps_is_taken_from_a_sweep(tmp_path: Path, standard: MakePlan) -> None:
    plan = standard("L2", 1.0, smaller_eps=(0.5,))
    attack = attacked(tmp_path / "r" / "attacks" / "aa", plan, FATES[:-4] + (4,) * 4)  # four fall at 1.0 alone
    export([attack.root], tmp_path / "out", ["model-info"], PAPER)
    info = written_info(tmp_path / "out")
    assert (info["path"].split("/")[2], info["eps"]) == ("L2", "0.5")
    assert info["autoattack_acc"] == f"{100 * 19 / 40:.2f}"
    assert "smaller" not in info["footnote"]


@pytest.mark.parametrize(
    ("model", "spelled"),
    [
        ({"name": "resnet50", "width": 1.0}, "ResNet-50"),
        ({"name": "wide_resnet34_10"}, "WideResNet-34-10"),
        ({"name": "preact_resnet18", "widths": "squares"}, "PreActResNet-18, widths squares"),
        ({"name": "cnn", "expansion": 2, "width": 0.25}, "CNN of 3 convolutions, expansion 2, width 0.25"),
    ],
)
def test_architectures_are_spelled_as_on_the_leaderboard(model: dict[str, Any], spelled: str) -> None:
    kap = {"pool_size": 1, "layout": "sheet", "noise_std": 0.0}
    planned = PlannedModel.model_construct(architecture={"model": model, "kap": kap})
    assert architecture_of(planned) == spelled
    assert set(SPELLED) == set(get_args(NetworkName))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise": "fresh"}, r"a deterministic model, .*\(attack it with noise=off\), found noise=fresh"),
        ({"noise": "fresh", "version": "eot-standard", "eot": 20}, "a deterministic model"),
        ({"noise": "fixed"}, "found noise=fixed, which is drawn for each chunk"),
        ({"version": "plus"}, "version=standard, as RobustBench evaluates with, found plus"),
        ({"version": "custom", "attacks": ("apgd-ce",)}, "version=standard.*found custom"),
        ({"attacks": ("apgd-ce", "square")}, r"the standard list \(apgd-ce, apgd-t, fab-t, square\)"),
        (
            {"norm": "L1", "eps": 12},
            "Linf eps 8/255 or L2 eps 0.5, as RobustBench has for cifar10, found L1 eps 12",
        ),
        ({"eps": 4 / 255}, "found Linf eps 0.0156863"),
        (
            {"data": CIFAR10 | {"resolution": 224, "crop": "random-resized", "crop_ratio": 0.875}},
            "whole images of cifar10's 32 pixels a side, found 224 pixels, the centre crop 0.875",
        ),
        ({"data": CIFAR10 | {"resolution": 64}}, "found 64 pixels"),
        ({"data": CIFAR10 | {"crop": "random-resized", "crop_ratio": 0.9}}, "found 32 pixels, the centre crop 0.9"),
        ({"num_classes": 7}, "a model of cifar10's 10 classes, found 7"),
        ({"gradient_of": "b.py:f", "functions": {"b.py:f": "s"}}, "the model's own gradient, found that of b.py:f"),
    ],
)
def test_what_the_leaderboard_would_not_take_is_refused(
    tmp_path: Path, standard: MakePlan, fields: dict[str, Any], words: str
) -> None:
    attacks = fields.get("attacks")
    plan = standard(**fields)
    if attacks and plan.version == "standard":
        plan = plan.model_copy(update={"attacks": attacks})
    attack = attacked(tmp_path / "r" / "attacks" / "aa", plan)
    with pytest.raises(InputError, match=words):
        export([attack.root], tmp_path / "out", ["model-info"], PAPER)
    assert not (tmp_path / "out").exists()
    found = export([attack.root], tmp_path / "out")  # all that apply: the other files, and the reason
    assert [path.name for path in found.files][-1] == "table.tex"
    assert not list((tmp_path / "out").rglob("model_info"))
    assert found.remarks[0].startswith("model-info left out: ")


def test_settings_of_a_weaker_standard_attack_are_refused(tmp_path: Path, standard: MakePlan) -> None:
    plan = standard()
    weaker = plan.settings.model_copy(update={"square_queries": 100})
    attack = attacked(tmp_path / "r" / "attacks" / "aa", plan.model_copy(update={"settings": weaker}))
    assert resolve("standard", (), "Linf", 8 / 255, 10)[1] == plan.settings
    with pytest.raises(InputError, match=r"as the library sets it, found .*square_queries=100"):
        export([attack.root], tmp_path / "out", ["model-info"], PAPER)


@pytest.mark.parametrize(
    ("source", "asked", "words"),
    [
        (None, None, "--dataset cifar10 or cifar100 or imagenet, as the beton does not say .*, found no manifest"),
        ("/data/photos", None, "--dataset cifar10 .*, found /data/photos"),
        ("/data/photos", "mnist", "--dataset: expected cifar10 or cifar100 or imagenet, found mnist"),
        ("fashion-mnist/test", None, "test images of cifar10 or .*, found fashion-mnist/test"),
        ("fashion-mnist/test", "cifar10", "test images of cifar10, found fashion-mnist/test"),
        ("cifar100/test", "cifar10", "test images of cifar10, found cifar100/test"),
        ("photos/train", None, "--dataset cifar10 .*, found photos/train"),
        ("cifar10/train", None, "found cifar10/train"),
        ("cifar10/test", None, None),
        ("photos/test", "cifar10", None),
    ],
)
def test_the_data_set_is_what_the_manifest_says_or_else_the_user(
    tmp_path: Path, standard: MakePlan, source: str | None, asked: str | None, words: str | None
) -> None:
    plan = standard()
    beton = tmp_path / "images.beton"
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"path": beton})})
    if source:
        write_manifest(beton, manifest(source, plan.data.fingerprint))
    attack = attacked(tmp_path / "r" / "attacks" / "aa", plan)
    if words is None:
        export([attack.root], tmp_path / "out", ["model-info"], Entry(dataset=asked))
        assert written_info(tmp_path / "out")["dataset"] == "cifar10"
    else:
        with pytest.raises(InputError, match=words):
            export([attack.root], tmp_path / "out", ["model-info"], Entry(dataset=asked))


def test_the_manifest_of_another_beton_says_nothing(tmp_path: Path, standard: MakePlan) -> None:
    plan, beton = standard(), tmp_path / "images.beton"
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"path": beton})})
    write_manifest(beton, manifest("cifar10/test", "another"))
    attack = attacked(tmp_path / "r" / "attacks" / "aa", plan)
    with pytest.raises(InputError, match="as the beton does not say"):
        export([attack.root], tmp_path / "out", ["model-info"])


def manifest(source: str, data_fingerprint: str) -> Manifest:
    return Manifest(
        source=source,
        num_images=0,
        class_names=(),
        per_class=(),
        smallest=(32, 32),
        largest=(32, 32),
        encoding="raw",
        max_side=None,
        skipped=(),
        size_bytes=0,
        sha256="",
        layout_sha256="",
        fingerprint=data_fingerprint,
        packages={},
        checksums=np.zeros(0, "<u8"),
    )


def table_of(tex: str) -> tuple[str, list[str], list[list[str]]]:
    """Read a table back: (column specification, head, rows); what would not compile fails here."""
    text = re.sub(r"(?<!\\)%.*", "", tex)
    plain = re.sub(r"\\[\\{}$&#%_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    depth = np.cumsum([(character == "{") - (character == "}") for character in plain])
    assert depth.min() >= 0
    assert Counter(re.findall(r"\\begin{(\w+)}", text)) == Counter(re.findall(r"\\end{(\w+)}", text))
    body = re.search(
        r"\\begin{tabular}{(\w+)}\s*\\toprule(.*)\\midrule(.*)\\bottomrule\s*\\end{tabular}", text, re.S
    )
    assert body
    lines = [line.strip() for part in body.groups()[1:] for line in part.strip().splitlines()]
    assert all(line.endswith(r" \\") for line in lines)
    head, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)&", line[:-2])] for line in lines]
    assert {len(body[1])} == {len(row) for row in [head, *rows]}
    return body[1], head, rows


def compile_where_latex_is(tex: str, folder: Path) -> None:
    """Compile with pdflatex where there is one: no error, and no character that is missing in the font."""
    folder.mkdir()
    packages = r"\documentclass{article}\usepackage{booktabs}"
    (folder / "paper.tex").write_text(f"{packages}\n\\begin{{document}}\n{tex}\\end{{document}}\n")
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Missing character" not in (folder / "paper.log").read_text()


def shown(count: int, total: int) -> str:
    share = wilson(count, total)
    return rf"{100 * count / total:.1f} {{\scriptsize [{100 * share.low:.1f}, {100 * share.high:.1f}]}}"


def test_one_attack_is_one_row_with_its_protocol_in_the_caption(tmp_path: Path, standard: MakePlan) -> None:
    attack = attacked(
        tmp_path / "kap_3" / "attacks" / "aa", standard(smaller_eps=(2 / 255,)), (*FATES[:-4], *[4] * 4)
    )
    export([attack.root], tmp_path / "out", ["latex"])
    tex = (tmp_path / "out" / "table.tex").read_text()
    spec, head, rows = table_of(tex)
    assert spec == "lrlll"
    sizes = [rf"$\ell_\infty$, $\varepsilon = {steps}/255$" for steps in (2, 8)]
    assert head == ["Model", "Images", "Clean", *sizes]
    assert rows == [[r"kap\_3", "40", shown(35, 40), shown(19, 40), shown(15, 40)]]
    assert "Attack: AutoAttack standard, noise off.}" in tex
    assert f"% kap_3/aa: plan {read_plan(attack).fingerprint}" in tex.splitlines()
    compile_where_latex_is(tex, tmp_path / "latex")


def test_text_is_printed_as_it_stands() -> None:
    assert escape("a-b--c---d–?`x``") == "a-b-{}-c-{}-{}-d--?{`}x{`}{`}"


def test_names_in_other_letters_are_printed_or_said(tmp_path: Path, standard: MakePlan) -> None:
    """Greek and signs as mathematics; pdflatex has no letters of most other scripts."""
    greek = attacked(tmp_path / "σ_0.3−Ω≤é" / "attacks" / "aa", standard())
    done = export([greek.root], tmp_path / "greek", ["latex"])
    tex = (tmp_path / "greek" / "table.tex").read_text()
    assert r"\ensuremath{\sigma}\_0.3\ensuremath{-}\ensuremath{\Omega}\ensuremath{\leq}é & 40" in tex
    assert done.remarks == ()
    compile_where_latex_is(tex, tmp_path / "latex")
    other = attacked(tmp_path / "模型đ" / "attacks" / "aa", standard())
    done = export([other.root], tmp_path / "other", ["latex"])
    assert done.remarks == ("latex: for lualatex or xelatex, as pdflatex has no 模型đ",)
    assert "a font that has 模型đ, which" in (tmp_path / "other" / "table.tex").read_text().splitlines()[1]


def test_an_eps_is_one_column_however_it_was_written(tmp_path: Path, standard: MakePlan) -> None:
    plans = {"a": standard(), "b": standard(eps=0.0313725), "c": standard(eps=0.0314)}
    roots = [attacked(tmp_path / run / "attacks" / "aa", plan).root for run, plan in plans.items()]
    _, head, rows = table_of(latex_table(read_all(roots)))
    assert head[3:] == [rf"$\ell_\infty$, $\varepsilon = {steps}/255$" for steps in ("8", "8.007")]
    assert [[cell != "--" for cell in row[3:]] for row in rows] == [[True, False], [True, False], [False, True]]


def test_what_is_not_to_be_believed_is_exported_with_that_word(tmp_path: Path, standard: MakePlan) -> None:
    """Of 40 images 19 withstood, of which a stronger attack broke 12."""
    attack = attacked(tmp_path / "r" / "attacks" / "aa", standard())
    remedy = {"attack": "averaged gradients", "causes": ["randomness"], "num_attacked": 19, "num_broken": 12}
    acted = {"attack": "AutoAttack standard", "plan_fingerprint": read_plan(attack).fingerprint}
    acted |= {"num_images": 40, "num_robust": 19, "num_left": 7, "remedies": [remedy]}
    attack.sanity.write_text(json.dumps(sanity(flips=0.1) | {"acted": acted}))
    export([attack.root], tmp_path / "out", ["model-info", "latex", "parquet"], PAPER)
    words = "is not to be believed: AutoAttack standard said 47.5"
    info = written_info(tmp_path / "out")
    assert info["unreliable"]
    assert f"{words}% robust of 40 images; with averaged gradients 17.5% are left." in info["footnote"]
    assert f"r: the robust accuracy {words}" in (tmp_path / "out" / "table.tex").read_text()
    metadata = pl.read_parquet_metadata(tmp_path / "out" / "images.parquet")["kapdist.attacks"]
    assert words in json.loads(metadata)[0]["doubt"]
    acted["num_left"], remedy["num_broken"] = 19, 0
    attack.sanity.write_text(json.dumps(sanity(flips=0.1) | {"acted": acted}))
    assert "believed" not in latex_table(read_all([attack.root]))


def test_a_protocol_says_what_is_the_user_s(standard: MakePlan) -> None:
    functions = {"a.py:f": "0123456789abcdef", "b.py:g": None}
    plan = standard(version="custom", attacks=("apgd-ce", "a.py:f"), gradient_of="b.py:g", functions=functions)
    assert protocol_text(plan) == (
        "AutoAttack apgd-ce, a.py:f (the user's own, sha256 0123456789ab), noise off, "
        "gradient of b.py:g (the user's own)"
    )


def test_a_protocol_says_what_is_unusual_about_it(standard: MakePlan) -> None:
    own = {"random_draws": 1000, "hard_label_queries": 5, "surrogate": surrogate("1")}
    plan = standard(
        version="custom", attacks=("random-noise", "hard-label", "transfer"), own_settings=own, precision="bf16"
    )
    assert protocol_text(plan.model_copy(update={"screen": 10})) == (
        "AutoAttack random-noise, hard-label, transfer, noise off, 10-step screen first, passes in bf16, "
        "5 hard-label queries, transfer from plain (weights 111111111111)"
    )


def surrogate(sha256: str) -> dict[str, Any]:
    fields = {"factory": None, "factory_sha256": None, "architecture": None, "num_classes": 10, "folded": False}
    return fields | {"weights": "/old/plain/model.safetensors", "weights_sha256": sha256 * 64}


DATA = {"path": "/a/test.beton", "fingerprint": "1" * 64, "resolution": 8, "crop": "none", "crop_ratio": 1}
CROP = {"resolution": 64, "crop": "random-resized", "crop_ratio": 0.5}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            {"data": DATA},
            {"data": DATA | {"path": "/b/val.beton", "fingerprint": "2" * 64}},
            ("data test (111111111111)", "data val (222222222222)"),
        ),
        ({"data": DATA}, {"data": DATA | {"path": "/moved/test2.beton"}}, None),
        ({"seed": 1}, {"seed": 2}, ("random images of seed 1", "random images of seed 2")),
        (
            {"chosen": "first"},
            {"chosen": "list:a.txt", "list_sha256": "3" * 64},
            ("the first images", "images of list:a.txt (sha256 333333333333)"),
        ),
        (
            {"data": DATA},
            {"data": DATA | CROP},
            ("8 pixels a side", "64 pixels a side, 0.5 of the shorter side (area)"),
        ),
        ({"precision": "fp32"}, {"precision": "bf16"}, ("passes in fp32", "passes in bf16")),
    ],
)
def test_attacks_side_by_side_say_what_differs_between_them(
    standard: MakePlan, first: dict[str, Any], second: dict[str, Any], words: tuple[str, str] | None
) -> None:
    found = protocol_texts([standard(**first), standard(**second)])
    assert found == [f"AutoAttack standard, noise off{f', {text}' if words else ''}" for text in words or ("", "")]


def test_a_factory_beside_a_run_s_own_network_is_said(standard: MakePlan) -> None:
    own, other = standard(), standard()
    own = own.model_copy(update={"model": own.model.model_copy(update={"factory": None})})
    model = other.model.model_copy(update={"factory_sha256": "4" * 64, "arguments": {"quality": 75}})
    other = other.model_copy(update={"model": model})
    assert [text.partition("noise off, ")[2] for text in protocol_texts([own, other])] == [
        "the run's own network",
        "network of m:f (sha256 444444444444) with {'quality': 75}",
    ]


def test_several_attacks_stand_side_by_side_each_with_its_protocol(tmp_path: Path, standard: MakePlan) -> None:
    noisy = standard(version="eot-standard", noise="fresh", eot=20, rescore=5)
    strange, fates = r"[b] 50%_of {a} \$x & y^2 ~#1 <|>", (*FATES[:-1], 3)  # Square alone breaks the last one
    first = attacked(tmp_path / "plain" / "attacks" / "on", noisy, fates)
    second = attacked(tmp_path / "plain" / "attacks" / "off", standard("L2", 0.5), (*FATES, ROBUST))
    third = attacked(tmp_path / strange / "attacks" / "off", standard(), (0,) * 7)
    tex = latex_table(read_all([first.root, second.root, third.root, first.root]))
    spec, head, rows = table_of(tex)
    assert spec == "lrlll"
    assert head[-2:] == [r"$\ell_\infty$, $\varepsilon = 8/255$", r"$\ell_2$, $\varepsilon = 0.5$"]
    escaped = r"{[}b{]} 50\%\_of \{a\} \textbackslash{}\$x \& y\textasciicircum{}2 \textasciitilde{}\#1 "
    escaped += r"\textless{}\textbar{}\textgreater{}"
    first_mark, second_mark = r"\textsuperscript{1}", r"\textsuperscript{2}"
    assert rows == [
        [f"plain (on){first_mark}", "40", shown(35, 40), shown(18, 40), "--"],
        [f"plain (off){second_mark}", "41", shown(36, 41), "--", shown(20, 41)],
        [f"{escaped}{second_mark}", "7", shown(7, 7), shown(0, 7), "--"],
    ]
    assert rf"{first_mark}AutoAttack eot-standard, noise fresh, mean of 20 draws.\par" in tex
    assert rf"{second_mark}AutoAttack standard, noise off.\par" in tex
    # All draws but one were right on the robust images.
    scores = f"single draw {shown(18 * 4 / 5, 40)}, majority {shown(18, 40)}, all draws right {shown(0, 40)}"
    assert f"plain (on): adversarial images under 5 fresh draws: {scores}." in tex
    assert r"plain (on): square, without gradients, broke 2.5\% that" in tex
    compile_where_latex_is(tex, tmp_path / "latex")

    found = export([first.root, second.root, third.root], tmp_path / "out")
    table = pl.read_parquet(tmp_path / "out" / "images.parquet")
    keys = table.group_by("run", "attack", maintain_order=True).len()
    assert keys.rows() == [("plain", "on", 40), ("plain", "off", 41), (strange, "off", 7)]
    assert table["adversarial_draws_correct"].drop_nulls().to_list() == [4 * (fate == ROBUST) for fate in fates]
    assert "one attack" in found.remarks[0]


def unmerged(attack: AttackDir) -> None:
    attack.summary.unlink()


def truncated(attack: AttackDir) -> None:
    attack.summary.write_bytes(attack.summary.read_bytes()[:500])


def flattered(attack: AttackDir) -> None:
    values = json.loads(attack.summary.read_text())
    values["num_robust"] += 1
    write_json(attack.summary, values)


def flattered_throughout(attack: AttackDir) -> None:
    flattered(attack)
    values = json.loads(attack.summary.read_text())
    values["robust_accuracy"]["value"] = values["num_robust"] / values["num_images"]
    write_json(attack.summary, values)


def of_another_plan(attack: AttackDir) -> None:
    values = json.loads(attack.summary.read_text())
    write_json(attack.summary, values | {"plan_fingerprint": "0" * 64})


def without_records(attack: AttackDir) -> None:
    attack.records.unlink()


def with_half_records(attack: AttackDir) -> None:
    attack.records.write_bytes(attack.records.read_bytes()[:-200])


def with_fewer_records(attack: AttackDir) -> None:
    pl.read_parquet(attack.records).head(39).write_parquet(attack.records)


def with_records_of_another_plan(attack: AttackDir) -> None:
    pl.read_parquet(attack.records).with_columns(plan=pl.lit("0" * 64)).write_parquet(attack.records)


def without_a_plan(attack: AttackDir) -> None:
    attack.plan.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unmerged, r"aa: expected a merged attack \(kapdist attack merge .*aa\), found no summary.json"),
        (truncated, r"summary.json: expected a whole file \(merge it again\), found"),
        (flattered, r"summary.json: expected an accuracy equal to .* \(merge it again\)"),
        (
            flattered_throughout,
            r"the num_robust that records.parquet adds up to \(merge again\), found another",
        ),
        (of_another_plan, r"expected the summary of this plan \(.*merge again\), found that of 000000000000"),
        (without_records, r"records.parquet: expected the records of a merged attack \(kapdist attack merge"),
        (with_half_records, r"records.parquet: expected a whole file \(kapdist attack merge"),
        (with_fewer_records, "of this plan's 40 images .*, found others"),
        (with_records_of_another_plan, "of this plan's 40 images .*, found those of another plan"),
        (without_a_plan, "expected an attack directory"),
    ],
)
def test_an_attack_that_is_not_whole_is_refused(
    tmp_path: Path, standard: MakePlan, damage: Callable[[AttackDir], None], words: str
) -> None:
    attack = attacked(tmp_path / "r" / "attacks" / "aa", standard())
    damage(attack)
    with pytest.raises(InputError, match=words):
        export([attack.root], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["kapdist", "attack", "export", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_command_writes_prints_and_refuses_in_one_line(
    tmp_path: Path, standard: MakePlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = attacked(tmp_path / "r" / "attacks" / "aa", standard()).root
    out = tmp_path / "out"
    words = ["--dataset", "cifar10", "--name", "T", "--authors", "A", "--link", "L", "--venue", "V"]
    words += ["--architecture", "X", "--additional-data", "--number-forward-passes", 2, "--footnote", "First."]
    assert run_command(monkeypatch, attack, "--out", out, *words, "--model-id", "A2026T") == 0
    printed = capsys.readouterr()
    names = [
        "curves.csv",
        "images.csv",
        "images.csv-metadata.json",
        "curves.parquet",
        "images.parquet",
        "table.tex",
    ]
    names = ["model_info/cifar10/Linf/A2026T.json", *names]
    assert printed.out.splitlines() == [str(out / name) for name in names]
    assert printed.err.startswith("model-info: footnote: First. Evaluated on 40 images")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == sorted(names)
    info = written_info(out)
    assert [info[key] for key in KEYS[:5]] == ["L", "T", "A", True, 2]
    assert (info["venue"], info["architecture"], info["footnote"][:7]) == ("V", "X", "First. ")

    (tmp_path / "file").write_text("")
    for wrong, found in (
        ((attack, "--out", tmp_path / "file"), "file: expected a place that can be written"),
        ((attack, "--out", "/proc/none"), "/proc/none: expected a place that can be written"),
        (
            (attack, "--out", out, "--format", "xlsx"),
            "--format: expected model-info, csv, parquet, latex, or bundle alone; of a run's network hub or onnx",
        ),
        ((attack, "--out", out, "--format", "model-info", *words, "--model-id", "../x"), "--model-id: expected"),
        ((attack, attack / "chunks", "--out", out), "chunks: expected an attack directory"),
    ):
        assert run_command(monkeypatch, *wrong) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert found in line
