from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kapdist.report import comparison
from kapdist.report.claims import NO_NOISE, gaps, lead
from kapdist.report.paired import LEVEL, OTHER_IMAGES
from kapdist.report.words import p_text, points
from kapdist.run.paths import RunDir

MakeRun = Callable[..., Any]


def said(roots: list[Path], block: int = 0) -> list[str]:
    compared = comparison(roots)
    return [claim.text for claim in compared.claims(compared.blocks[block])]


def warned(roots: list[Path]) -> list[str]:
    compared = comparison(roots)
    return [claim.text for claim in compared.claims(compared.blocks[0]) if claim.warns]


def attacked(make_run: MakeRun, name: str, pool_size: int, noise_std: float, robust: int, **options: Any) -> Path:
    """A run that is right on 90 of 100 images, of which `robust` withstand."""
    run = make_run(name, pool_size, noise_std=noise_std, **options)
    mode = options.get("noise", "off")
    return run.attacked(90, {"apgd-ce": 90 - robust}, num_images=100, noise=mode).dir.root


def test_noise_off_is_said(three: list[Path]) -> None:
    assert said(three)[0].startswith("Activation noise was switched off during this attack, so these numbers say")


def test_noise_off_without_any_noise_and_noise_on(make_run: MakeRun) -> None:
    run = make_run("plain").attacked(18, {"apgd-ce": 1}).attacked(18, {"apgd-ce": 1}, name="on", noise="fresh")
    assert said([run.dir.root])[0] == NO_NOISE
    assert "mode fresh" in said([run.dir.root], 1)[0]


def test_dropout_that_draws_always_and_random_members_are_noise(make_run: MakeRun) -> None:
    dropout = {"dropout": 0.5, "dropout_draws": "always", "dropout_kind": "2d"}
    members = {"members": 4, "random_member": True}
    roots = [
        attacked(make_run, "dropout", 1, 0.0, robust=30, model=dropout, noise="fresh"),
        attacked(make_run, "members", 1, 0.0, robust=40, model=members, noise="fresh"),
    ]
    assert said(roots[:1])[0] == "Dropout was on during this attack, mode fresh."
    assert said(roots[1:])[0] == "Random member was on during this attack, mode fresh."
    assert said(roots)[0] == "Noise (dropout and random member) was on during this attack, mode fresh."
    off = attacked(make_run, "off", 1, 0.0, robust=30, model=dropout)
    assert said([off])[0].startswith("Dropout was switched off during this attack")
    both = attacked(make_run, "both", 3, 0.2, robust=30, model=dropout)
    (warning,) = warned([off, both])
    assert warning.startswith(
        "both has both KAP and activation noise σ = 0.2 and dropout 2d, p = 0.5, but no model"
    )


def test_an_ensemble_is_neither_plain_nor_what_kap_is_compared_with(make_run: MakeRun) -> None:
    ensemble = attacked(make_run, "ensemble", 1, 0.0, robust=30, model={"members": 4})
    kap, noise = attacked(make_run, "kap", 3, 0.0, robust=30), attacked(make_run, "noise", 1, 0.3, robust=30)
    compared = comparison([ensemble, kap, noise])
    assert compared.blocks[0].rows[0].model == "resnet18, width 0.25, 4 members"
    assert gaps(compared.blocks[0]) == ()
    assert not any("minus" in text for text in said([ensemble, kap, noise]))


def test_a_gap_of_one_image_is_not_credited_to_kap(three: list[Path]) -> None:
    (gap,) = gaps(comparison(three).blocks[0])
    assert (gap.kap.name, gap.reference.name) == ("kap", "noise")
    assert gap.robust == pytest.approx(1 / 20)
    assert (gap.paired.num_first, gap.paired.num_second, gap.paired.p) == (1, 0, 1.0)
    text = said(three)[1]
    assert text.startswith(
        "KAP minus noise alone (kap minus noise, activation noise σ = 0.3): +5.0 points of robust"
    )
    assert "+0.0 points of clean accuracy" in text
    # The first 7 of 17 images are broken for kap, the first 8 for noise.
    assert "1 withstood the attack only on kap and 0 only on noise (difference +5.0 points [" in text
    assert "McNemar's exact p = 1): it is not decided whether KAP changes robust accuracy here." in text
    noise = said(three)[2]
    assert noise.startswith(
        "Noise alone minus plain (noise minus plain): +45.0 points of robust accuracy (image by"
    )
    assert "McNemar's exact p = 0.0039)." in noise  # 9 of 9 images: 2 / 2^9
    assert warned(three) == []


