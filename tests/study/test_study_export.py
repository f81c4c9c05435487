"""What a study's results are in words, and as Markdown."""

from typing import Any

import pytest

from kapdist.records.study import Decision, Row, StudyResults
from kapdist.study.export import markdown, sentence

TESTED = {
    "claim": "a over b, robust accuracy",
    "verdict": "not decided",
    "why": "t over seeds and images, 3 seeds, 256 images, corrected for 3 claims (Holm)",
    "first": "a",
    "over": "b",
    "difference": -0.1,
    "low": -0.15,
    "high": -0.00004,
    "p": 0.04,
    "p_holm": 0.12,
}


def row(setting: str, eps: float, *per_seed: float) -> Row:
    mean = sum(per_seed) / len(per_seed)
    return Row(
        arm=setting,
        setting=setting,
        attack="standard",
        norm="Linf",
        eps=eps,
        seeds=tuple(range(len(per_seed))),
        per_seed=per_seed,
        value=mean,
        low=mean - 0.1,
        high=mean + 0.1,
        method="t",
        num_images=256,
        files=(),
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "−10.0 points [−15.0, +0.0] (95%, this test alone), p = 0.04, corrected p = 0.12: t over"),
        ({"p_holm": 0.04}, "[−15.0, +0.0], p = 0.04: t over"),
        ({"p_holm": 0.0497}, "p = 0.04, corrected p = 0.0497: t over"),  # decided, which 0.05 would not be
        ({"p": 1e-9, "p_holm": 2e-9}, ", p < 0.0001, corrected p < 0.0001: t over"),
        (
            {"clean": (0.5, 0.625), "margin": -0.02},
            "between 50.0% and 62.5% of clean accuracy (against −2.0 points), p",
        ),
        ({"first": "a_0.1", "p_holm": 0.04}, "a_0.1 against b: −10.0 points [−15.0, +0.0], p = 0.04"),
        ({"more": "more seeds"}, "(Holm). More seeds."),
        ({"p": None, "p_holm": None, "why": "one seed"}, "one seed."),
    ],
)
def test_a_decision_in_words(changed: dict[str, Any], said: str) -> None:
    assert said in sentence(Decision.model_validate(TESTED | changed))


def test_the_table_as_markdown() -> None:
    rows = row("a", 0, 0.5, 0.75), row("a", 8 / 255, 0.25, 0.3), row("b", 0, 0.5)
    decision = Decision.model_validate(TESTED)
    results = {"name": "s", "fingerprint": "f", "num_tasks": 1, "num_done": 1, "missing": ()}
    found = StudyResults(**results, rows=rows, decisions=(decision,), notes=("a doubt of a",))
    assert markdown(found).splitlines() == [
        f"- **not decided**: a over b, robust accuracy. {sentence(decision)}",
        "- A doubt of a.",
        "",
        "| under standard | clean, % | each seed | Linf 8/255, % | each seed |",
        "|---|---:|---|---:|---|",
        "| a | 62.5 [52.5, 72.5] | 50.0 75.0 | 27.5 [17.5, 37.5] | 25.0 30.0 |",
        "| b † | 50.0 [40.0, 60.0] | 50.0 | | |",
        "",
        "† One seed: the interval is over images alone, and another seed may lie outside of it.",
    ]
