from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kapdist.report import comparison
from kapdist.report.plots import stages
from kapdist.report.render import cells
from kapdist.report.words import as_255ths, eps_in_full, short
from kapdist.run.paths import RunDir

ONE_ATTACK = {"apgd-ce": 8}
SETTING = "Linf, eps 0.03137 (8/255), 20 images, noise off"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_cells_of_a_row(three: list[Path]) -> None:
    (block,) = comparison(three).blocks
    plain, noise, kap = (cells(row) for row in block.rows)
    # 18 and 0 of 20 images; the limits are the ones of the summary.
    middle = ("resnet18, width 0.25", "1", "0", "0", "3")
    assert plain == ("plain", *middle, "90.0 [76.6, 100.0]", "0.0 [0.0, 10.0]", "20", "4k + 2k")
    assert noise[:5] == ("noise", "resnet18, width 0.25", "1", "0.3", "0")
    assert kap[2] == "3 line"
    assert [row[7].split()[0] for row in (plain, noise, kap)] == ["0.0", "45.0", "50.0"]


def test_a_sheet_is_said_with_both_sides(make_run: Callable[..., Any]) -> None:
    run = make_run("run", 5, "sheet").attacked(18, ONE_ATTACK)
    assert cells(comparison([run.dir.root]).blocks[0].rows[0])[2] == "5×5 sheet"


def test_markdown(three: list[Path]) -> None:
    lines = comparison(three).markdown().splitlines()
    assert lines[0] == "## AutoAttack standard, Linf, eps 0.03137 (8/255), 20 images, noise off"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| plain | resnet18, width 0.25 | 1 | 0 | 0 | 3 | 90.0 [")


def test_csv(three: list[Path]) -> None:
    rows = rows_of(comparison(three).csv())
    assert [row["run"] for row in rows] == ["plain", "noise", "kap"]
    assert [float(row["robust"]) for row in rows] == [0.0, 9 / 20, 10 / 20]
    assert [float(row["clean"]) for row in rows] == [18 / 20, 17 / 20, 17 / 20]
    assert {row["attacks"] for row in rows} == {"apgd-ce apgd-t fab-t square"}
    assert rows[2]["noise_std"] == "0.3"
    assert (rows[2]["pool_size"], rows[2]["layout"]) == ("3", "line")
    assert len(rows[0]["plan_fingerprint"]) == 64


def test_terminal(three: list[Path]) -> None:
    console = Console(file=io.StringIO(), width=80)
    comparison(three).print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "90.0 [76.6, 100.0]" in text
    assert "switched off during this attack" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "other", [{"eps": 4 / 255}, {"norm": "L2"}, {"version": "plus"}, {"noise": "fresh"}, {"num_images": 40}]
)
def test_settings_never_share_a_block(make_run: Callable[..., Any], other: dict[str, Any]) -> None:
    run = make_run("run").attacked(18, ONE_ATTACK, name="a").attacked(18, ONE_ATTACK, name="b", **other)
    blocks = comparison([run.dir.root]).blocks
    assert [len(block.rows) for block in blocks] == [1, 1]
    assert blocks[0].title != blocks[1].title


def planned(make_run: Callable[..., Any], name: str, attack: dict[str, int], **plan: Any) -> Path:
    """A run whose attack has a custom list and this in its plan."""
    run = make_run(name, plan.pop("pool_size", 1), noise_std=0.3).attacked(18, attack, version="custom")
    path = run.dir.attack("linf").plan
    path.write_text(json.dumps(json.loads(path.read_text()) | plan))
    return run.dir.root


def surrogate(sha256: str, place: str = "/old/plain/model.safetensors") -> dict[str, Any]:
    return {"surrogate": {"factory": None, "weights": place, "weights_sha256": sha256 * 64}}