@pytest.mark.parametrize(("robust", "side", "difference"), [(80, "above", "+40.0"), (5, "below", "−35.0")])
def test_a_gap_that_the_images_show_is_said_to_be_one(
    make_run: MakeRun, robust: int, side: str, difference: str
) -> None:
    roots = [attacked(make_run, "noise", 1, 0.3, 40), attacked(make_run, "kap", 3, 0.3, robust)]
    (text,) = (text for text in said(roots) if text.startswith("KAP minus"))
    assert f"{difference} points of robust accuracy" in text
    assert f"McNemar's exact p < 0.0001): the model with KAP is {side} the one without it." in text


def test_intervals_that_overlap_do_not_hide_what_the_images_show(make_run: MakeRun) -> None:
    """Seven images broken on one model alone: p = 2 / 2^7, while the two intervals share most of their length."""
    roots = [attacked(make_run, "noise", 1, 0.3, 40), attacked(make_run, "kap", 3, 0.3, 47)]
    (gap,) = gaps(comparison(roots).blocks[0])
    kap, noise = (row.robust for row in (gap.kap, gap.reference))
    assert kap.low < noise.high
    assert gap.paired.p == pytest.approx(2 / 2**7)
    (text,) = (text for text in said(roots) if text.startswith("KAP minus"))
    assert text.endswith("the model with KAP is above the one without it.")


def pair_of(make_run: MakeRun, number: int, robust: int) -> list[Path]:
    """Noise and KAP of one seed, of which 40 and `robust` images withstand."""
    return [
        attacked(make_run, f"{name}{number}", size, 0.3, left, seed=number)
        for name, size, left in (("noise", 1, 40), ("kap", 3, robust))
    ]


def test_of_several_pairs_each_is_decided_as_one_of_them(make_run: MakeRun) -> None:
    """Seven images on one side are p = 2 / 2^7 alone; of four pairs, the others equal, Holm's is 4 times it."""
    roots = [root for number in range(3) for root in pair_of(make_run, number, 40)] + pair_of(make_run, 3, 47)
    assert len(gaps(comparison(roots).blocks[0])) == 4
    (text,) = (text for text in said(roots) if "(kap3 minus noise3" in text)
    assert "McNemar's exact p = 0.016, Holm's over 4 pairs p = 0.06" in text
    assert "): it is not decided whether KAP changes robust accuracy here." in text
    (alone,) = (text for text in said(roots[-2:]) if "(kap3 minus noise3" in text)
    assert alone.endswith("McNemar's exact p = 0.016): the model with KAP is above the one without it.")


def test_more_robust_and_less_accurate_is_not_said_to_be_better(make_run: MakeRun) -> None:
    """95 right and 30 robust images beside 80 and 50."""
    noise = make_run("noise", noise_std=0.3).attacked(95, {"apgd-ce": 65}, num_images=100)
    kap = make_run("kap", 3, noise_std=0.3).attacked(80, {"apgd-ce": 30}, num_images=100)
    roots = [noise.dir.root, kap.dir.root]
    (text,) = (text for text in said(roots) if text.startswith("KAP minus"))
    assert (
        "the model with KAP is above the one without it. The clean accuracy of kap is lower (−15.0 points [" in text
    )
    (warning,) = warned(roots)
    assert warning.startswith("kap is more robust and less accurate than noise. That is not better")
    other = make_run("other", noise_std=0.2).attacked(80, {"apgd-ce": 30}, num_images=100).dir.root
    (text,) = (text for text in said([roots[0], other]) if "more robust." in text)
    assert "other is more robust. The clean accuracy of other is lower (−15.0" in text
    assert warned([roots[0], other])[0].startswith("other is more robust and less accurate than noise.")
    close = make_run("close", 3, noise_std=0.3).attacked(92, {"apgd-ce": 30}, num_images=100).dir.root
    (text,) = (text for text in said([roots[0], close]) if text.startswith("KAP minus"))
    assert "Whether their clean accuracies differ is not decided (−3.0 points [" in text
    assert warned([roots[0], close]) == []


def test_of_several_attacks_on_the_reference_the_one_on_the_same_images_counts(make_run: MakeRun) -> None:
    noise, kap = make_run("noise", noise_std=0.3), make_run("kap", 3, noise_std=0.3)
    for run, names in ((noise, "abc"), (kap, "xbc")):
        for first_image, name in zip((0, 500, 500), names, strict=True):
            run.attacked(60, {"apgd-ce": 20}, num_images=100, first_image=first_image, name=name)
    found = gaps(comparison([noise.dir.root, kap.dir.root]).blocks[0])
    pairs = {(gap.kap.name, gap.reference.name) for gap in found}
    assert pairs == {(f"kap ({ours})", f"noise ({theirs})") for ours, theirs in ("xa", "bb", "cc")}


