"""A study's file: what it comes to, and what is refused in one line."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from races import Baton
from typer.testing import CliRunner

from kapdist.config.claims import ClaimConfig
from kapdist.errors import InputError
from kapdist.run import lock as lock_module
from kapdist.study.command import study
from kapdist.study.design import Design, make_design, meant
from kapdist.study.frozen import freeze
from kapdist.study.page import write_study_report
from kapdist.study.status import find_design
from kapdist.study.tasks import run_dir, tasks, write_configs

BASE = """
data: {train: train.beton, validation: test.beton}
model: {name: resnet10, num_classes: 10, width: 0.25}
kap: {pool_size: 1}
"""
ARMS = "arms: {plain: {}, noise: {kap.noise_std: [0.1, 0.3]}, kap: {kap: {pool_size: 3, noise_std: [0.1, 0.3]}}}"
ATTACKS = (
    "attacks: {standard: {eps: [2/255, 8/255]}, eot: {version: eot-standard, noise: fresh, arms: [noise, kap]}}"
)

ONE = "attacks: {standard: {}}"


@pytest.fixture
def design(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(BASE)

    def make(
        arms: str = ARMS, attacks: str = ATTACKS, claims: str = "[]", seeds: str = "2", more: str = ""
    ) -> Design:
        lines = ["train: base.yaml", f"seeds: {seeds}", arms, attacks, f"claims: {claims}", more]
        (tmp_path / "mine.yaml").write_text("\n".join(lines))
        return make_design(tmp_path / "mine.yaml", [f"studies_dir={tmp_path / 'studies'}"])

    return make


def test_a_study_is_settings_times_seeds(design) -> None:
    found = design()
    assert [setting.name for setting in found.settings] == ["plain", "noise_0.1", "noise_0.3", "kap_0.1", "kap_0.3"]
    assert [run.name for run in found.trained][:6] == [
        *("plain_seed0", "noise_0.1_seed0", "noise_0.3_seed0", "kap_0.1_seed0", "kap_0.3_seed0"),
        "plain_seed1",  # every arm has its first seed before any has its second
    ]
    assert {(run.config.kap.pool_size, run.config.kap.noise_std, run.config.seed) for run in found.trained} == {
        (size, std, seed) for size, std in ((1, 0.0), (1, 0.1), (1, 0.3), (3, 0.1), (3, 0.3)) for seed in (0, 1)
    }
    assert len({run.config.runs_dir for run in found.trained}) == 1
    names = [task.name for task in tasks(found) if task.run.name in ("plain_seed0", "kap_0.1_seed1")]
    assert names == ["plain_seed0/train", "plain_seed0/attack/standard"] + [
        f"kap_0.1_seed1/{what}" for what in ("train", "attack/standard", "attack/eot")
    ]


def test_a_list_is_a_grid_where_its_key_takes_none(design) -> None:
    found = design(
        arms="arms: {a: {}, w: {model: {width: 1, widths: [[8, 8, 8, 8], squares], mean: [0.1, 0.2, 0.3]}}}",
        attacks=ONE,
    )
    assert [setting.name for setting in found.settings] == ["a", "w_8-8-8-8", "w_squares"]
    assert {run.config.model.mean for run in found.trained if run.setting.arm == "w"} == {(0.1, 0.2, 0.3)}


def test_the_eps_of_an_attack_follows_its_norm(design) -> None:
    found = design(attacks="attacks: {standard: {}, l2: {norm: L2}, l1: {norm: L1, attacks: [apgd-ce]}}")
    sizes = {name: made.config.eps for name, made in found.attacks.items()}
    assert sizes == {"standard": 4 / 255, "l2": 0.5, "l1": 12}


def test_a_where_means_one_of_a_grid_and_leaves_the_other_arm_as_it_is(design) -> None:
    """A baseline may say another value of the key, and both may have it of what they start from."""
    arms = "arms: {a: {kap.noise_std: 0}, b: {kap.noise_std: [0.1, 0.3]}, c: {kap: {pool_size: 3, noise_std: 0.1}}}"
    claims = "['b over a, clean accuracy, where noise_std=0.3', 'c over a, clean accuracy, where width=0.25']"
    found = design(arms=arms, claims=claims, attacks=ONE)
    sides = [[meant(found, claim, arm).name for arm in (claim.first, claim.over)] for claim in found.config.claims]
    assert sides == [["b_0.3", "a"], ["c", "a"]]


def test_an_arm_may_have_seeds_of_its_own(design) -> None:
    found = design(arms="arms: {a: {}, b: {kap.noise_std: 0.1, seeds: [3, 7]}}", seeds="[1]", attacks=ONE)
    assert [(run.setting.arm, run.seed) for run in found.trained] == [("a", 1), ("b", 3), ("b", 7)]


def test_thirty_runs_are_planned_at_once(design) -> None:
    arms = "arms: {noise: {kap.noise_std: [0.1, 0.2, 0.3]}, kap: {kap: {pool_size: 3, noise_std: [0.1, 0.2, 0.3]}}}"
    before = time.process_time()
    assert len(design(arms=arms, seeds="5").trained) == 30
    assert time.process_time() - before < 2  # of CPU, whatever the machine's other work


def test_a_look_at_a_study_loads_nothing_that_takes_long() -> None:
    program = "import sys, kapdist.study.view, kapdist.study.tasks, kapdist.study.frozen; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "polars", "matplotlib", "ffcv"} & set(loaded)


MANY = [number / 1000 for number in range(1, 101)]

WRONG = {
    "nothing": ({"arms": "arms: {a: {}, b: {kap.layout: line}}"}, "arms that differ in something, found b and a"),
    "key": ({"arms": "arms: {a: {kap.nose_std: 1}}"}, r"arms\.a: .*nearest: kap\.noise_std"),
    "own": ({"arms": "arms: {a: {seed: 1}}"}, "seed is the study's own"),
    "value": ({"arms": "arms: {a: {kap.noise_std: [0.1, 0.1]}}"}, "values, each once"),
    "seed twice": ({"seeds": "[1, 1]"}, "each seed once, not 1 twice"),
    "no seed": ({"seeds": "0"}, "how many seeds"),
    "own seed no number": (
        {"arms": "arms: {a: {seeds: [true, 3]}}"},
        r"arms\.a\.seeds.*a number, not true or false",
    ),
    "own seed a mapping": ({"arms": "arms: {a: {seeds: {}}}"}, r"arms\.a\.seeds.*how many seeds"),
    "attacked seed no number": (
        {"attacks": "attacks: {a: {seeds: [false]}}"},
        r"attacks\.a\.seeds.*not true or false",
    ),
    "own seed twice": ({"arms": "arms: {a: {seeds: [1, 1]}}"}, r"arms\.a\.seeds.*each seed once"),
    "attack": ({"attacks": "attacks: {a: {epz: 1}}"}, r"attacks\.a: .*nearest: eps"),
    "attacked": (
        {"attacks": "attacks: {a: {arms: [none]}}"},
        r"arms of the study \(plain, noise, kap\), found 'none'",
    ),
    "attacked seed": (
        {"attacks": "attacks: {a: {arms: [kap], seeds: [0, 2]}}"},
        r"a\.seeds.*seeds .*\(0, 1\), found 2",
    ),
    "no attacked seed": ({"attacks": "attacks: {a: {seeds: []}}"}, r"attacks\.a\.seeds.*how many seeds"),
    "certified seed": ({"more": "certificate: {sigma: 0.25, seeds: [7]}"}, r"certificate\.seeds: .*found 7"),
    "one image": (
        {"attacks": "attacks: {a: {num_images: 1}}"},
        "two images or more, or 0 for all, found 1",
    ),
    "sanity": ({"more": "sanity: other"}, r"attacks of the study \(standard, eot\), found 'other'"),
    "sanity of an arm": (
        {"more": "sanity: {eot: {arms: plain}}"},
        r"sanity\.eot: .*arms that eot attacks .*found plain",
    ),
    "sanity of a seed": ({"more": "sanity: {standard: {seeds: [7]}}"}, r"sanity\.standard\.seeds: .*found 7"),
    "sanity of nothing": ({"more": "sanity: {standard: {arms: []}}"}, r"standard\.arms: .*an arm of the study"),
    "sanity's own": ({"more": "sanity: {standard: {num_images: 8}}"}, r"the attack's own key sanity.*num_images"),
    "sanity of none": ({"more": "sanity: [[standard]]"}, "sanity"),
    "arm": ({"claims": "['plain over other, clean accuracy']"}, "arms of the study .* found 'other'"),
    "eps": (
        {"claims": "['noise over plain, robust accuracy at 3/255, where noise_std=0.1']"},
        "an eps of the attack",
    ),
    "under": ({"claims": "['noise over plain, clean accuracy, under it']"}, "attacks of the study"),
    "not attacked": ({"claims": "['plain over noise, clean accuracy, under eot']"}, "arms that eot attacks"),
    "which": ({"claims": "['noise over plain, clean accuracy']"}, "a `where` that means one"),
    "none": ({"claims": "['noise over plain, clean accuracy, where noise_std=0.2']"}, "none of noise's"),
    "where, of no arm": (
        {"claims": "['noise over plain, clean accuracy, where noise_std=0.1 and K=3']"},
        "none of noise's",
    ),
    "where, of no key": (
        {
            "arms": "arms: {a: {}, b: {kap.noise_std: 0.1}}",
            "attacks": ONE,
            "claims": "['b over a, clean accuracy, where nois_std=0.1']",
        },
        r"true of a setting of b or a, found nois_std=0\.1, and no such key in these",
    ),
    "where, otherwise": (
        {
            "arms": "arms: {a: {}, b: {kap.noise_std: 0.1}}",
            "attacks": ONE,
            "claims": "['b over a, clean accuracy, where noise_std=0.3']",
        },
        r"a setting of b or a, found noise_std=0\.3, and kap\.noise_std=0\.1 and kap\.noise_std=0\.0 in these",
    ),
    "where, of one seed": (
        {
            "arms": "arms: {a: {}, b: {kap.noise_std: 0.1}}",
            "attacks": ONE,
            "claims": "['b over a, clean accuracy, where seed=0']",
        },
        r"true of a setting of b or a, found seed=0, and no such key in these",
    ),
    "where, twice": (
        {"claims": "['noise over plain, clean accuracy, where noise_std=0.3 and noise_std=0.1']"},
        "a claim that says its noise_std once",
    ),
    "written twice": (
        {"arms": "arms: {a: {kap.noise_std: 0.1, kap: {noise_std: 0.2}}}"},
        r"arms\.a: expected each key once.*found kap\.noise_std twice",
    ),
    "asked twice": (
        {"attacks": "attacks: {a: {data.beton: a.beton, data: {beton: b.beton}}}"},
        r"attacks\.a: expected each key once.*found data\.beton twice",
    ),
    "without end": (
        {"arms": f"arms: {{a: {{kap.noise_std: {MANY}, optim.lr: {MANY}, optim.weight_decay: {MANY}}}}}"},
        r"arms\.a: expected at most 10,000 trainings of an arm, found 2,000,000",
    ),
    "frontier": (
        {"claims": "['noise over plain, robust accuracy, at equal clean accuracy']"},
        "plain a grid over one key",
    ),
    "two keys": (
        {
            "arms": "arms: {plain: {kap.noise_std: [0.1, 0.2], kap.pool_size: [1, 3]}, noise: {}}",
            "claims": "['plain over noise, robust accuracy, at equal clean accuracy']",
            "attacks": ONE,
        },
        r"a grid over kap\.noise_std and kap\.pool_size",
    ),
    "words": ({"claims": "['noise beats plain']"}, "a claim such as"),
    "twice": ({"claims": "['a over b, clean accuracy', 'a over b, clean accuracy']"}, "each claim once"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_a_study_is_said_before_anything_runs(design, case: str) -> None:
    parts, said = WRONG[case]
    with pytest.raises(InputError, match=said) as error:
        design(**parts)
    assert "\n" not in str(error.value)


def test_a_study_may_grow_and_nothing_else(design) -> None:
    claim = "noise over plain, clean accuracy, where noise_std=0.1"
    freeze(design(claims=f"['{claim}']"))
    assert freeze(design(claims=f"['{claim}']", seeds="3")).later == ()
    grown = design(claims=f"['{claim}']", seeds="3")
    summary = grown.root / "runs" / "plain_seed0" / "attacks" / "standard" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    assert freeze(grown).grown == ()  # by a seed, when there was no result yet
    another = "kap over plain, clean accuracy, where noise_std=0.1"
    assert freeze(design(claims=f"['{claim}', '{another}']", seeds="3")).later == (another,)
    for parts, said in (
        ({"seeds": "2"}, "the run plain_seed2, as this study began"),
        ({"seeds": "3", "claims": "[]"}, "the claim"),
        ({"seeds": "3", "attacks": ATTACKS.replace("2/255, 8", "2/255, 4")}, "attack standard: eps"),
        ({"seeds": "3", "attacks": ATTACKS.replace("[noise, kap]", "[kap]")}, "arms of attack eot with noise"),
    ):
        with pytest.raises(InputError, match=said):
            freeze(design(**{"claims": f"['{claim}', '{another}']", **parts}))
    frozen = freeze(design(claims=f"['{claim}', '{another}']", seeds="4"))
    assert frozen.grown == (("plain",),)  # of the others there are no results
    assert freeze(design(claims=f"['{claim}', '{another}']", seeds="4")) == frozen
    turned = "attacks: {eot: {version: eot-standard, noise: fresh}, standard: {eps: [2/255, 8/255]}}"
    with pytest.raises(
        InputError, match=r"claim 'noise over plain.*attack = 'standard' as this study began.*'eot'"
    ):
        freeze(design(claims=f"['{claim}', '{another}']", seeds="4", attacks=turned))
    device = ATTACKS.replace("eps: [2", "device: cpu, num_shards: 3, eps: [2")  # where it is made decides nothing
    freeze(design(claims=f"['{claim}', '{another}']", seeds="4", attacks=device))


def test_an_attack_of_some_seeds_is_made_on_these_and_may_grow_by_others(design) -> None:
    """Taken back is none of them, and with results of the arm each growth is one more look at it."""
    some = ATTACKS.replace("arms:", "seeds: [1, 3], arms:")
    found = design(attacks=some, seeds="4")
    asked = [task.run.name for task in tasks(found) if task.name.endswith("/eot")]
    names = "noise_0.1", "noise_0.3", "kap_0.1", "kap_0.3"
    assert asked == [f"{name}_seed{seed}" for seed in (1, 3) for name in names]
    assert freeze(found).seeds == {"eot": (1, 3)}
    with pytest.raises(InputError, match="seeds of attack eot with 3"):
        freeze(design(attacks=ATTACKS.replace("arms:", "seeds: [1, 2], arms:"), seeds="4"))
    summary = found.root / "runs" / "kap_0.1_seed1" / "attacks" / "eot" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    more = design(attacks=ATTACKS.replace("arms:", "seeds: [1, 2, 3], arms:"), seeds="4")
    assert freeze(more).grown == (("kap",),)
    assert freeze(design(seeds="4")).grown == (("kap",), ("kap",))
    with pytest.raises(InputError, match="seeds of attack eot with 0"):
        freeze(more)


def test_all_seeds_of_an_attack_s_own_arms_may_be_written_down(design) -> None:
    """Others may have more; the same goes for what is no attack."""
    arms = ARMS.replace("plain: {}", "plain: {seeds: 4}")
    certificate = "certificate: {sigma: 0.25, arms: [kap]%s}"
    freeze(design(arms=arms, more=certificate % ""))
    written = ATTACKS.replace("arms:", "seeds: [0, 1], arms:")
    freeze(design(arms=arms, attacks=written, more=certificate % ", seeds: [1, 0]"))
    with pytest.raises(InputError, match="seeds of attack the certificate with 0"):
        freeze(design(arms=arms, attacks=written, more=certificate % ", seeds: [1]"))


def test_a_study_of_all_seeds_has_the_fingerprint_that_it_had(design) -> None:
    assert "seeds" not in design().described()


def test_what_was_asked_beside_the_attacks_stays_asked(design) -> None:
    """Else a check that came out badly could be gone from the page."""
    asked = "sanity: standard\ntopography: {images: 64}"
    freeze(design(more=asked))
    for more, said in (
        ("topography: {images: 64}", "the sanity of 'standard'"),
        ("sanity: standard", "topography: images = 64"),
        ("sanity: standard\ntopography: {images: 128}", "topography: images = 64"),
    ):
        with pytest.raises(InputError, match=said):
            freeze(design(more=more))
    assert freeze(design(more=asked.replace("standard", "[standard, eot]"))).sanity == ("standard", "eot")


def test_an_attack_may_be_examined_on_some_of_its_runs_alone(design) -> None:
    found = design(more="sanity: {standard: {arms: noise, seeds: [1]}, eot: {}}")
    examined = {task.run.name for task in tasks(found) if task.name.endswith("sanity/standard")}
    assert examined == {"noise_0.1_seed1", "noise_0.3_seed1"}
    made = {task.run.name for task in tasks(found) if task.name.endswith("attack/eot")}
    assert made == {task.run.name for task in tasks(found) if task.name.endswith("sanity/eot")} != set()
    assert found.described()["examined"] == {"standard": {"arms": ["noise"], "seeds": [1]}}
    everywhere = design(more="sanity: [standard, eot]")
    assert everywhere.fingerprint == design(more="sanity: {standard: {}, eot: }").fingerprint
    assert "examined" not in everywhere.described()


def test_what_was_examined_stays_so_and_may_become_more(design) -> None:
    freeze(design(more="sanity: {standard: {seeds: [1]}}"))
    for fewer in ("seeds: [0]", "seeds: [1], arms: [noise]"):
        with pytest.raises(InputError, match=r"the sanity of 'standard' on \w+_seed1"):
            freeze(design(more=f"sanity: {{standard: {{{fewer}}}}}"))
    assert freeze(design(more="sanity: standard")).examined == {}
    with pytest.raises(InputError, match=r"the sanity of 'standard' on \w+_seed0"):
        freeze(design(more="sanity: {standard: {seeds: [1]}}"))


def test_who_only_looks_at_a_study_lets_it_not_grow(design, tmp_path: Path, monkeypatch) -> None:
    """Else whoever runs it would find another study there at its end."""
    monkeypatch.chdir(tmp_path)
    begun = design()
    with pytest.raises(InputError, match="a study that has begun"):
        write_study_report(begun)
    assert not begun.root.exists()
    frozen = freeze(begun)
    for words in ([], ["--json"]):
        said = CliRunner().invoke(
            study, ["plan", "mine.yaml", f"studies_dir={begun.root.parent}", "seeds=1", *words]
        )
        assert isinstance(said.exception, InputError)
    page = write_study_report(design(seeds="3"))
    assert "plain_seed2/train" in page.with_name("results.json").read_text()
    assert freeze(begun) == frozen


def test_what_was_trained_otherwise_is_no_run_of_this_study(design, tmp_path: Path) -> None:
    """A study whose study.json is gone, or that grows by a seed that somebody trained there by hand."""
    begun = design()
    freeze(begun)
    run = run_dir(begun, begun.trained[0])
    run.claim(begun.trained[0].config)
    run.done.touch()
    begun.dir.frozen.unlink()
    freeze(begun)  # with the configs that the runs have
    begun.dir.frozen.unlink()
    (tmp_path / "base.yaml").write_text(BASE + "train: {epochs: 7}\n")
    with pytest.raises(InputError, match=r"plain_seed0: expected train\.epochs = \d+ as this run began"):
        freeze(design())
    (tmp_path / "base.yaml").write_text(BASE)
    freeze(design())
    by_hand = run_dir(begun, begun.trained[0]).root.with_name("plain_seed2")
    shutil.copytree(run.root, by_hand)
    with pytest.raises(InputError, match=r"plain_seed2: expected name = 'plain_seed0' as this run began"):
        freeze(design(seeds="3"))


@pytest.mark.parametrize("seed", range(4))
def test_of_two_that_let_a_study_grow_at_once_one_is_refused(design, monkeypatch, seed: int) -> None:
    """Else a claim that came out badly could be gone without a trace."""
    freeze(design())
    grown = [design(claims="['noise over plain, clean accuracy, where noise_std=0.1']"), design(seeds="3")]
    monkeypatch.setattr(lock_module, "POLL_SECONDS", 0)
    baton = Baton(random.Random(seed))
    with monkeypatch.context() as patch:
        baton.watch(patch)
        (error,) = baton.run([lambda one=one: freeze(one) for one in grown])
    assert isinstance(error, InputError)
    assert str(error).endswith("found no such")


@given(
    robust=st.booleans(),
    eps=st.sampled_from([None, 8 / 255, 0.5, 1.0]),
    margin=st.sampled_from([0.0, 0.02, -0.01]),
    attack=st.sampled_from([None, "eot-standard"]),
    where=st.sampled_from([{}, {"noise_std": "0.1", "pool_size": "3"}]),
)
def test_a_claim_s_sentence_is_the_claim(robust: bool, eps, margin: float, attack, where) -> None:
    keys = {"first": "a", "over": "b-2", "measure": "robust" if robust else "clean", "margin": margin}
    claim = ClaimConfig(**keys, eps=eps if robust else None, attack=attack, where=where)
    assert ClaimConfig.model_validate(claim.text) == claim
    assert "255/255" not in claim.text  # a size that only L2 and L1 have


def test_text_that_looks_like_a_number_stays_text(design, tmp_path: Path) -> None:
    """The arguments of a network are any values, and a study's directory may be named after a year."""
    (tmp_path / "base.yaml").write_text("data: {train: a.beton, validation: b.beton}\nmodel: {factory: 'm.py:f'}\n")
    found = design(
        arms='arms: {a: {model.arguments.tag: "08"}, b: {model.arguments.tag: "1e-3"}}',
        attacks='attacks: {"09": {}}',
    )
    assert [run.config.model.arguments for run in found.trained[:2]] == [{"tag": "08"}, {"tag": "1e-3"}]
    assert list(found.attacks) == ["09"]
    named = make_design(tmp_path / "mine.yaml", [f"studies_dir={tmp_path / 'studies'}", "name='2026'"])
    freeze(named)
    write_configs(named)
    assert find_design(tmp_path / "studies" / "2026").config.name == "2026"