@pytest.mark.parametrize(
    ("attack", "first", "second", "words"),
    [
        ("apgd-ce", {}, {"precision": "bf16"}, ("passes in fp32", "passes in bf16")),
        *(
            (attack, {"own_settings": {key: few}}, {"own_settings": {key: default}}, words)
            for attack, key, few, default, words in (
                ("random-noise", "random_draws", 5, 1000, ("5 random points", "1,000 random points")),
                (
                    "hard-label",
                    "hard_label_queries",
                    9,
                    10_000,
                    ("9 hard-label queries", "10,000 hard-label queries"),
                ),
                ("fmn", "fmn_steps", 4, 200, ("4 steps of fmn", "200 steps of fmn")),
            )
        ),
        (
            "transfer",
            {"own_settings": surrogate("1")},
            {"own_settings": surrogate("2")},
            tuple(f"transfer from plain (weights {sha * 12})" for sha in "12"),
        ),
    ],
)
def test_attacks_of_other_strength_never_share_a_block(
    make_run: Callable[..., Any], attack: str, first: dict[str, Any], second: dict[str, Any], words: tuple[str, str]
) -> None:
    roots = [
        planned(make_run, "noise", {attack: 8}, **first),
        planned(make_run, "kap", {attack: 2}, pool_size=3, **second),
    ]
    compared = comparison(roots)
    titles = [block.title for block in compared.blocks]
    assert titles == [f"AutoAttack custom ({attack}), {SETTING}, {text}" for text in words]
    assert len({block.slug for block in compared.blocks}) == 2
    assert not any("minus" in claim.text for block in compared.blocks for claim in compared.claims(block))
    (alone,) = comparison(roots[:1]).blocks
    assert alone.title.endswith("noise off" if attack == "apgd-ce" else words[0])


def summarised(root: Path, **values: Any) -> Path:
    path = RunDir(root).attack("linf").summary
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return root


def test_averaged_draws_and_screens_are_settings(make_run: Callable[..., Any]) -> None:
    """Of a named version too, whose list does not show the screen."""
    few, many = (
        summarised(make_run(name).attacked(18, ONE_ATTACK).dir.root, eot=eot)
        for name, eot in (("few", 1), ("many", 20))
    )
    titles = [block.title for block in comparison([few, many]).blocks]
    assert titles == [f"AutoAttack standard, {SETTING}, {text}" for text in ("single draws", "mean of 20 draws")]
    screened = summarised(make_run("screened").attacked(18, ONE_ATTACK).dir.root, screen=10)
    titles = [block.title for block in comparison([few, screened]).blocks]
    assert titles == [f"AutoAttack standard, {SETTING}, {text}" for text in ("no screen", "10-step screen first")]
    assert comparison([screened]).blocks[0].title == f"AutoAttack standard, {SETTING}"
    assert comparison([many]).blocks[0].title.endswith("mean of 20 draws")


def test_a_surrogate_is_the_same_wherever_it_lies(make_run: Callable[..., Any]) -> None:
    here, there = surrogate("1"), surrogate("1", "/moved/undefended/model.safetensors")
    roots = [
        planned(make_run, name, {"transfer": 8}, own_settings=own) for name, own in (("a", here), ("b", there))
    ]
    assert [len(block.rows) for block in comparison(roots).blocks] == [2]


def test_custom_lists_are_settings_and_a_named_version_is_one(make_run: Callable[..., Any]) -> None:
    run = make_run("run")
    run.attacked(18, {"apgd-ce": 8}, name="a", version="custom")
    run.attacked(18, {"square": 8}, name="b", version="custom")
    run.attacked(18, {"apgd-ce": 18}, name="c").attacked(18, {"apgd-ce": 8, "square": 0}, name="d")
    blocks = comparison([run.dir.root]).blocks
    assert [[row.name for row in block.rows] for block in blocks] == [["run"], ["run"], ["run (c)", "run (d)"]]
    assert "custom (apgd-ce)" in blocks[0].title