def test_two_attacks_on_one_model_are_no_two_models(make_run: MakeRun) -> None:
    run = make_run("one").attacked(90, {"apgd-ce": 50}, num_images=100, name="x")
    run.attacked(90, {"apgd-ce": 70}, num_images=100, name="y")
    (text,) = (text for text in said([run.dir.root]) if "Image by image" in text)
    assert "two attacks on one model, and 20.0% [13.3, 28.9] of the images withstood both." in text
    assert "more robust" not in text


def test_a_p_value_shows_on_which_side_of_the_level_it_is() -> None:
    found = [p_text(p, LEVEL) for p in (0.0499, 0.049996, 0.05, 0.0501, 0.031, 1.0, 0.00009)]
    assert found == [
        f"p {text}" for text in ("= 0.0499", "= 0.049996", "= 0.05", "= 0.05", "= 0.031", "= 1", "< 0.0001")
    ]


def test_other_images_decide_nothing(make_run: MakeRun) -> None:
    noise = make_run("noise", noise_std=0.3).attacked(18, {"apgd-ce": 17}).dir.root
    kap = make_run("kap", 3, noise_std=0.3).attacked(18, {"apgd-ce": 1}, first_image=5).dir.root
    (text,) = (text for text in said([noise, kap]) if text.startswith("KAP minus"))
    assert "so nothing is decided" in text


def test_any_two_models_are_compared_image_by_image(make_run: MakeRun) -> None:
    """34 of 90 images against 20, the same order of falling: 14 only on one side, 2 ** -13 by a fair coin."""
    roots = [attacked(make_run, name, 1, noise, robust=n) for name, noise, n in (("a", 0.1, 20), ("b", 0.3, 34))]
    (text,) = (text for text in said(roots) if "McNemar" in text)
    assert text.startswith(
        "Image by image, 14 withstood the attack only on b and 0 only on a (difference +14.0 points ["
    )
    assert text.endswith("McNemar's exact p = 0.00012): b is more robust.")
    close = [roots[0], attacked(make_run, "c", 1, 0.4, robust=21)]
    assert any(text.endswith("p = 1): c is not shown to be more robust.") for text in said(close))
    assert not any("McNemar" in text for text in said([*roots, close[1]]))  # of three, which two


def test_kap_with_noise_without_noise_alone_is_warned_of(make_run: MakeRun) -> None:
    roots = [attacked(make_run, "plain", 1, 0.0, 0), attacked(make_run, "kap", 3, 0.3, 50)]
    (warning,) = warned(roots)
    assert warning.startswith("kap has both KAP and activation noise σ = 0.3, but no model with the same noise")
    assert not any(text.startswith("KAP minus") for text in said(roots))


def test_other_noise_is_not_the_same_noise(make_run: MakeRun) -> None:
    roots = [attacked(make_run, "noise", 1, 0.2, 45), attacked(make_run, "kap", 3, 0.3, 50)]
    assert len(warned(roots)) == 1
    inputs = [
        attacked(make_run, "input", 1, 0.3, 45, input_noise_std=0.1),
        attacked(make_run, "kap2", 3, 0.3, 50, input_noise_std=0.2),
    ]
    assert "activation noise σ = 0.3 and input noise σ = 0.2" in warned(inputs)[0]


def test_noise_alone_in_another_setting_does_not_help(make_run: MakeRun) -> None:
    noise = make_run("noise", noise_std=0.3).attacked(90, {"apgd-ce": 1}, num_images=100, eps=4 / 255).dir.root
    assert len(warned([attacked(make_run, "kap", 3, 0.3, 50), noise])) == 1


def test_kap_without_noise_stands_beside_plain(make_run: MakeRun) -> None:
    roots = [attacked(make_run, "plain", 1, 0.0, 0), attacked(make_run, "kap", 3, 0.0, 2)]
    assert said(roots)[1].startswith("KAP minus plain (kap minus plain, no noise): +2.0 points")
    assert warned(roots) == []


def test_the_reference_is_the_most_similar_run_and_differences_are_named(make_run: MakeRun) -> None:
    far = attacked(make_run, "far", 1, 0.3, 45, seed=1)
    kap = attacked(make_run, "kap", 3, 0.3, 50)
    (text,) = (text for text in said([far, kap]) if text.startswith("KAP minus"))
    assert "The two runs also differ in seed, so the gap is not KAP's alone." in text
    near = attacked(make_run, "near", 1, 0.3, 45)
    (gap,) = gaps(comparison([far, kap, near]).blocks[0])
    assert gap.reference.name == "near"
    assert gap.differences == ()


def test_different_images_are_warned_of(make_run: MakeRun) -> None:
    one = make_run("one").attacked(18, {"apgd-ce": 1}).dir.root
    two = make_run("two").attacked(18, {"apgd-ce": 1}, first_image=5).dir.root
    assert warned([one, two]) == ["one and two were attacked on different images."]


def test_many_models_on_two_sets_of_images_are_one_warning(make_run: MakeRun) -> None:
    starts = {"a": 0, "b": 5, "c": 0, "d": 5}
    roots = [
        make_run(name).attacked(18, {"apgd-ce": 1}, first_image=first).dir.root for name, first in starts.items()
    ]
    assert warned(roots) == ["a and c were attacked on other images than b and d."]
    assert warned(roots[:3]) == ["a and c were attacked on other images than b."]


def test_the_same_ids_in_other_data_are_other_images(make_run: MakeRun) -> None:
    noise = make_run("noise", noise_std=0.3).attacked(18, {"apgd-ce": 1}).dir.root
    kap = make_run("kap", 3, noise_std=0.3).attacked(18, {"apgd-ce": 1}, data="e" * 64).dir.root
    assert warned([noise, kap]) == ["noise and kap were attacked on different images."]
    assert not any("Image by image" in text for text in said([noise, kap]))


def test_the_same_images_in_other_pixels_are_not_compared_one_by_one(make_run: MakeRun) -> None:
    roots = [attacked(make_run, "noise", 1, 0.3, 40), attacked(make_run, "kap", 3, 0.3, 60)]
    whole = {"resolution": 32, "crop": "none", "crop_ratio": 0.875}
    in_plan(roots[0], **whole)
    in_plan(roots[1], **whole | {"crop_ratio": 0.5})  # of a crop that there is not
    assert warned(roots) == []
    for centre in ({"crop": "random-resized", "resolution": 64}, {"resolution": 64}):
        in_plan(roots[1], **whole | centre)
        (warning,) = warned(roots)
        assert warning == "noise and kap were attacked on the same images, resized or cropped differently."
        (text,) = (text for text in said(roots) if text.startswith("KAP minus"))
        assert text.endswith(OTHER_IMAGES)


def in_plan(root: Path, **data: Any) -> None:
    path = RunDir(root).attack("linf").plan
    plan = json.loads(path.read_text())
    path.write_text(json.dumps(plan | {"data": plan["data"] | data}))


def noise_alone(roots: list[Path]) -> str:
    (text,) = (text for text in said(roots) if text.startswith("Noise alone minus plain"))
    return text


def test_noise_is_not_credited_with_what_else_differs(make_run: MakeRun) -> None:
    adversarial = {"adversarial": {"mode": "pgd"}}
    dropout = {"dropout": 0.5, "dropout_draws": "always", "dropout_kind": "2d"}
    options = {"input_noise_std": 0.1, "model": dropout}
    plain = attacked(make_run, "plain", 1, 0.0, 2)
    alike = [attacked(make_run, "noise", 1, 0.3, 40, **options), attacked(make_run, "kap", 3, 0.3, 42, **options)]
    assert noise_alone([plain, *alike]).endswith(").")
    other = options | adversarial
    roots = [
        attacked(make_run, "noise_adv", 1, 0.3, 40, **other),
        attacked(make_run, "kap_adv", 3, 0.3, 42, **other),
    ]
    assert noise_alone([plain, *roots]).endswith(
        "). The two runs also differ in adversarial.mode, so the difference is not the noise's alone."
    )


def test_noise_alone_on_other_images_is_not_decided(make_run: MakeRun) -> None:
    plain = make_run("plain").attacked(18, {"apgd-ce": 17}, first_image=5)
    noise = make_run("noise", noise_std=0.3).attacked(18, {"apgd-ce": 9})
    kap = make_run("kap", 3, noise_std=0.3).attacked(18, {"apgd-ce": 8})
    roots = [run.dir.root for run in (plain, noise, kap)]
    start = "Noise alone minus plain (noise minus plain): +40.0 points of robust accuracy. "
    assert noise_alone(roots) == start + OTHER_IMAGES
    plain.dir.attack("linf").records.unlink()
    assert noise_alone(roots) == f"{start}Without records.parquet of plain nothing is decided."