def test_a_run_without_an_attack_has_a_block_of_its_own(three: list[Path], make_run: Callable[..., Any]) -> None:
    idle = make_run("idle").trained(0.8).dir.root
    bare = make_run("bare").dir.root
    compared = comparison([*three, idle, bare])
    assert [block.title for block in compared.blocks][1] == "Not attacked yet"
    first, second = (cells(row) for row in compared.blocks[1].rows)
    assert first[6:] == ("80.0 [79.2, 80.8]", "–", "10000", "–")
    assert second[6:] == ("–", "–", "–", "–")
    assert rows_of(compared.csv())[3]["robust"] == ""


def test_a_model_from_outside(make_run: Callable[..., Any]) -> None:
    run = make_run("outside").attacked(18, ONE_ATTACK)
    run.dir.config.unlink()
    row = comparison([run.dir.root]).blocks[0].rows[0]
    assert cells(row)[1:6] == ("from outside", "–", "–", "–", "–")


def test_a_factory_in_the_plan_is_not_the_run_s_own_model(make_run: Callable[..., Any]) -> None:
    run = make_run("run", 3, noise_std=0.3).attacked(18, ONE_ATTACK)
    run.dir.attack("linf").plan.write_text('{"model": {"factory": "robust.py:resnet"}}')
    row = comparison([run.dir.root]).blocks[0].rows[0]
    assert cells(row)[1:6] == ("robust.py:resnet", "–", "–", "–", "–")


def test_eps_in_steps_of_an_8_bit_image() -> None:
    texts = [as_255ths(eps) for eps in (8 / 255, 4 / 255, 0.5 / 255, 0.5, 3.0, 0.03, 0.03137, 0.0313725)]
    assert texts == ["8/255", "4/255", "0.5/255", "127.5/255", "765/255", "7.65/255", "7.99935/255", "8/255"]
    assert [eps_in_full(norm, 0.5) for norm in ("Linf", "L2", "L1")] == ["0.5 (127.5/255)", "0.5", "0.5"]


def test_an_eps_is_the_same_however_many_digits_it_was_written_in(make_run: Callable[..., Any]) -> None:
    sizes = {"a": 8 / 255, "b": 0.0313725, "c": 0.03137}
    roots = [make_run(name).attacked(18, ONE_ATTACK, eps=eps).dir.root for name, eps in sizes.items()]
    compared = comparison(roots)
    assert [[row.name for row in block.rows] for block in compared.blocks] == [["a", "b"], ["c"]]
    assert len({block.title for block in compared.blocks}) == 2
    assert [float(row["eps"]) for row in rows_of(compared.csv())] == list(sizes.values())
    near = make_run("near").attacked(18, ONE_ATTACK, norm="L2", eps=0.50001, name="x")
    near.attacked(18, ONE_ATTACK, norm="L2", eps=0.5, name="y")
    assert len({block.title for block in comparison([near.dir.root]).blocks}) == 2


def test_functions_in_a_folder_with_an_at_sign_are_as_many_as_they_are(make_run: Callable[..., Any]) -> None:
    own = {"/home/me@lab/a.py:f": 5, "/home/me@lab/a.py:g": 3}
    run = make_run("run").attacked(18, own, version="custom")
    (block,) = comparison([run.dir.root]).blocks
    assert block.setting is not None
    assert block.setting.attacks == tuple(own)
    assert [round(share, 2) for share in stages(block.rows[0]).values()] == [0.9, 0.65, 0.5]


def test_rows_of_the_csv_tell_their_setting(make_run: Callable[..., Any]) -> None:
    """Also where only the number of draws differs."""
    roots = [
        summarised(make_run(name).attacked(18, ONE_ATTACK).dir.root, eot=eot)
        for name, eot in (("few", 1), ("many", 20))
    ]
    compared = comparison([*roots, make_run("idle").dir.root])
    settings = [row["setting"] for row in rows_of(compared.csv())]
    assert settings == [*(block.title for block in compared.blocks[:2]), ""]


def test_counts_in_three_digits() -> None:
    assert [short(count) for count in (0, 999, 1000, 12_345, 999_960, 1_910_000)] == [
        *("0", "999", "1k", "12.3k", "1M", "1.91M")
    ]