def recorded(root: Path, train: str, **plan: Any) -> Path:
    """The run trained from another place, with what its plan recorded."""
    run = RunDir(root)
    run.config.write_text(run.config.read_text().replace("data/train.beton", train))
    run.plan.write_text(json.dumps(plan))
    return root


def test_training_data_are_compared_by_their_images(make_run: MakeRun) -> None:
    noise, kap = attacked(make_run, "noise", 1, 0.3, 40), attacked(make_run, "kap", 3, 0.3, 50)
    recorded(noise, "data/train.beton", data="1" * 64, validation="2" * 64, batch_size=128)
    recorded(kap, "/elsewhere/train.beton", data="1" * 64, validation="2" * 64, batch_size=128)
    (gap,) = gaps(comparison([noise, kap]).blocks[0])
    assert gap.differences == ()
    noise, kap = attacked(make_run, "noise2", 1, 0.3, 40), attacked(make_run, "kap2", 3, 0.3, 50)
    recorded(noise, "data/train.beton", data="1" * 64, validation="2" * 64, batch_size=128)
    recorded(kap, "data/train.beton", data="3" * 64, validation="4" * 64, batch_size=64)
    (gap,) = gaps(comparison([noise, kap]).blocks[0])
    assert gap.differences == ("data.train", "data.validation", "train.batch_size")


def test_training_data_that_nobody_recorded_are_compared_by_their_place(make_run: MakeRun) -> None:
    noise, kap = attacked(make_run, "noise", 1, 0.3, 40), attacked(make_run, "kap", 3, 0.3, 50)
    recorded(kap, "/elsewhere/train.beton", data="1" * 64)
    (gap,) = gaps(comparison([noise, kap]).blocks[0])
    assert gap.differences == ("data.train",)


def test_notes_of_the_attack_are_handed_on_once(make_run: MakeRun) -> None:
    notes = ["square broke what gradients had left"]
    roots = [make_run(name).attacked(18, {"apgd-ce": 1}, notes=notes).dir.root for name in ("one", "two")]
    assert warned(roots) == ["one and two: square broke what gradients had left."]


def test_files_that_contradict_each_other_are_warned_of(make_run: MakeRun) -> None:
    run = make_run("run").trained().attacked(18, {"apgd-ce": 1}, max_norm=0.05, weights_sha256="1" * 64)
    other = make_run("other").attacked(18, {"apgd-ce": 2})
    other.dir.attack("linf").records.replace(run.dir.attack("linf").records)
    plan = run.dir.attack("linf").plan  # of weights that the attack named itself: those of the run may be others
    plan.write_text(json.dumps({"model": {"factory": None, "weights": "best.safetensors"}}))
    records, norm, weights = warned([run.dir.root])
    assert "records.parquet has 16 robust of 20 images, summary.json 17 of 20" in records
    assert "the largest perturbation, 0.05, is beyond eps" in norm
    assert "the attacked weights are not the ones" in weights


def test_a_rounding_error_is_not_beyond_eps(make_run: MakeRun) -> None:
    root = make_run("run").trained().attacked(18, {"apgd-ce": 1}, max_norm=8 / 255 + 1e-7).dir.root
    assert warned([root]) == []


def test_runs_that_a_setting_lacks_are_named(three: list[Path], make_run: MakeRun) -> None:
    idle = make_run("idle").trained().dir.root
    assert said([*three, idle])[-1] == "Not attacked in this setting: idle."


def test_the_lead_says_what_was_compared(three: list[Path], make_run: MakeRun) -> None:
    one = comparison(three)
    assert lead(one.runs, one.blocks) == (
        "plain, noise and kap, attacked with AutoAttack standard in Linf with eps = 0.03137 (8/255) on 20 images "
        "each, noise off."
    )
    other = make_run("other").attacked(18, {"apgd-ce": 1}, norm="L2", eps=0.5).dir.root
    two = comparison([*three, other])
    assert "attacked in 2 settings" in lead(two.runs, two.blocks)
    some = comparison([three[0], make_run("unasked").dir.root])
    assert lead(some.runs, some.blocks) == (
        "plain, attacked with AutoAttack standard in Linf with eps = 0.03137 (8/255) on 20 images, noise off. "
        "Not attacked yet: unasked."
    )
    idle = comparison([make_run("idle").dir.root])
    assert lead(idle.runs, idle.blocks) == "idle: not attacked yet."


def test_points_have_one_zero() -> None:
    assert [points(share) for share in (-0.0004, 0.0004, -0.012)] == ["+0.0 points", "+0.0 points", "−1.2 points"]
